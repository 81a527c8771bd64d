"""Which judged traces go on to training: a verdict of columns, each rejection with its reason."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.errors import UserError
from pipeline.expression import compile_expression


def select(judged: pl.DataFrame, config: Any) -> pl.DataFrame:
    """`judged` with `kept` and `reason`; raises a UserError where nothing is left.

    The reason is "" for a kept trace, else the first that applies: its verdict, "expression",
    "duplicate", "over per_problem".
    """
    table = judged.with_columns(tokens=pl.col("completion_tokens"))
    rule = compile_expression(config.keep, table.columns).fill_null(False)
    wrong = pl.col("verdict") != "correct"
    table = table.with_columns(reason=pl.when(rule).then(pl.lit("")).when(wrong)
                               .then(pl.col("verdict")).otherwise(pl.lit("expression")))
    if config.distinct:
        first = pl.struct("problem_id", "thinking", "answer", "reason").is_first_distinct()
        table = _reject(table, ~first, "duplicate")
    if config.per_problem is not None:
        live = pl.when(pl.col("reason") == "").then(pl.col("tokens"))
        rank = live.rank("ordinal").over("problem_id")
        table = _reject(table, rank > config.per_problem, "over per_problem")
    table = table.with_columns(kept=pl.col("reason") == "").drop("tokens")
    if not table["kept"].any():
        raise UserError(f"filter.keep={config.keep!r} keeps none of {len(table)} traces; "
                        "loosen it, or look at `limbeck show filter`")
    return table


def _reject(table: pl.DataFrame, where: pl.Expr, reason: str) -> pl.DataFrame:
    live = (pl.col("reason") == "") & where.fill_null(False)
    return table.with_columns(reason=pl.when(live).then(pl.lit(reason)).otherwise("reason"))
