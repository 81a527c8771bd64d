"""avg@k, pass@k, maj@k and their intervals."""

import json
import random
from pathlib import Path

import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.config.problems import EvaluationSet
from pipeline.errors import UserError
from pipeline.evaluate.metrics import (
    difference,
    differences,
    majority,
    mean_interval,
    paired_gain,
    pass_at_k,
    summarise,
    summarise_seeds,
)
from pipeline.problems.sources import evaluation_sets, short_names
from stages import evaluate
from stages.graph import STAGES


def rows(table):
    return [{"problem_id": str(i), "score": s, "vote": str(s), "cut_off": False,
             "completion_tokens": 10} for i, group in enumerate(table) for s in group]


def test_the_mean_lies_in_its_interval_which_narrows_with_more_problems():
    mean, low, high = mean_interval([0.0, 1.0] * 10)
    _, low2, high2 = mean_interval([0.0, 1.0] * 100)
    assert low < mean < high and high2 - low2 < high - low
    assert mean_interval([0.0] * 100) == (0.0, 0.0, pytest.approx(0.037, abs=1e-3))


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = random.Random(0)
    hits = sum(low <= 0.3 <= high for _, low, high in (
        mean_interval([float(rng.random() < 0.3) for _ in range(200)]) for _ in range(500)))
    assert 0.92 < hits / 500 < 0.98


