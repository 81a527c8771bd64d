"""Problems without a gold: what their samples agree on, counted apart from gold verdicts."""

import json
from types import SimpleNamespace

import polars as pl
import pytest

from pipeline import tables
from pipeline.config.experiment import Runtime
from pipeline.config.filter import FilterConfig
from pipeline.config.generate import GenerateConfig
from pipeline.config.problems import PrepareConfig
from pipeline.config.rl import RlConfig
from pipeline.errors import UserError
from pipeline.evaluate.numbers import judged_columns, trace_counts
from pipeline.evaluate.page import funnel
from pipeline.judge import Judgement, JudgePool, Problem
from pipeline.judge.table import votes
from stages import filter as stage
from stages import prepare, rl

SAID = {"gold": ["7", "8", "7", "7"], "agree": ["1/2", "0.5", "3", "\\frac12"],
        "split": ["1", "2", "3", "1"], "few": ["4", "4"], "mute": [None, None, None, None]}
CHOSEN = {"letter": ["B", "B", "\\text{(B)}", "C"]}


def problem(name, answer="", kind="math"):
    return {"problem_id": name, "problem": f"What is {name}?", "answer": answer, "kind": kind,
            "source": "s", "split": "problems", "meta": "{}"}


def trace(name, sample, answer):
    return {"problem_id": name, "sample": sample, "thinking": f"{name} {sample}",
            "answer": "I do not know" if answer is None else f"\\boxed{{{answer}}}",
            "finish_reason": "stop", "complete": True, "prompt_tokens": 5,
            "completion_tokens": 40 + sample, "cost_usd": 0.0, "seconds": 0.1, "model": "m"}


@pytest.fixture
def filtered(tmp_path):
    """(counts, judged table, folder) of the filter with `settings` over SAID and CHOSEN."""
    def run(**settings):
        problems = [problem(name, "7" if name == "gold" else "") for name in SAID]
        problems += [problem(name, kind="choice") for name in CHOSEN]
        rows = [trace(name, i, text) for name, said in (SAID | CHOSEN).items()
                for i, text in enumerate(said)]
        inputs = {"prepare": tmp_path / "prepare", "generate": tmp_path / "generate"}
        tables.write(tables.Problem, pl.DataFrame(problems),
                      inputs["prepare"] / "problems.parquet")
        tables.write(tables.Trace, pl.DataFrame(rows), inputs["generate"] / "traces.parquet")
        experiment = SimpleNamespace(filter=FilterConfig(**settings),
                                     runtime=Runtime(judge_workers=1))
        counts = stage.run(experiment, inputs, tmp_path / "out")
        table = tables.read(tables.Judged, tmp_path / "out/judged.parquet")
        return counts, {name: table.filter(problem_id=name) for name in SAID | CHOSEN}, tmp_path
    return run


def test_without_the_setting_nothing_without_a_gold_is_scored(filtered):
    counts, table, _ = filtered()
    assert counts["kept"] == 3 and counts["verdicts"] == {"correct": 3, "wrong": 1}
    assert set(table["agree"]["verdict"]) == {"cannot_judge"}
    assert counts["without_gold"]["agreed"] == 0


def test_equal_answers_of_more_than_half_stand_in_for_a_gold(filtered):
    _, table, _ = filtered(majority=3)
    assert table["agree"]["verdict"].to_list() == ["correct", "correct", "wrong", "correct"]
    assert set(table["agree"]["grader"]) == {"majority"} == set(table["letter"]["grader"])
    assert table["letter"]["score"].to_list() == [1.0, 1.0, 1.0, 0.0]
    assert set(table["split"]["verdict"]) == {"cannot_judge"} == set(table["few"]["verdict"])
    assert "majority" not in set(table["gold"]["grader"]) | set(table["mute"]["grader"])


def test_majority_verdicts_are_counted_apart_and_shown_apart(filtered):
    counts, _, root = filtered(majority=3)
    assert counts["verdicts"] == {"correct": 3, "wrong": 1}
    assert sum(counts["problems_by_difficulty"].values()) == 1
    bare = counts["without_gold"]
    assert (bare["problems"], bare["agreed"], bare["kept"]) == (5, 2, 6)
    assert bare["verdicts"]["correct"] == 6
    assert "2 of 5 problems without a gold" in stage.summary(counts)
    traces = trace_counts(judged_columns(root / "out"))
    assert traces["verdicts"]["correct"] == 3
    assert funnel(traces)[-1] | {"name": ""} == {"name": "", "count": 6, "start": 0.0,
                                                  "share": 6 / 22, "kind": "kept"}


def test_fewer_votes_suffice_where_fewer_are_asked(filtered):
    _, table, _ = filtered(majority=2)
    assert set(table["few"]["grader"]) == {"majority"}
    assert set(table["split"]["grader"]) == {"rules"}       # two of four are no majority


def prepared(tmp_path, rows, **settings):
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = PrepareConfig(problems=str(path), **settings)
    return prepare.run(SimpleNamespace(prepare=config, seed=0, runtime=Runtime()), {},
                       tmp_path / "prepare")


ROWS = [{"problem": f"What is {i} and {i}?", **({"answer": f"#### {i}"} if i % 2 else {})}
        for i in range(8)]


def test_problems_without_a_gold_are_taught_never_held_out_and_never_refined_on(tmp_path):
    counts = prepared(tmp_path, ROWS, held_out=3, answer_optional=True, answer_pattern="#### (.+)")
    assert counts["without_gold"] == 4 and counts["problems"] == 5
    held_out = tables.read(tables.Problem, tmp_path / "prepare/heldout.parquet")
    assert "" not in held_out["answer"].to_list()
    experiment = SimpleNamespace(generate=GenerateConfig(teacher={"type": "solver"}), seed=0,
                                 rl=RlConfig())
    asked = rl._asked(experiment, tmp_path / "prepare/problems.parquet")
    assert len(asked) == 1 and asked[0]["answer"]


def test_a_missing_gold_is_refused_where_none_may_miss(tmp_path):
    with pytest.raises(UserError, match="has no 'answer'"):
        prepared(tmp_path, ROWS, held_out=3)
    with pytest.raises(UserError, match="4 problems with a usable answer"):
        prepared(tmp_path, ROWS, held_out=5, answer_optional=True, answer_pattern="#### (.+)")


def test_equal_answers_to_maths_are_one_vote_however_spelt():
    half, sum_ = Problem("half", "?", "1/2"), Problem("sum", "?", "2", "exact")
    said = [(half, "\\frac{1}{2}", 1.0), (half, "0.5", 1.0), (half, "2", 0.0), (half, "0.25", 0.0),
            (half, "\\frac14", 0.0), (half, None, 0.0), (half, "2.0", None), (sum_, "2.0", 0.0),
            (sum_, "2", 1.0), (Problem("other", "?", "9"), "2.0", 0.0)]
    judged = [(problem, Judgement(score, "correct" if score else "wrong", answer, "rules"))
              for problem, answer, score in said]
    with JudgePool(workers=1) as pool:
        assert votes(judged, pool) == ["1/2", "1/2", "2", "0.25", "0.25", None, "2.0", "2.0", "2",
                                       "2.0"]
