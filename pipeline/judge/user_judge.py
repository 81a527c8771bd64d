"""A user's own verifier: `path/to/file.py:function` as a kind, run in the judge's workers.

The function takes the response after its thinking and the problem as a dict (problem_id, problem,
answer, kind, meta) and returns True or False, a score from 0 to 1, or None if it cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.judge.verdict import Judgement, Problem, WorkerTask, judgement
from pipeline.stage import file_digest
from pipeline.user_code import UserCodeErrors, user_function

SHOWN = 2000
"""Characters of a response that states no answer, which are kept beside its verdict."""


def is_user_kind(kind: str) -> bool:
    """Whether `kind` names a function of the user's own file."""
    return ":" in kind


def load_verifier(key: str, setting: str) -> Any:
    """The function that the kind `key` names. Raises UserError if it is none or cannot be called"""
    return user_function(key, setting, "response", "problem")


def grade(response: str, answers: Sequence[str], problem: Problem) -> WorkerTask:
    """A task for a worker: the user's function may hang or end the process that runs it."""
    key, stated = problem.kind, ", ".join(answers) or response.strip()[:SHOWN]
    row = {"problem_id": problem.problem_id, "problem": problem.problem,
           "answer": problem.answer, "kind": key, "meta": problem.meta}
    file, _, name = key.rpartition(":")
    # A worker may have been started in another folder.
    place = f"{Path(file).absolute()}:{name}"
    digest = file_digest(Path(file))

    def read(reply: dict[str, Any]) -> Judgement:
        if "failed" in reply:
            return Judgement(None, "error", stated, reply["failed"])
        if reply["score"] is None:
            return judgement("cannot_judge", stated, key)
        return judgement("correct" if reply["score"] >= 1 else "wrong", stated, key,
                         reply["score"])

    return WorkerTask("user", (place, digest, response, row), stated, key, read)


def check_gold(problem: Problem) -> Judgement | WorkerTask:
    """Try the function on the gold, as it stands: correct unless it fails."""
    # What a response must look like beside its answer is the function's own affair.
    if not problem.answer:
        return judgement("correct", None, "unchecked")
    task = grade(problem.answer, [problem.answer], problem)

    def read(reply: dict[str, Any]) -> Judgement:
        found = task.read(reply)
        return found if found.verdict == "error" else judgement("correct", None, problem.kind)

    return WorkerTask(task.task, task.arguments, task.extracted, task.grader, read)


def user_score(key: str, digest: str, response: str, problem: dict[str, Any]) -> dict[str, Any]:
    """The score that the user's function gives `response`, or why it has none; runs in a worker."""
    try:
        function = load_verifier(key, "kind")
        with UserCodeErrors(f"{key} failed", key.rpartition(":")[0]):
            return {"score": _score(function(response, problem))}
    except UserError as error:
        return {"failed": str(error)}


def _score(value: Any) -> float | None:
    """`value`, of Python, NumPy or torch; TypeError unless it is a truth, a score or None."""
    value = value.item() if hasattr(value, "item") else value
    if value is None:
        return None
    if not isinstance(value, int | float) or math.isnan(value) or not 0 <= value <= 1:
        raise TypeError(f"it returned {value!r:.60}, which is neither True nor False, nor a score "
                        "from 0 to 1, nor None")
    return float(value)
