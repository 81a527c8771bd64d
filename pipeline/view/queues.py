"""Which traces to look at next: queues over one table, each in an order that stays.

A queue is a rule and a seed, so two people who name the same queue see the same traces.
"""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl

from pipeline.errors import UserError
from pipeline.judge.checks.audit import second_grader

QUEUES = {
    "random": "a random sample of what is kept",
    "disagreements": "the two graders disagree",
    "divided": "people or samples agree least",
    "longest": "the longest first",
    "problem": "a problem's samples side by side",
    "blind": "two models, names hidden"}


def queue(frame: pl.DataFrame, kind: str, n: int, seed: int, golds: dict[str, str],
          models: tuple[str, str] | None = None) -> list[list[int]]:
    """Rows to look at, in groups that are seen at once.

    Raises UserError if there is no such queue or the table lacks what it needs.
    """
    if kind not in QUEUES:
        raise UserError(f"there is no queue {kind!r}; there are {', '.join(QUEUES)}")
    if kind == "blind":
        return _pairs(frame, n, seed, models)
    if kind == "problem":
        return _side_by_side(frame, n, seed)
    if kind == "disagreements":
        frame = _disagreements(frame, golds)
    elif kind == "divided":
        frame = _divided(frame)
    elif kind == "longest":
        frame = frame.sort(_need(frame, "tokens"), descending=True, nulls_last=True)
    else:
        kept = frame.filter("kept") if "kept" in frame.columns else frame
        frame = _shuffled(kept, seed)
    return [[row] for row in frame["row"].head(n)]


def _need(frame: pl.DataFrame, name: str) -> str:
    if name not in frame.columns:
        raise UserError(f"this table has no column {name!r}, so it has no such queue; choose "
                        "another one")
    return name


def _shuffled(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    return frame.sort(pl.col("row").hash(seed=seed), "row")


def _disagreements(frame: pl.DataFrame, golds: dict[str, str]) -> pl.DataFrame:
    """Return the rows on which the judge and the second grader disagree."""
    for name in ("score", "extracted"):
        _need(frame, name)
    rows = frame.filter(pl.col("score").is_not_null() & pl.col("extracted").is_not_null())
    told: dict[tuple[str, str], bool] = {}

    def second(answer: str, gold: str) -> bool:
        key = answer[:500], gold
        if key not in told:
            told[key] = second_grader(*key)
        return told[key]

    differ = [bool(gold := golds.get(name, "")) and second(answer, gold) != (score == 1)
              for name, answer, score in rows.select("problem_id", "extracted", "score").rows()]
    return rows.filter(pl.Series(differ, dtype=pl.Boolean))


def _divided(frame: pl.DataFrame) -> pl.DataFrame:
    """Traces of which people are unsure first, then problems whose samples agree least."""
    rate = pl.col(_need(frame, "pass_rate"))
    return frame.sort((pl.col("review") == "unsure").not_(), (rate - 0.5).abs(), "problem_id",
                      "row", nulls_last=True)


def _side_by_side(frame: pl.DataFrame, n: int, seed: int) -> list[list[int]]:
    groups = frame.group_by("problem_id", maintain_order=True).agg("row").filter(
        pl.col("row").list.len() > 1)
    chosen = groups.sort(pl.col("problem_id").hash(seed=seed)).head(n)
    return [rows[:8] for rows in chosen["row"].to_list()]


def _pairs(frame: pl.DataFrame, n: int, seed: int,
           models: tuple[str, str] | None) -> list[list[int]]:
    """One sample of each of two models on the same problem, in an order that tells nothing."""
    _need(frame, "model")
    known = frame["model"].drop_nulls().unique(maintain_order=True).to_list()
    if models is None and len(known) >= 2:
        models = known[0], known[1]
    if models is None or models[0] == models[1] or not set(models) <= set(known):
        raise UserError("a blind comparison needs two models in one table; this one has "
                        f"{', '.join(map(str, known)) or 'none'}")
    first, second = (_shuffled(frame.filter(model=name), seed).unique(
        "problem_id", keep="first", maintain_order=True) for name in models)
    both = _shuffled(first.join(second.select("problem_id", other="row"), on="problem_id"), seed)
    return [list(pair) if _coin(seed, pair) else list(reversed(pair))
            for pair in both.select("row", "other").head(n).rows()]


def _coin(seed: int, pair: Any) -> bool:
    return hashlib.sha256(f"{seed} {pair}".encode()).digest()[0] % 2 == 0
