"""GRPO: our rollouts and trimmed loss inside TRL's trainer change no value."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.student import TinyModel, build_model, build_tokenizer

TEMPLATE = (Path(__file__).resolve().parents[1] / "prompts/chat_templates/tiny.jinja").read_text()
TOKENIZER = build_tokenizer(["1 and 2 make 3.", "Wait, 1+2=3"], 400, TEMPLATE)
ROWS = [{"prompt": [{"role": "user", "content": f"{a} and {a + 1} make?"}]} for a in range(8)]


def trainer(tmp_path, reward, steps=2, **given):
    from datasets import Dataset

    from pipeline.grpo import CompactGRPOTrainer
    from pipeline.rl import arguments

    settings = {"max_steps": steps, "num_generations": 4, "per_device_train_batch_size": 8,
                "max_completion_length": 12, "learning_rate": 1e-3, "save_strategy": "no",
                "report_to": [], **given}
    model = build_model(TOKENIZER, TinyModel(layers=1, width=32, heads=2, init_std=0.5), 0)
    made = CompactGRPOTrainer(
        model=model, reward_funcs=[reward], args=arguments(settings, tmp_path, 0),
        train_dataset=Dataset.from_list(ROWS), processing_class=TOKENIZER)
    made.eos_token_ids = [TOKENIZER.eos_token_id, *range(260, 300)]  # so that lengths differ
    return made


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


def even(completions, completion_ids, **columns):
    return [float(sum(ids) % 2) for ids in completion_ids]


def test_rollouts_come_from_the_compacting_loop_and_the_weights_move(tmp_path, monkeypatch):
    import pipeline.grpo as grpo

    calls = []
    real = grpo.decode
    monkeypatch.setattr(grpo, "decode", lambda *a, **k: calls.append(1) or real(*a, **k))
    made = trainer(tmp_path, even)
    before = weights(made)
    made.train()
    assert len(calls) == 2 and not torch.equal(before, weights(made))


def test_the_trimmed_loss_and_its_gradient_equal_the_whole_ones(tmp_path, monkeypatch):
    import pipeline.grpo as grpo

    def run(trim):
        monkeypatch.setattr(grpo, "trimmed", trim)
        made = trainer(tmp_path, even, steps=3)
        made.train()
        return weights(made)

    torch.testing.assert_close(run(grpo.trimmed), run(lambda inputs: inputs), atol=1e-6, rtol=0)


def test_a_micro_batch_without_any_loss_is_trimmed_to_one_column():
    from pipeline.grpo import trimmed

    inputs = {"completion_mask": torch.zeros(2, 5), "completion_ids": torch.ones(2, 5),
              "prompt_mask": torch.ones(2, 5), "advantages": torch.zeros(2)}
    got = trimmed(inputs)
    assert got["completion_ids"].shape == (2, 1) and got["prompt_mask"].shape == (2, 5)


@pytest.mark.parametrize("value", [1.0, 0.0, None, float("nan")])
def test_equal_or_missing_rewards_neither_crash_nor_train(tmp_path, value):
    def reward(completions, **columns):
        return [value] * len(completions)

    made = trainer(tmp_path, reward)
    before = weights(made)
    made.train()
    assert torch.equal(before, weights(made))


def test_a_reward_that_never_comes_stops_with_one_sentence(tmp_path):
    from pipeline.rl import RewardWatch

    def accuracy(completions, **columns):
        return [0.0] * len(completions)

    made = trainer(tmp_path, accuracy, steps=6)
    made.add_callback(RewardWatch(3))
    with pytest.raises(UserError, match="first 3 steps"):
        made.train()


def test_rewards_named_in_the_config_are_known_and_reflections_are_counted():
    from pipeline.rl import reward_functions, with_reflection
    from pipeline.verify import JudgePool

    with JudgePool(1) as pool:
        made = reward_functions({"accuracy": 1.0, "format": 0.1}, pool, True, 100)
        with pytest.raises(UserError, match="beauty"):
            reward_functions({"beauty": 1.0}, pool, True, 100)
    assert [weight for weight, _ in made.values()] == [1.0, 0.1]
    logged = {}
    counting = with_reflection(lambda completions, **columns: [0.0] * len(completions))
    counting(completions=["Wait, no. Wait, yes", "plain"],
             log_metric=lambda name, value: logged.update({name: value}))
    assert logged == {"reflection": 1.0}


def test_attacks_on_the_judge_neither_hang_nor_stop_a_training_run(tmp_path):
    import json
    import time

    from pipeline.rewards import accuracy_reward
    from pipeline.verify import JudgePool

    path = Path(__file__).parents[2] / "shared" / "cases" / "resource_attacks.json"
    if not path.exists():
        pytest.skip("the resource attacks are not beside this checkout")
    attacks = json.loads(path.read_text())
    slow = {"prediction": "\\boxed{\\int_0^1 x^x \\sin(x^x) dx}", "gold": "\\sum_{k=1}^{n} k^x"}
    waiting, took = [*attacks, slow], []
    with JudgePool(workers=1) as pool:
        judged = accuracy_reward(pool)

        def attacked(prompts, completions, **columns):
            scores = []
            for prompt in prompts:
                case = waiting.pop() if waiting else {"prediction": "\\boxed{2}", "gold": "2"}
                begun = time.monotonic()
                scores += judged([prompt], [case["prediction"]], answer=[case["gold"]])
                took.append(time.monotonic() - begun)
            return scores

        trainer(tmp_path, attacked, steps=-(-len(waiting) // 8)).train()
    assert not waiting and max(took) < 6
