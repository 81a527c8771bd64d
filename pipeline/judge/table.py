"""The judge over tables: traces of a teacher and completions of a student alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from pipeline.completion import Completion
from pipeline.judge import (
    Judgement,
    JudgePool,
    Problem,
    check_broken_share,
    check_gold,
    judge_answer,
)
from pipeline.judge.kinds import kind_of
from pipeline.judge.llm import LLMJudge, majority_answer
from pipeline.judge.math.forms.restated import restated
from pipeline.judge.math.grade_math import gold_answer
from pipeline.progress import progress

_SAYING = re.compile(r"(?:\\text\s*\{)?(?=.*[^\W\d_]{3})[^\W\d_]+(?:[\s.,'’]+[^\W\d_]+)+[\s.!?}]*")
"""Words alone: samples that agree on "I do not know" agree on no answer."""


def judge_all(completions: list[Completion], problems: list[Problem],
              pool: JudgePool, label: str = "judging") -> list[Judgement]:
    """Judge each completion, in order. Raises UserError if over 1 % are errors or timeouts."""
    with progress(label, len(completions)) as advance:
        done = 0

        def step(so_far: int) -> None:
            nonlocal done
            advance(so_far - done)
            done = so_far

        judgements = pool.judge_many(completions, problems, progress=step)
    check_broken_share(judgements)
    return judgements


def as_completion(trace: dict[str, Any]) -> Completion:
    """Turn a row of tables.Trace into a Completion."""
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


def apply_llm_judge(judged: pl.DataFrame, problems: pl.DataFrame, model: LLMJudge) -> pl.DataFrame:
    """Let `model` decide what the rules left open of `problems`."""
    known = judged["problem_id"].is_in(problems["problem_id"].implode())
    places = ((judged["verdict"] == "cannot_judge") & known).arg_true()
    rows = judged[places].select("problem_id", "score", "verdict", "extracted", "grader").rows()
    left = problems.filter(problems["problem_id"].is_in([row[0] for row in rows]))
    by_id = {row["problem_id"]: Problem.from_row(row) for row in left.iter_rows(named=True)}
    out = model.review_all([Judgement(*row[1:]) for row in rows], [by_id[row[0]] for row in rows])
    return _replaced(judged, places, out)


def by_majority(judged: pl.DataFrame, problems: list[dict[str, Any]], votes: int,
                pool: JudgePool) -> pl.DataFrame:
    """Judge problems without a gold by the answer that most of their samples give.

    These verdicts have the grader "majority". A problem stays cannot_judge unless more than half
    of its answers, and at least `votes`, agree.
    """
    rows_decided: list[int] = []
    decided: list[Judgement] = []
    by_id = {row["problem_id"]: Problem.from_row(row) for row in problems}
    rows = judged.select("problem_id", "verdict", "extracted").with_row_index().filter(
        pl.col("problem_id").is_in(list(by_id)), verdict="cannot_judge")
    for part in rows.drop_nulls("extracted").partition_by("problem_id", maintain_order=True):
        judgements = _by_agreement(part["extracted"].to_list(), by_id[part["problem_id"][0]], pool)
        if sum(j.score == 1.0 for j in judgements) >= votes:
            scored = [(row, j) for row, j in zip(part["index"], judgements, strict=True)
                      if j.score is not None]
            rows_decided += [row for row, _ in scored]
            decided += [replace(j, grader="majority") for _, j in scored]
    return _replaced(judged, pl.Series(rows_decided, dtype=pl.UInt32), decided)


def _by_agreement(answers: list[str], problem: Problem, pool: JudgePool) -> list[Judgement]:
    """Judge `answers` by the one that most of them equal; [] without a majority."""
    gold = majority_answer(
        answers, lambda one, other: _against(one, other, problem, pool).score == 1.0)
    if gold is None or (kind_of(problem).spellings and _SAYING.fullmatch(gold)):
        return []
    if check_gold(replace(problem, answer=gold), pool).score != 1.0:
        return []
    return [_against(gold, answer, problem, pool) for answer in answers]


def _against(gold: str, answer: str, problem: Problem, pool: JudgePool) -> Judgement:
    """Judge `answer` as if `gold` were the answer to `problem`."""
    return judge_answer(answer, replace(problem, answer=gold), pool)


def votes(judged: Sequence[tuple[Problem, Judgement]], pool: JudgePool) -> list[str | None]:
    """Return one text for all equal answers of a problem, so that they can be counted.

    Only kinds with `spellings` are compared beyond their text: right answers become the gold,
    wrong ones the first that equals them.
    """
    out: list[str | None] = []
    wrong: dict[str, list[str]] = {}
    for problem, judgement in judged:
        answer = judgement.extracted
        if kind_of(problem).spellings and answer is not None and judgement.score is not None:
            if judgement.score == 1.0:
                answer = problem.answer
            else:
                seen, bare = wrong.setdefault(problem.problem_id, []), replace(problem, meta={})
                answer = next((one for one in seen if one == answer or _against(
                    one, answer, bare, pool).score == 1.0), answer)
                seen += [] if answer in seen else [answer]
        out.append(answer)
    return out


def is_restatement(problem: Problem, score: float | None, answer: str | None) -> bool:
    """Whether a right answer only repeats the problem's formula, which rl would not reward."""
    return score == 1.0 and answer is not None and kind_of(problem).spellings and all(
        restated(gold_answer(gold), answer, problem.problem) for gold in problem.golds)


def count_restatements(judged: pl.DataFrame, problems: pl.DataFrame) -> int:
    """How many right answers among the rows `judged` are restatements."""
    by_id = {row["problem_id"]: Problem.from_row(row) for row in problems.iter_rows(named=True)}
    rows = judged.select("problem_id", "score", "extracted").rows()
    return sum(is_restatement(by_id[name], score, answer) for name, score, answer in rows)


def _replaced(judged: pl.DataFrame, rows: pl.Series,
              judgements: list[Judgement]) -> pl.DataFrame:
    """`judged` with new judgements in the rows with these indices."""
    return judged.with_columns(
        judged[name].scatter(rows, pl.Series([getattr(j, name) for j in judgements],
                                             dtype=judged[name].dtype))
        for name in ("score", "verdict", "grader"))
