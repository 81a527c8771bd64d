"""Cuts stored traces to a limit that is lower than the one they were asked under."""

from __future__ import annotations

import polars as pl

from pipeline.config.teacher import Sampling


def longer(limit: int) -> pl.Expr:
    """Whether a row of the trace store was asked under a higher limit and is longer than this."""
    # A complete one asked under this limit is not: tokens of several choices are shared out.
    asked = pl.col("max_tokens")
    return (pl.col("completion_tokens") > limit) & (asked.is_null() | (asked > limit))


def shortened(rows: pl.DataFrame, sampling: Sampling) -> pl.DataFrame:
    """Return `rows` of the trace store as max_tokens would have truncated them.

    Where a token ends in the text is unknown, so that as large a part of the text is kept.
    """
    limit, top = sampling.max_tokens, sampling.top_logprobs
    if limit is None:
        return rows
    said = pl.col("thinking").str.len_chars().cast(pl.Int64).fill_null(0)
    whole = said + pl.col("answer").str.len_chars().cast(pl.Int64).fill_null(0)
    kept = whole * limit // pl.max_horizontal("completion_tokens", 1)
    cut = {"thinking": pl.col("thinking").str.head(kept),
           "answer": pl.col("answer").str.head(pl.max_horizontal(kept - said, 0)),
           "finish_reason": pl.lit("length"), "complete": pl.lit(False),
           "completion_tokens": pl.lit(limit, pl.Int64)}
    for name in ("ids", "texts", "logprobs") if top is not None else ():
        cut[f"token_{name}"] = pl.col(f"token_{name}").list.head(limit)
        cut[f"top_{name}"] = pl.col(f"top_{name}").list.head(limit * (top or 0))
    return rows.with_columns(**{name: pl.when(longer(limit)).then(column).otherwise(pl.col(name))
                                for name, column in cut.items()})
