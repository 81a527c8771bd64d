"""What is judged and what comes out: Policy, Problem, Judgement."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from pipeline.completion import Verdict
from pipeline.errors import UserError

VERSION = "7"
"""Raised by hand whenever a verdict may change: it is stored beside every verdict."""

UNSCORED = ("cannot_judge", "timeout", "error")


@dataclass(frozen=True)
class Policy:
    """What counts as the same answer where reasonable graders differ. All have defaults."""

    units: Literal["optional", "required"] = "optional"
    """optional: a unit may be left out (never exchanged for another); required: it must agree."""
    percent: Literal["either", "value", "number"] = "either"
    """28% equals 28 and 0.28 (either), only 0.28 (value), or only 28 (number)."""
    tolerance: float = 0.0
    """Relative difference still equal, for numbers; 0 keeps exact comparison."""
    digits: int = 4
    """Significant digits from which a correctly rounded decimal equals an exact gold."""
    rounding: Literal["asked", "coarse", "gold"] = "asked"
    """A decimal gold is exact unless the answer does not terminate, or (asked) the problem asks
    for rounding; coarse: rounded to three digits or more, within 0.2 %, is right too; gold:
    whatever the problem says."""
    ends: Literal["strict", "free"] = "strict"
    """free: open and closed intervals are the same, as always where a problem asks on which
    interval a function rises or falls."""
    order: Literal["tuples", "all", "none"] = "tuples"
    """Where order counts: in (bracketed) tuples, in bare lists too, or nowhere."""
    gold_is_set: bool = False
    """Any one element of a gold list is a full answer."""
    reduced: bool = False
    """A fraction must be in lowest terms."""
    restated: Literal["accepted", "refused"] = "accepted"
    """refused: an answer that is a formula of the problem's text, or an unsolved equation where the
    gold is a solved one, is wrong though equal by value."""
    marker: Literal["any", "box", "tag"] = "any"
    """Where the answer must stand: anywhere stated, in a box, or in <answer> tags."""


RL_POLICY = Policy(marker="box", restated="refused")
"""What the judge asks of an answer that is rewarded: a box, and work."""


@dataclass(frozen=True)
class Problem:
    """One problem to judge against; `kind` is one of kinds.KINDS."""

    problem_id: str
    problem: str
    answer: str
    kind: str = "math"
    policy: Policy = Policy()
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def golds(self) -> list[str]:
        """The gold in every spelling: any of them, whole, is right."""
        return self.meta.get("spellings") or [self.answer]

    @classmethod
    def from_row(cls, row: dict[str, Any], base: Policy = Policy()) -> Problem:
        """Read a row of tables.Problem; `meta` may hold "policy" and "spellings" of the answer."""
        meta = row.get("meta") or {}
        if isinstance(meta, str):
            try:
                meta = json.loads(meta)
            except ValueError:
                raise UserError(f"meta of problem {row.get('problem_id')!r} is not valid JSON") \
                    from None
        return cls(str(row.get("problem_id", "")), row.get("problem") or "", row["answer"],
                   row.get("kind") or "math", make_policy(meta.get("policy") or {}, base), meta)


@dataclass(frozen=True)
class Judgement:
    """score 1.0 or 0.0 (a part of 1 for gym), None if nothing could be decided."""

    score: float | None
    verdict: Verdict
    extracted: str | None
    grader: str
    version: str = VERSION


@dataclass(frozen=True)
class WorkerTask:
    """An answer that the rules leave to a worker: the question, and how to read the reply."""

    task: str
    arguments: tuple[Any, ...]
    extracted: str
    grader: str
    read: Callable[[Any], Judgement]


def make_policy(overrides: dict[str, Any], base: Policy = Policy()) -> Policy:
    """Return `base` with `overrides`. Raises UserError for an unknown name."""
    known = {f.name for f in fields(Policy)}
    if unknown := set(overrides) - known:
        raise UserError(f"unknown policy {min(unknown)!r}; known: {', '.join(sorted(known))}")
    return replace(base, **overrides)


def judgement(verdict: Verdict, extracted: str | None, grader: str,
              score: float | None = None) -> Judgement:
    """Make a Judgement with the score that its verdict means, unless `score` is a part of 1."""
    if score is None and verdict not in UNSCORED:
        score = float(verdict == "correct")
    return Judgement(score, verdict, extracted, grader)


def check_broken_share(judgements: Sequence[Judgement], limit: float = 0.01) -> None:
    """Raises UserError if more than `limit` of the verdicts are error or timeout."""
    # a grader that fails silently scores every answer 0 (verl issue 5635): stop instead
    broken = [j for j in judgements if j.verdict in ("error", "timeout")]
    if len(broken) > limit * len(judgements):
        raise UserError(f"{len(broken)} of {len(judgements)} verdicts are error or timeout "
                        f"(limit {limit:.0%}): the grader that broke first says "
                        f"{broken[0].verdict}, {broken[0].grader}")