@pytest.mark.parametrize("mean", [0.0, 0.25, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_equal_means_and_a_single_problem_have_an_interval_too(mean, count):
    found, low, high = mean_interval([mean] * count)
    more = mean_interval([mean] * (10 * count))
    assert found == pytest.approx(mean) and 0 <= low <= mean <= high <= 1
    assert high - low > more[2] - more[1] > 0
    assert count > 1 or high - low > 0.7


def test_an_equal_gain_on_few_problems_is_not_known_to_the_last_digit():
    better, worse = rows([[1.0, 0.0]] * 3), rows([[0.0, 0.0]] * 3)
    mean, low, high = paired_gain(better, worse)
    assert mean == 0.5 and low < 0 < mean < high <= 1


def test_pass_at_k_of_fewer_than_k_samples_is_refused():
    for right in (0, 3):
        with pytest.raises(ValueError, match=r"pass@4 cannot be estimated from 3 samples"):
            pass_at_k(3, right, 4)


def test_pass_at_k_agrees_with_drawing():
    assert pass_at_k(4, 0, 2) == 0 and pass_at_k(4, 4, 1) == 1
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)


def test_the_majority_decides_and_ties_share():
    assert majority(["a", "a", "b"], [1, 1, 0]) == 1
    assert majority(["a", "b", "b"], [1, 0, 0]) == 0
    assert majority(["a", "b"], [1, 0]) == 0.5
    assert majority([None, None], [0, 0]) == 0


def test_summarise_averages_over_problems_and_leaves_out_what_was_not_judged():
    got = summarise(rows([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    assert got["avg"] == pytest.approx(0.5) and got["problems"] == 3 and got["samples"] == 2
    assert got["pass"] == pytest.approx(2 / 3)
    assert got["ci_low"] < got["avg"] < got["ci_high"]
    unjudged = {"problem_id": "9", "score": None, "vote": None, "cut_off": True,
                "completion_tokens": 10}
    with_none = [*rows([[1.0, 0.0]]), unjudged]
    assert summarise(with_none)["avg"] == 0.5 and summarise(with_none)["unjudged"] == 1


def test_a_small_gain_on_every_problem_shows_paired_where_the_means_intervals_overlap():
    rng = random.Random(0)
    base = [[float(rng.random() < chance) for _ in range(4)]
            for chance in (rng.random() for _ in range(300))]
    better = [[1.0, *group[1:]] if rng.random() < 0.3 else group for group in base]
    mean, low, high = paired_gain(rows(better), rows(base))
    before, after = summarise(rows(base)), summarise(rows(better))
    assert mean == pytest.approx(after["avg"] - before["avg"]) and 0 < low < mean < high
    assert before["ci_high"] > after["ci_low"]


def test_the_gain_over_itself_is_nothing():
    table = rows([[1.0, 0.0], [0.0, 0.0]])
    mean, low, high = paired_gain(table, table)
    assert mean == 0 and low == -high and 0 < high < 1


def test_a_gain_without_a_common_judged_problem_is_unknown_and_no_crash():
    unjudged = [{**row, "score": None} for row in rows([[1.0]])]
    assert paired_gain(unjudged, rows([[1.0]])) == (0.0, -1.0, 1.0)


def test_a_score_of_answers_that_mostly_did_not_end_says_so():
    from stages.evaluate import summary

    score = {"avg": 0.5, "ci_low": 0.4, "ci_high": 0.6, "cut_off": 0.2}
    assert summary({"scores": {"sft": {"gsm8k": score}}}) == "sft gsm8k 50.0 [40.0, 60.0]"
    said = summary({"scores": {"sft": {"gsm8k": {**score, "cut_off": 0.76}}}})
    assert "76% of sft's answers on gsm8k were truncated" in said and "max_tokens" in said


def default(*overrides):
    return load(Experiment, [Path(__file__).parents[2] / "configs/default.yaml"], overrides)


def test_a_benchmark_that_is_nearly_heldout_is_refused_before_any_work():
    evaluate.check(default("evaluate.benchmarks=[heldout, openai/gsm8k]"))
    with pytest.raises(UserError, match="did you mean heldout"):
        evaluate.check(default("evaluate.benchmarks=[heldoot]"))
    with pytest.raises(UserError, match="held_out=0 keeps no problem"):
        evaluate.check(default("prepare.held_out=0"))


ROW = {"problem": "1+1?", "answer": "2"}


@pytest.mark.parametrize(("rows", "said"), [
    ([{"question": "1+1?", "answer": "2"}], "row 1 of .* has no 'problem'"),
    ([{**ROW, "id": "x"}, {**ROW, "id": "x"}], "have the same id"),
    ([ROW, {**ROW, "answer": " "}], "problem own-1 of .* has no answer to judge by"),
    ([{**ROW, "kind": "maths"}], "known kinds"), ([{**ROW, "kind": "code"}], "no tests"),
    ([], "no problems")])
def test_a_benchmark_that_cannot_be_measured_is_refused_before_training(tmp_path, rows, said):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=said):
        evaluate.check(default(f"evaluate.benchmarks=[{path}]"))


def test_a_benchmark_is_called_by_its_stem_and_by_its_subset_where_two_share_it():
    gsm8k, *parts = (EvaluationSet(problems=problems, subset=subset) for problems, subset in (
        ("openai/gsm8k", "main"), ("a/maths", "algebra"), ("b/maths", None)))
    assert list(short_names(evaluation_sets(["heldout", gsm8k, *parts], "key")).values()) == [
        "heldout", "gsm8k", "a/maths/algebra", "b/maths"]


def test_a_benchmark_may_have_columns_of_its_own(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "1+1?", "solution": "so #### 2"}))
    entry = f"{{problems: {path}, problem_column: question, answer_column: solution, " \
            "answer_pattern: '#### (.+)'}"
    experiment = default(f"evaluate.benchmarks=[{entry}]")
    evaluate.check(experiment)
    assert path in STAGES["evaluate"].files(experiment)
    row, = evaluate._benchmarks(experiment, {})["own"]
    assert (row["problem"], row["answer"]) == ("1+1?", "2")


def seeded(*means):
    """The samples of one model by seed, one a problem, with these scores."""
    return {seed: [{"problem_id": f"p{i}", "score": score, "vote": "a", "cut_off": False,
                    "completion_tokens": 10 + seed} for i, score in enumerate(scores)]
            for seed, scores in enumerate(means)}


def test_several_seeds_give_their_mean_each_of_them_and_an_interval_that_holds_training():
    scores = [[1.0] * (60 + 5 * seed) + [0.0] * (40 - 5 * seed) for seed in range(3)]
    found = summarise_seeds(seeded(*scores))
    assert found["avg"] == pytest.approx(0.65) and found["mean_tokens"] == 11
    assert [one["avg"] for one in found["seeds"].values()] == pytest.approx([0.6, 0.65, 0.7])
    means = [sum(column) / 3 for column in zip(*scores, strict=True)]
    over_problems = sum((x - 0.65) ** 2 for x in means) / 99 / 100
    over_seeds = 0.05 ** 2 / 3
    half = (1.96 ** 2 * over_problems + 4.30 ** 2 * over_seeds) ** 0.5
    assert found["training_high"] - found["avg"] == pytest.approx(half)
    assert found["ci_high"] - found["avg"] == pytest.approx(1.96 * over_problems ** 0.5)
    assert "seeds" not in summarise_seeds(seeded(scores[0])) == summarise(seeded(scores[0])[0])


def test_a_gain_that_every_seed_shows_is_surer_than_the_scores_it_is_made_of():
    before = seeded([1.0] * 50 + [0.0] * 50, [1.0] * 60 + [0.0] * 40, [1.0] * 70 + [0.0] * 30)
    after = seeded([1.0] * 60 + [0.0] * 40, [1.0] * 70 + [0.0] * 30, [1.0] * 80 + [0.0] * 20)
    gain, score = difference(after, before), summarise_seeds(after)
    assert gain["interval"][0] == pytest.approx(0.1) and gain["each"] == pytest.approx([0.1] * 3)
    assert gain["training_high"] - gain["training_low"] < \
        (score["training_high"] - score["training_low"]) / 2
    untrained = seeded([0.0] * 100)
    assert difference(after, {None: untrained[0]})["each"] == pytest.approx([0.6, 0.7, 0.8])


def test_any_two_models_have_a_paired_difference_and_its_opposite():
    models = {"a": seeded([1.0, 0.0, 1.0, 0.0]), "b": seeded([1.0, 1.0, 1.0, 0.0]),
              "c": seeded([0.0] * 4)}
    found = differences({name: {None: rows[0]} for name, rows in models.items()})
    assert {name: set(others) for name, others in found.items()} == {
        "a": {"b", "c"}, "b": {"a", "c"}, "c": {"a", "b"}}
    assert found["b"]["a"]["interval"][0] == 0.25 == -found["a"]["b"]["interval"][0]
