"""Models that judge as rewards: they move the policy, without a gold, and each for its source."""

from statistics import mean

import pytest
import tiny_reward
from tiny_rl import Pool, build, log, problems, refined

from pipeline.config.judges import RewardModel, Rubric
from pipeline.config.rl import RlConfig
from pipeline.judge.models.opinion import Item
from pipeline.rl.alarms import crossings
from pipeline.rl.judge_reward import all_weights, is_rewarded, judge_reward, of_its_sources
from pipeline.rl.rewards import RewardContext, reward_functions

JUDGE = {"type": "reward_model", "model": "m"}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return build(tmp_path_factory.mktemp("start"))


@pytest.mark.slow
def test_a_reward_model_moves_the_policy_on_problems_without_a_gold(start, tmp_path, monkeypatch):
    # The student begins with numbers and bytes at random; the judge likes numbers.
    noise = [chr(code) for code in range(33, 127) if not chr(code).isdigit()]
    judge = tiny_reward.train(tmp_path / "judge", kind=[str(n) for n in range(10, 100)],
                              rude=noise, filler=noise)
    rows = [{**row, "kind": "open", "answer": ""} for row in problems(12)]
    monkeypatch.setattr("tiny_rl.problems", lambda count: rows[:count])
    refined(start, tmp_path / "out", rewards={"pleasant": 1.0},
            judges={"pleasant": {"type": "reward_model", "model": str(judge), "reads": "whole"}},
            trainer={"max_steps": 20, "save_strategy": "no", "learning_rate": 1e-2,
                     "num_generations": 16, "per_device_train_batch_size": 32})
    rewards = [row["rewards/pleasant/mean"] for row in log(tmp_path / "out")]
    assert len(rewards) == 20 and mean(rewards[-3:]) > mean(rewards[:3]) + 0.5


def scoring(values):
    """A reward model's score by the text, and the texts that it was given."""
    seen = []

    def score(items):
        seen.extend(items)
        return [values[item.text] for item in items]

    return score, seen


def test_the_reward_reads_the_summary_and_one_that_is_not_there_never_pays():
    score, seen = scoring({"kind": 0.5, "rude": -2.5})
    texts = ["<think>rude</think>kind", "<think>never closed", "rude"]
    columns = {"problem_id": ["a", "b", "c"], "problem": ["p", "q", "r"]}
    reward = judge_reward(RewardModel(model="m"), score)
    assert reward(["x"] * 3, texts, **columns) == [0.5, -3.5, -2.5]
    assert seen == [Item("a", "p", "kind"), Item("c", "r", "rude")]
    rubric = judge_reward(Rubric(model="m", criteria={"x": 1}), score)
    assert rubric(["x"] * 3, texts, **columns) == [0.5, 0.0, -2.5]
    assert reward(["x"], texts[1:2], problem_id=["b"], problem=["q"]) == [None]


CONFIG = RlConfig.model_validate({
    "rewards": {"accuracy": 1.0, "format": 0.1}, "judges": {"pleasant": JUDGE},
    "source_rewards": {"chat": {"pleasant": 0.5}}})
ROWS = [{"problem_id": "a", "source": "sums", "answer": "1", "kind": "math", "problem": "p"},
        {"problem_id": "b", "source": "chat", "answer": "", "kind": "open", "problem": "q"},
        {"problem_id": "c", "source": "sums", "answer": "", "kind": "math", "problem": "r"}]


def test_each_source_has_its_rewards_and_only_its_completions_are_judged():
    score, seen = scoring({"kind": 2.0})
    context = RewardContext(pool=Pool(lambda text, problem: 1.0),
                            judges={"pleasant": (CONFIG.judges["pleasant"], score)})
    made = reward_functions(all_weights(CONFIG), context)
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    said = {name: of_its_sources(name, function, CONFIG)(["x"] * 3, ["kind"] * 3, **columns)
            for name, (_, function) in made.items()}
    assert said["accuracy"] == [1.0, 0.0, 0.0]      # the third has no gold
    assert said["pleasant"] == [0.0, 2.0, 0.0] and [item.group for item in seen] == ["b"]
    weights = {name: weight for name, (weight, _) in made.items()}
    assert weights == {"accuracy": 1.0, "format": 0.1, "pleasant": 0.5}
    assert [is_rewarded(CONFIG, row) for row in ROWS] == [True, True, False]


def test_a_sources_own_weight_of_a_common_reward_holds():
    config = RlConfig.model_validate({
        "rewards": {"pleasant": 0.2}, "judges": {"pleasant": JUDGE},
        "source_rewards": {"chat": {"pleasant": 0.6}}})
    reward = of_its_sources("pleasant", lambda completions, **columns: [1.0] * len(completions),
                            config)
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    assert reward(prompts=["x"] * 3, completions=["t"] * 3, **columns) == pytest.approx([1, 3, 1])


def test_without_judges_and_sources_a_reward_is_called_as_before():
    def reward(completions, **columns):
        return [0.0]

    assert of_its_sources("accuracy", reward, RlConfig()) is reward


def test_an_alarm_rings_where_the_models_reward_rises_and_held_out_accuracy_does_not():
    def rows(accuracy):
        return [{"step": i, "reward": 0.1 * i, "rewards/pleasant/mean": 0.1 * i,
                 **({"heldout/accuracy": accuracy(i)} if i % 5 == 0 else {})} for i in range(31)]

    alarms = RlConfig().alarms
    assert "gaming the reward" in crossings(rows(lambda i: 0.5 - i / 100), alarms)["hacking"]
    assert "held-out accuracy" in crossings(rows(lambda i: 0.5), alarms)["hacking"]
    assert "hacking" not in crossings(rows(lambda i: 0.2 + i / 100), alarms)
