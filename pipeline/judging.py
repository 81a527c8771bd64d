"""The judge over tables: traces of a teacher and completions of a student alike."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.completion import Completion
from pipeline.progress import progress
from pipeline.verify import Judgement, JudgePool, Problem, refuse_if_broken


def judge_all(completions: list[Completion], problems: list[Problem],
              pool: JudgePool, label: str = "judging") -> list[Judgement]:
    """One judgement a completion, in order; stops where over 1 % could not be judged for error."""
    with progress(label, len(completions)) as advance:
        done = 0

        def step(so_far: int) -> None:
            nonlocal done
            advance(so_far - done)
            done = so_far

        judgements = pool.judge_many(completions, problems, progress=step)
    refuse_if_broken(judgements)
    return judgements


def as_completion(trace: dict[str, Any]) -> Completion:
    """A records.Trace row as the judge reads it."""
    return Completion(trace["thinking"], trace["answer"] or "",
                      closed=trace["complete"] or bool(trace["answer"]),
                      finish_reason=trace["finish_reason"])


def judge_traces(traces: pl.DataFrame, problems: pl.DataFrame, pool: JudgePool) -> pl.DataFrame:
    """`traces` with score, verdict, extracted, grader and each problem's pass_rate."""
    by_id = {row["problem_id"]: Problem.from_row(row) for row in problems.iter_rows(named=True)}
    completions = [as_completion(row) for row in traces.iter_rows(named=True)]
    judgements = judge_all(completions, [by_id[i] for i in traces["problem_id"]], pool)
    columns = {name: [getattr(j, name) for j in judgements]
               for name in ("score", "verdict", "extracted", "grader")}
    columns["judge_version"] = [j.version for j in judgements]
    schema = {name: pl.Float64 if name == "score" else pl.String for name in columns}
    return traces.hstack(pl.DataFrame(columns, schema=schema)).with_columns(
        pass_rate=pl.col("score").mean().over("problem_id"))
