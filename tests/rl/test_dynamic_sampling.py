"""Dynamic sampling and the band while training: what is asked again, what trains, what is said."""

import polars as pl
import pytest
import tiny_rl
import torch

from pipeline.rl.dynamic_sampling import DynamicSamplingTrainer, copy_rows


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return tiny_rl.build(tmp_path_factory.mktemp("start"))


@pytest.fixture
def trained(monkeypatch):
    """[(trainer, inputs)] of every micro-batch that a run trains on."""
    seen, real = [], DynamicSamplingTrainer._compute_loss

    def spy(self, model, inputs):
        seen.append((self, inputs))
        return real(self, model, inputs)

    monkeypatch.setattr(DynamicSamplingTrainer, "_compute_loss", spy)
    return seen


def half_easy(text, problem):
    """Right for every second problem whatever is said, else by the text."""
    return int(problem.problem_id.rpartition("-")[2]) % 2 or len(text) % 2


def always(text, problem):
    return 1


def test_no_group_of_equal_reward_is_trained_on(start, tmp_path, trained):
    tiny_rl.refined(start, tmp_path, tiny_rl.Pool(half_easy), dynamic_sampling=1)
    told = tiny_rl.log(tmp_path)
    assert max(line["dynamic_sampling/rounds"] for line in told) == 1
    assert max(line["dynamic_sampling/left_zero_std"] for line in told) > 0
    for _, inputs in trained:
        used = inputs["completion_mask"].any(1)
        assert torch.equal(used, inputs["advantages"] != 0)
        assert inputs["num_items_in_batch"] == inputs["completion_mask"].sum()


def test_enough_rounds_fill_every_group(start, tmp_path, trained):
    tiny_rl.refined(start, tmp_path, tiny_rl.Pool(half_easy), dynamic_sampling=8)
    assert {line["dynamic_sampling/left_zero_std"] for line in tiny_rl.log(tmp_path)} == {0.0}
    assert all((inputs["advantages"] != 0).all() for _, inputs in trained)


def test_a_run_whose_groups_are_all_equal_trains_nothing(start, tmp_path):
    tiny_rl.refined(start, tmp_path, tiny_rl.Pool(always), dynamic_sampling=2)
    assert torch.equal(tiny_rl.weights(tmp_path / "model"), tiny_rl.weights(start))


def test_problems_asked_again_are_compared_with_their_first_time(start, tmp_path):
    asked = []

    def second_time(text, problem):
        """Right for every problem once it has been asked before (four samples each)."""
        asked.append(problem.problem_id)
        return asked.count(problem.problem_id) > 4 or len(text) % 2

    tiny_rl.refined(start, tmp_path, tiny_rl.Pool(second_time), rows=4)
    told = tiny_rl.log(tmp_path)
    assert [line["asked_again/share"] for line in told] == [0, 0, 1, 1]
    assert [line.get("asked_again/accuracy") for line in told] == [None, None, 1, 1]
    firsts = [[line[name] for line in lines] for lines, name in (
        (told[:2], "rewards/accuracy/mean"), (told[2:], "asked_again/first"))]
    assert sum(firsts[0]) == pytest.approx(sum(firsts[1])) and sum(firsts[0]) < 2


@pytest.mark.parametrize("loss", ["dapo", "bnpo", "cispo"])
def test_a_group_of_equal_reward_does_not_dilute_a_loss_over_tokens(start, tmp_path, trained, loss):
    tiny_rl.refined(start, tmp_path, tiny_rl.Pool(half_easy), dynamic_sampling=1,
                    trainer={"loss_type": loss})
    mixed = [(t, i) for t, i in trained if 0 < (i["advantages"] != 0).sum() < 8]
    assert mixed
    for trainer, inputs in mixed:
        live = inputs["advantages"] != 0
        alone = {k: v[live] if v.ndim else v for k, v in inputs.items()}
        trainer.model.train()
        with torch.no_grad():
            torch.testing.assert_close(trainer._compute_loss(trainer.model, inputs),
                                       trainer._compute_loss(trainer.model, alone))


def test_extra_generations_do_not_bend_what_is_logged(start, tmp_path):
    for name, rounds in (("without", 0), ("with", 3)):
        tiny_rl.refined(start, tmp_path / name, tiny_rl.Pool(half_easy),
                        dynamic_sampling=rounds, trainer={"max_steps": 1}, keep_completions=1)
    tables = [pl.read_parquet(tmp_path / name / "checkpoints/completions/*.parquet")
              for name in ("without", "with")]
    assert tables[1].equals(tables[0]) and len(tables[0]) == 8
    without, filled = (tiny_rl.log(tmp_path / name)[0] for name in ("without", "with"))
    assert filled["dynamic_sampling/rounds"] > 0
    for key in ("reward", "reward_std", "frac_reward_zero_std", "completions/mean_length"):
        assert filled[key] == without[key]
    assert filled["num_tokens"] > without["num_tokens"]


def test_a_problem_that_left_the_band_is_not_asked_again(start, tmp_path):
    asked = []

    def right(text, problem):
        asked.append(problem.problem_id)
        return half_easy(text, problem)

    tiny_rl.refined(start, tmp_path, tiny_rl.Pool(right), difficulty="pass_rate < 1", rows=8,
                    trainer={"max_steps": 12})
    easy = [name for name in asked if int(name[4:]) % 2]
    assert len(set(easy)) > 1 and all(easy.count(name) == 4 for name in easy)
    assert sum(line["difficulty/replaced"] for line in tiny_rl.log(tmp_path)) > 0


def test_rows_placed_keep_their_tokens_whatever_the_widths():
    def batch(prompts, completions, first):
        ids = torch.arange(first, first + 2 * (prompts + completions)).view(2, -1)
        return {"prompt_ids": ids[:, :prompts], "completion_ids": ids[:, prompts:],
                "completion_mask": torch.ones(2, completions), "advantages": torch.ones(2) * first,
                "num_items_in_batch": torch.tensor(2)}

    for widths in ((3, 5), (6, 2)):
        output, more = batch(4, 4, 10), batch(*widths, 50)
        whole = {name: value.clone() for name, value in output.items()}
        copy_rows(output, more, {0: 1}, pad_token_id=0)
        assert output["prompt_ids"][0, -widths[0]:].tolist() == more["prompt_ids"][1].tolist()
        assert output["completion_ids"][0, :widths[1]].tolist() == \
            more["completion_ids"][1].tolist()
        assert output["completion_mask"].sum(1).tolist() == [widths[1], 4]
        assert output["advantages"].tolist() == [50, 10]
        assert output["prompt_ids"][1, -4:].tolist() == whole["prompt_ids"][1].tolist()
