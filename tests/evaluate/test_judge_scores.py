"""Judges score every model's completions; comparisons are against the first model."""

import pytest

from pipeline.config.judges import Pairwise, RewardModel
from pipeline.evaluate.judge_scores import add_judge_scores, judge_summary


def row(problem, sample, answer, thinking="t"):
    return {"problem_id": problem, "sample": sample, "problem": f"{problem}?", "answer": answer,
            "thinking": thinking}


def test_every_completion_with_an_answer_gets_its_score():
    tables = {"sft": [[row("a", 0, "xxx"), row("b", 0, "")]], "rl": [[row("a", 0, "xxxxx")]]}
    add_judge_scores({"long": RewardModel(model="m")},
                     {"long": lambda items: [float(len(item.text)) for item in items]}, tables)
    rows = [one for part in tables.values() for rows in part for one in rows]
    assert [one["long"] for one in rows] == [3, None, 5]
    [found] = judge_summary(tables["sft"][0], ["long"]).values()
    assert found["mean"] == 3 and found["unjudged"] == 1 and found["problems"] == 1


def test_a_comparison_sets_each_sample_against_the_first_models_of_the_same_number():
    tables = {"untrained": [[row("a", 0, "1"), row("a", 1, "9")]],
              "rl": [[row("a", 0, "5"), row("a", 1, "5")]],
              "teacher": [[row("a", 0, "1"), row("a", 1, "9")]]}
    seen = []

    def score(items):
        seen.extend(item.text for item in items)
        return [1.0 if one.text > other.text else 0.0 if one.text < other.text else 0.5
                for pair in zip(items[::2], items[1::2], strict=True)
                for one, other in (pair, pair[::-1])]

    add_judge_scores({"better": Pairwise(model="m")}, {"better": score}, tables)
    assert [one["better"] for one in tables["rl"][0]] == [1.0, 0.0]
    assert [one["better"] for one in tables["teacher"][0]] == [0.5, 0.5]
    assert "better" not in judge_summary(tables["untrained"][0], ["better"])
    assert seen[:2] == ["5", "1"]


def test_the_interval_is_over_problems_not_samples():
    rows = [{"problem_id": str(i // 4), "j": float(i // 4 % 2)} for i in range(80)]
    [found] = judge_summary(rows, ["j"]).values()
    assert found["mean"] == 0.5 and found["problems"] == 20
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * (0.25 / 19) ** 0.5)
