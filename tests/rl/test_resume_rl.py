"""Refinement: killed and gone on with, a run ends in the weights of an uninterrupted one."""

from types import SimpleNamespace

import pytest
import tiny_rl
import torch

CASES = {
    "one run": {},
    "later epochs": {"rows": 4, "trainer": {"max_steps": 6}},
    "unused rollouts": {"trainer": {"steps_per_generation": 3, "save_steps": 4, "max_steps": 10}},
    "rollouts used twice": {"trainer": {"num_iterations": 2, "save_steps": 3, "max_steps": 7}},
    "a last step of fewer batches": {"rows": 6, "trainer": {
        "gradient_accumulation_steps": 2, "steps_per_generation": 1, "max_steps": 5}},
    "adapters in phases": {"lora": {"r": 2}, "phases": [{"until_step": 2}, {}],
                           "held_out": range(2), "evaluate_every": 2, "keep": "best"},
    "a KL term": {"trainer": {"beta": 0.1}},
    "a band and dynamic sampling": {"difficulty": "samples < 4 or 0 < pass_rate < 1", "rows": 8,
                                    "dynamic_sampling": 2, "trainer": {"max_steps": 6}},
    "phases": {"phases": [{"until_step": 2}, {"trainer": {"max_completion_length": 16}}]},
    "handed on by cut-off": {"phases": [{"until_cut_off": 0.5, "cut_off_steps": 2}, {}],
                             "trainer": {"max_steps": 5}},
    "watched": {"held_out": range(4), "evaluate_every": 2, "trainer": {"max_steps": 5}},
}
KILLS = {"later epochs": 4, "unused rollouts": 6, "a last step of fewer batches": 4}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return tiny_rl.build(tmp_path_factory.mktemp("start"))


def dying(calls):
    """A judge that ends the run after so many calls: once the last rollouts are used up."""
    left = [calls]

    def right(text, problem):
        left[0] -= 1 / 8
        if left[0] < 0:
            raise KeyboardInterrupt
        return len(text) % 2

    return tiny_rl.Pool(right)


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_to_the_weights_of_an_uninterrupted_one(start, tmp_path, case):
    tiny_rl.refined(start, tmp_path / "whole", **CASES[case])
    for calls in (KILLS.get(case, 2), 1):
        with pytest.raises(KeyboardInterrupt):
            tiny_rl.refined(start, tmp_path / "cut", dying(calls), **CASES[case])
    tiny_rl.refined(start, tmp_path / "cut", **CASES[case])
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    assert torch.equal(tiny_rl.weights(whole / "model"), tiny_rl.weights(cut / "model"))
    assert [line["reward"] for line in tiny_rl.log(whole)] == \
        [line["reward"] for line in tiny_rl.log(cut)]
    assert not torch.equal(tiny_rl.weights(whole / "model"), tiny_rl.weights(start))


@pytest.mark.parametrize(("minutes", "end"), [(1.0, 9), (None, 3)])
def test_a_resumed_run_counts_on_from_the_time_of_its_checkpoint(
        start, tmp_path, monkeypatch, minutes, end):
    now = [0.0]
    monkeypatch.setattr("pipeline.train.guard.time", SimpleNamespace(monotonic=lambda: now[0]))

    def counts(calls):
        """Counts of a run whose judge takes 20 s a step and dies after so many."""
        die = dying(calls).right

        def right(text, problem):
            now[0] += 20 / 8
            return die(text, problem)

        return tiny_rl.refined(start, tmp_path, tiny_rl.Pool(right), minutes=minutes,
                               trainer={"max_steps": end})

    with pytest.raises(KeyboardInterrupt):
        counts(2)
    now[0] += 1e6
    assert counts(9) == {"steps": 3, "train_seconds": 60}


@pytest.mark.parametrize("case", ["one run", "later epochs", "phases", "handed on by cut-off"])
def test_a_run_killed_while_it_saves_its_model_trains_no_step_more(
        start, tmp_path, case, monkeypatch):
    import pipeline.train.fit

    def killed(*ignored):
        raise KeyboardInterrupt

    tiny_rl.refined(start, tmp_path / "whole", **CASES[case])
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.train.fit, "save_student", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny_rl.refined(start, tmp_path / "cut", **CASES[case])
    tiny_rl.refined(start, tmp_path / "cut", **CASES[case])
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    assert [line["step"] for line in tiny_rl.log(cut)] == \
        [line["step"] for line in tiny_rl.log(whole)]
    assert torch.equal(tiny_rl.weights(whole / "model"), tiny_rl.weights(cut / "model"))
