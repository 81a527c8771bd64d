"""What the trace store knows of its rows without their texts: a few dozen bytes a row.

A key is a number of 16 bytes, and what is asked of millions of rows is asked of a part of the keys
at a time, since a join takes several times the memory of its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from pipeline.completion import finish_reason_of
from pipeline.teacher.request_table import SAMPLE, key_numbers

INDEX = {"key": pl.String, "sample": pl.Int64, "finish_reason": pl.String, "failure": pl.String,
         "max_tokens": pl.Int64, "completion_tokens": pl.Int64, "cost_usd": pl.Float64}
TYPES: dict[str, Any] = {"sample": SAMPLE, "finish_reason": pl.Categorical(),
                         "failure": pl.Categorical(), "completion_tokens": pl.Int32}
"""Types of fewer bytes than the store's own."""
PART = 1 << 15
"""Rows that are joined at a time."""


def index_of(files: Iterable[tuple[str | None, pl.DataFrame]], names: list[str], columns: list[str],
             where: pl.Expr | None = None, **more: pl.Expr) -> pl.DataFrame:
    """Some columns of the rows that `where` holds for, and expressions of INDEX by name.

    `files` are (name, INDEX columns), the names those of `names`, in their order, or None. Columns
    may also be a row's file (`segment`) and place in it (`position`).
    """
    taken = [_short(name).alias(name) for name in columns]
    frames = [frame.with_columns(known_ends(frame["finish_reason"]),
                                 segment=pl.lit(name, pl.Enum(names))).with_row_index("position")
              .filter(True if where is None else where).select(*taken, **more)
              for name, frame in files]
    return pl.concat(frames, rechunk=False)


def _short(name: str) -> pl.Expr:
    column = pl.col(name)
    return key_numbers(column) if name == "key" else \
        column.cast(TYPES[name]) if name in TYPES else column


def by_parts(wanted: pl.DataFrame, index: pl.DataFrame
             ) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Divide both by their keys, so that what has the same key is together."""
    if (count := max(len(wanted), len(index)) // PART + 1) == 1:
        yield wanted, index
        return
    for part in range(count):
        mine = pl.col("key").hash() % count == part
        yield wanted.filter(mine), index.filter(mine)


def known_ends(said: pl.Series) -> pl.Series:
    """A finish_reason column in our names: an older row holds what its endpoint said."""
    return said.replace({word: finish_reason_of(word) for word in said.drop_nulls().unique()})
