"""IFEval (arXiv 2311.07911): instructions that a program can check, by the authors' own checks.

Prompt-level strict: an answer is right if it follows every instruction. The checks are those of
the package if-verifiable (the extra `ifeval`), run in a worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from pipeline.errors import UserError
from pipeline.judge.verdict import Judgement, Problem, WorkerTask, judgement


def grade(text: str, _: Sequence[str], problem: Problem) -> Judgement | WorkerTask:
    """Check every instruction. Raises UserError without the package or without instructions."""
    names, told = _instructions(problem)
    return WorkerTask("ifeval", (names, told, problem.problem, text), "", "ifeval",
                      lambda followed: judgement(
                          "correct" if all(followed) else "wrong",
                          ", ".join(n for n, ok in zip(names, followed, strict=True) if not ok)
                          or None, "ifeval"))


def _instructions(problem: Problem) -> tuple[list[str], list[dict]]:
    if find_spec("if_verifiable") is None:
        raise UserError("problems of kind ifeval need the package if-verifiable; run pip install "
                        "'.[ifeval]' in the checkout")
    names, told = (problem.meta.get(key) for key in ("instruction_id_list", "kwargs"))
    if not isinstance(names, list) or not isinstance(told, list) or len(names) != len(told):
        raise UserError(f"problem {problem.problem_id!r} of kind ifeval needs instruction_id_list "
                        "and kwargs of the same length in its meta")
    return names, told


def check_gold(problem: Problem) -> Judgement:
    """Accept a problem with instructions: it has no answer. Raises UserError without them."""
    _instructions(problem)
    return judgement("correct", None, "unchecked")
