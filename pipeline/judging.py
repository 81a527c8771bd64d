"""The judge over tables: traces of a teacher and completions of a student alike."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.completion import Completion
from pipeline.progress import progress
from pipeline.verify import Judgement, JudgePool, Problem, refuse_if_broken
from pipeline.verify.llm import LLMJudge


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


def second_look(judged: pl.DataFrame, problems: pl.DataFrame, model: LLMJudge) -> pl.DataFrame:
    """`judged`, where `model` has decided what the rules left open (grader "llm")."""
    places = (judged["verdict"] == "cannot_judge").arg_true()
    rows = judged[places].select("problem_id", "score", "verdict", "extracted", "grader").rows()
    left = problems.filter(problems["problem_id"].is_in({row[0] for row in rows}))
    by_id = {row["problem_id"]: Problem.from_row(row) for row in left.iter_rows(named=True)}
    out = model.review_all([Judgement(*row[1:]) for row in rows], [by_id[row[0]] for row in rows])
    return _replaced(judged, places, out)


def _replaced(judged: pl.DataFrame, places: pl.Series, by: list[Judgement]) -> pl.DataFrame:
    """`judged` with the judgements `by` in the rows `places`."""
    return judged.with_columns(
        judged[name].scatter(places, pl.Series([getattr(j, name) for j in by],
                                               dtype=judged[name].dtype))
        for name in ("score", "verdict", "grader"))
