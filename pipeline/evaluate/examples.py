"""Three problems with every model's completion, and a rejected trace per reason, chosen by rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.evaluate.numbers import columns

# Characters shown of a completion and of a rejected trace.
COMPLETION_CHARS = 20_000
REJECTED_CHARS = 600


def example_problems(inputs: Mapping[str, Path], models: Sequence[str]) -> list[dict[str, Any]]:
    """[{problem_id, why, problem, gold, by: {model: completion row}}] of the first benchmark.

    `models` are the students in the order of training; see `choose`.
    """
    path = inputs["evaluate"] / "completions.parquet"
    table = columns(path, "problem_id", "sample", "benchmark", "model", "score")
    table = table.filter((pl.col("benchmark") == table["benchmark"][0]) & (pl.col("sample") == 0))
    chosen = choose(table.rows(named=True), models)
    texts = pl.scan_parquet(path).filter(
        pl.col("problem_id").is_in(list(chosen)), pl.col("sample") == 0,
        pl.col("benchmark") == pl.lit(table["benchmark"][0])).collect().rows(named=True)
    problems = _problems(inputs["prepare"])
    return [{"problem_id": name, "why": why, **problems.get(name, {"problem": None, "gold": None}),
             "by": {row["model"]: _shortened(row) for row in texts if row["problem_id"] == name}}
            for name, why in chosen.items()]


def choose(rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> dict[str, str]:
    """{problem_id: why it is shown} of up to three problems.

    The first that the last of `models` got right and the one before got wrong, the first it got
    right and the first it got wrong; if one is missing, the next in order.
    """
    right: dict[str, dict[str, bool]] = {}
    for row in rows:
        right.setdefault(row["problem_id"], {})[row["model"]] = row["score"] == 1.0
    chosen: dict[str, str] = {}

    def take(why: str, wanted: Mapping[str, bool]) -> None:
        for name, by in right.items():
            if name not in chosen and wanted.items() <= by.items():
                chosen[name] = why
                return

    if len(models) > 1:
        take("newly right", {models[-1]: True, models[-2]: False})
    if models:
        take("right", {models[-1]: True})
        take("wrong", {models[-1]: False})
    while len(chosen) < min(3, len(right)):
        take("next in order", {})
    return chosen


def _problems(prepared: Path) -> dict[str, dict[str, str]]:
    table = columns(prepared / "heldout.parquet", "problem_id", "problem", "answer")
    return {name: {"problem": text, "gold": gold} for name, text, gold in table.iter_rows()}


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "thinking": shorten(row["thinking"] or ""),
            "answer": shorten(row["answer"] or "")}


def rejected(filtered: Path) -> dict[str, dict[str, Any]]:
    """{reason: the first trace rejected for it, with its text shortened}."""
    path = filtered / "judged.parquet"
    table = columns(path, "kept", "reason").with_row_index()
    first = table.filter(~pl.col("kept")).unique("reason", keep="first", maintain_order=True)
    # A row at a time, so that a table of any size costs little.
    chosen = {reason: pl.scan_parquet(path).slice(index, 1).collect().row(0, named=True)
              for index, _, reason in first.iter_rows()}
    return {reason: {**row, "text": shorten("\n\n".join(filter(None, (
        row["thinking"], row["answer"]))), REJECTED_CHARS)} for reason, row in chosen.items()}


def shorten(text: str, limit: int = COMPLETION_CHARS) -> str:
    """Head and tail of a text longer than `limit` characters, with the count left out between."""
    half = limit // 2
    if len(text) <= limit:
        return text
    return f"{text[:half]}\n\n[… {len(text) - limit:,} characters left out …]\n\n{text[-half:]}"
