"""Scores by thinking budget stand below their benchmark, and the report draws them."""

import json
from pathlib import Path

import polars as pl
import tiny_rl

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.config.student import TinyModel
from pipeline.evaluate import plots
from pipeline.evaluate.budgets import benchmark_of, curves, nested
from pipeline.evaluate.page import budget_curves
from pipeline.student.tiny import save_tiny
from stages import evaluate
from tests.tiny_sft import TEMPLATE

CONFIG = Path(__file__).parents[2] / "configs/default.yaml"


def test_names_with_a_budget_go_below_their_benchmark():
    scores = {"a": {"avg": 0.5}, "a @512": {"avg": 0.1}, "b": {"avg": 1.0}, "b @x": {"avg": 0.2}}
    assert nested(scores) == {"a": {"avg": 0.5, "budgets": {"512": {"avg": 0.1}}},
                              "b": {"avg": 1.0}, "b @x": {"avg": 0.2}}
    assert benchmark_of("a @512") == "a" and benchmark_of("b @x") == "b @x"


def test_a_tiny_student_is_measured_at_each_budget_with_intervals(tmp_path):
    student, prepare, out = tmp_path / "student", tmp_path / "prepare", tmp_path / "out"
    # A tokenizer that has the tags: spelt in bytes, they drown among a random model's bytes.
    save_tiny(["1 and 2 make 3 <think>\nso it is 3\n</think>\nthe answer is 3"],
              TinyModel(layers=1, width=32, heads=2), TEMPLATE.read_text("utf-8"), 0,
              student / "model")
    (student / "tokenizer").symlink_to(student / "model")
    for folder in (prepare, out):
        folder.mkdir()
    rows = [{k: v for k, v in row.items() if k != "prompt"} for row in tiny_rl.problems(4)]
    tables.write(tables.Problem, pl.DataFrame(rows), prepare / "heldout.parquet")
    experiment = load(Experiment, [CONFIG], [
        "evaluate.models=[untrained]", "evaluate.budgets=[2, 9]", "evaluate.answer_tokens=5",
        "evaluate.samples=2", "evaluate.sampling.max_tokens=8", "runtime.judge_workers=1",
        f"runtime.artifacts={tmp_path / 'artifacts'}"])
    evaluate.run(experiment, {"student": student, "prepare": prepare}, out)
    found = json.loads((out / "scores.json").read_text())["untrained"]["heldout"]
    assert list(found["budgets"]) == ["2", "9"]
    assert all({"avg", "ci_low", "ci_high", "mean_tokens"} <= set(one)
               for one in found["budgets"].values())
    table = pl.read_parquet(out / "completions.parquet")
    assert set(table["benchmark"]) == {"heldout", "heldout @2", "heldout @9"}
    forced = table.filter(pl.col("benchmark") == "heldout @9")
    assert "unclosed_thinking" not in forced["verdict"].to_list() and len(forced) == 8
    assert forced["thinking"].is_not_null().all()
    assert found["budgets"]["2"]["mean_tokens"] < found["budgets"]["9"]["mean_tokens"]
    drawn = budget_curves({"untrained": {"heldout": found}})["held-out"]
    assert drawn["plot"].count("<circle") == 3
    assert list(drawn["models"]["untrained"]) == ["2", "9"]


def test_the_curve_goes_through_every_budget_and_where_the_model_stops_by_itself():
    def score(avg, tokens):
        return {"avg": avg, "ci_low": avg - 0.1, "ci_high": avg + 0.1, "mean_tokens": tokens}

    models = {"rl": {"aime24": {**score(0.6, 900.0), "budgets": {
        "1024": score(0.5, 700.0), "512": score(0.3, 400.0)}}}, "sft": {"aime24": score(0.2, 9.0)}}
    [(name, by)] = curves(models).items()
    assert name == "aime24" and [x for x, *_ in by["rl"]] == [400.0, 700.0, 900.0]
    assert "sft" not in by
    drawn = plots.intervals(by, "<label>")
    assert drawn.count("<circle") == 3 and "&lt;label&gt;" in drawn
