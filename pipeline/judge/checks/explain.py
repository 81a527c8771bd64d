"""Why a verdict is what it is: the rule that decided, and how each side was read."""

from __future__ import annotations

from typing import Any

from pipeline.judge.kinds import kind_of
from pipeline.judge.math.compare import Comparison, decided_before_reading, readings
from pipeline.judge.math.grade_math import gold_answer
from pipeline.judge.math.node import Node
from pipeline.judge.verdict import Judgement, Problem

_STEPS = ("modified", "relations", "values", "groups", "ratios", "texts", "conditions", "names",
          "near", "renamed", "trees")
"""Methods of a Comparison that decide, the ones called inside others last."""


def explain(judgement: Judgement, problem: Problem) -> dict[str, str]:
    """{"rule", "gold_read", "answer_read"} of a judgement: for math as compared, else its grader.
    """
    if not kind_of(problem).spellings or judgement.extracted is None or \
            judgement.grader not in ("rules", "math-verify"):
        return {"rule": judgement.grader, "gold_read": problem.answer,
                "answer_read": judgement.extracted or ""}
    told = [_compared(judgement.extracted, gold_answer(gold), problem) for gold in problem.golds]
    matching = [one for one in told if one[0] == judgement.score]
    _, rule, gold, answer = (matching or told)[0]
    return {"rule": f"{rule}; asked math-verify" if judgement.grader == "math-verify" else rule,
            "gold_read": gold, "answer_read": answer}


def _compared(answer: str, gold: str, problem: Problem) -> tuple[float | None, str, str, str]:
    """(score, rule, gold as read, answer as read) of the reading that decides, else the first."""
    if early := decided_before_reading(gold, answer, problem.policy, problem.problem):
        rule, result = early
        return None if result is None else float(result), rule, gold, answer
    found = []
    for first in readings(gold, gold=True):
        for second in readings(answer):
            tracer = _Tracer(problem.policy, problem.problem)
            result = tracer.same(first, second)
            found.append((result, tracer.rule(result), read_as(first), read_as(second)))
    result, rule, one, other = next((row for row in found if row[0]), found[0])
    return None if result is None else float(result), rule, one, other


class _Tracer(Comparison):
    """A Comparison that notes what each of its rules said."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in _STEPS:
            return found

        def noted(*arguments: Any) -> Any:
            result = found(*arguments)
            self.__dict__.setdefault("said", []).append((name, result))
            return result
        return noted

    def rule(self, result: bool | None) -> str:
        """The first rule to be done that said what came out."""
        return next((name for name, said in self.__dict__.get("said", []) if said is result and (
            not result or name not in ("names", "conditions"))), "shape")


def read_as(node: Node, depth: int = 0) -> str:
    """A node in a line: its kind and text, with label, unit and condition; parts in brackets."""
    said = node.kind
    for name, value in (("of", node.label), ("unit", node.unit), ("if", node.condition)):
        said += f" {name} {value.strip()}" if value.strip() else ""
    if node.items and depth < 3:
        return f"{said} [{'; '.join(read_as(item, depth + 1) for item in node.items[:12])}]"
    return f"{said} {node.text.strip()!r}"
