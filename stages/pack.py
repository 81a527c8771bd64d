"""pack: kept traces as token rows with a loss mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import Config
from pipeline.prompts import chats, prompt_path
from pipeline.stage import Counts, Stage


class PackConfig(Config):
    """How traces become token rows."""

    max_tokens: int = Field(default=32768, ge=16)
    """Longest row; a longer trace is left out and counted, never cut."""


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write rows.parquet: input_ids and completion_mask of every kept trace that fits."""
    import polars as pl

    from pipeline import records
    from pipeline.chat import load_tokenizer
    from pipeline.pack import token_rows

    judged = records.read(records.Judged, inputs["filter"] / "judged.parquet")
    problems = records.read(records.Problem, inputs["prepare"] / "problems.parquet")
    asked = chats(experiment.generate.prompt, problems.iter_rows(named=True))
    tokenizer = load_tokenizer(inputs["student"] / "tokenizer")
    rows, counts = token_rows(judged.filter(pl.col("kept")), asked, tokenizer,
                              experiment.pack.max_tokens)
    records.write(records.TokenRow, rows, out / "rows.parquet")
    return counts


STAGE = Stage(
    name="pack", run=run, needs=lambda e: ("prepare", "filter", "student"),
    files=lambda e: (prompt_path(e.generate.prompt),),
    summary=lambda c: f"{c['rows']:,} rows, {c['tokens']:,} tokens "
                      f"({c['loss_tokens'] / c['tokens']:.0%} trained), {c['too_long']:,} too long")
