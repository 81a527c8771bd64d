"""An evaluation that is stopped goes on with the benchmarks that are not measured yet."""

import json
from pathlib import Path

import polars as pl
import pytest
import tiny_rl

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.evaluate import drawing
from stages import evaluate
from stages.graph import STAGES

CONFIG = Path(__file__).parents[2] / "configs/default.yaml"


def made(folder, name):
    """The artifacts that evaluate reads, the student's called `name`, and a benchmark's file."""
    student, prepare, own = folder / name, folder / "prepare", folder / "own.jsonl"
    tiny_rl.build(student)
    (student / "tokenizer").symlink_to(student / "model")
    prepare.mkdir()
    rows = [{k: v for k, v in row.items() if k != "prompt"} for row in tiny_rl.problems(3)]
    tables.write(tables.Problem, pl.DataFrame(rows), prepare / "heldout.parquet")
    own.write_text(json.dumps({"problem": "1+1?", "answer": "2"}))
    return {"student": student, "prepare": prepare}, own


def test_a_stopped_evaluation_samples_only_the_benchmarks_it_lacks(tmp_path, monkeypatch):
    inputs, own = made(tmp_path, "student")
    given = ["evaluate.models=[untrained]", f"evaluate.benchmarks=[heldout, {own}]",
             "evaluate.sampling.max_tokens=8", "runtime.judge_workers=1"]
    first, experiment = (load(Experiment, [CONFIG], [*given, f"runtime.artifacts={tmp_path / one}"])
                         for one in ("one", "two"))
    real, asked = drawing.sample_sets, []

    def dying(*given):
        asked.append(list(given[2]))
        for name, groups in real(*given):
            if name == "own" and len(asked) == 2:
                raise KeyboardInterrupt
            yield name, groups

    monkeypatch.setattr(drawing, "sample_sets", dying)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    expected = evaluate.run(first, inputs, whole)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(experiment, inputs, cut)
    assert evaluate.run(experiment, inputs, cut) == expected and STAGES["evaluate"].resumable
    assert asked == [["heldout", "own"], ["heldout", "own"], ["own"]]
    both = [pl.read_parquet(folder / "completions.parquet") for folder in (whole, cut)]
    assert both[0].equals(both[1]) and not (cut / "judged").exists()


def test_another_experiment_samples_no_model_again_on_the_same_benchmark(tmp_path, monkeypatch):
    inputs, own = made(tmp_path, "student-0123456789ab")
    real, asked = drawing.sample_sets, []

    def counted(*given):
        asked.append(list(given[2]))
        yield from real(*given)

    monkeypatch.setattr(drawing, "sample_sets", counted)
    scores = []
    for number, more in enumerate(([], [f"evaluate.benchmarks=[heldout, {own}]"],
                                   ["evaluate.samples=2"], ["name=another", "report.title=b"])):
        (out := tmp_path / f"out-{number}").mkdir()
        experiment = load(Experiment, [CONFIG], [
            "evaluate.models=[untrained]", "evaluate.sampling.max_tokens=8",
            "runtime.judge_workers=1", f"runtime.artifacts={tmp_path}", *more])
        scores.append(evaluate.run(experiment, inputs, out))
    assert asked == [["heldout"], ["own"], ["heldout"]] and scores[0] == scores[3]
