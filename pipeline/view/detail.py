"""One trace as the page shows it: its texts with marks, and how the judge came to its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.curate.reviews import problem_key, trace_key
from pipeline.errors import UserError
from pipeline.judge import Judgement, Problem, has_gold
from pipeline.judge.checks.audit import second_grader
from pipeline.judge.checks.explain import explain
from pipeline.judge.judge import default_pool
from pipeline.judge.kinds import kind_of
from pipeline.judge.math.grade_math import gold_answer
from pipeline.judge.table import as_completion
from pipeline.view.marks import marks

LONG = 20_000
"""Characters of an extracted answer from which it is not explained."""


def detail(row: Mapping[str, Any], problem: Mapping[str, Any] | None,
           *languages: str) -> dict[str, Any]:
    """The texts, marks, columns, key and judgement of one row of a table of traces."""
    thinking, answer = row.get("thinking"), row.get("answer") or ""
    asked = (problem or {}).get("problem") or ""
    texts = {"thinking": thinking or "", "answer": answer}
    shown = {name: value for name, value in row.items()
             if isinstance(value, str | int | float | bool) and name not in (
                 *texts, "problem", "gold", "meta")}
    return {"texts": texts,
            "marks": {name: marks(text, *languages) for name, text in texts.items()},
            "columns": shown, "problem": asked or None, "gold": (problem or {}).get("answer"),
            "kind": (problem or {}).get("kind"), "truncated": _truncated(row),
            "key": trace_key(asked or str(row["problem_id"]), thinking, answer),
            "problem_key": problem_key(asked or str(row["problem_id"])),
            "judged": judged(row, problem)}


def _truncated(row: Mapping[str, Any]) -> bool:
    return bool(row.get("cut_off")) or row.get("finish_reason") == "length" or \
        row.get("complete") is False


def judged(row: Mapping[str, Any], problem: Mapping[str, Any] | None) -> dict[str, Any]:
    """The verdict, what was compared with what by which rule, and the second grader's opinion.

    A row without a verdict is judged now. {"trouble"} if that cannot be done.
    """
    if problem is None:
        return {"trouble": "its problem is no longer there, so there is nothing to judge it by"}
    if not has_gold({"answer": problem["answer"] or "", "kind": problem["kind"]}):
        return {"trouble": "its problem has no gold answer"}
    try:
        asked = Problem.from_row({**problem, "problem_id": str(row["problem_id"])})
        judgement = _judgement(row, asked)
        told = explain(judgement, asked) if len(judgement.extracted or "") < LONG else {}
    except UserError as error:
        return {"trouble": str(error)}
    return {"verdict": judgement.verdict, "score": judgement.score, "grader": judgement.grader,
            "extracted": judgement.extracted, "gold": asked.answer, **told,
            "second": _second(judgement, asked)}


def _judgement(row: Mapping[str, Any], problem: Problem) -> Judgement:
    if row.get("verdict"):
        return Judgement(row.get("score"), row["verdict"], row.get("extracted"),
                         row.get("grader") or "rules")
    trace = {"finish_reason": "stop", "complete": True, **row}
    return default_pool().judge(as_completion(trace), problem)


def _second(judgement: Judgement, problem: Problem) -> bool | None:
    """What the second grader says; None where it has no opinion."""
    if judgement.extracted is None or judgement.score is None or not kind_of(problem).audited:
        return None
    return any(second_grader(judgement.extracted, gold_answer(gold)) for gold in problem.golds)
