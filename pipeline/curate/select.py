"""Which judged traces go on to training: a verdict of columns, each rejection with its reason.

The decision needs no text: `summarise` reduces a batch of judged traces to a few numbers a row,
`decide` looks at all of them together. So a table of any size is decided in little memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pipeline.curate.features import FEATURES, describe
from pipeline.errors import UserError
from pipeline.expression import check_expression, compile_expression, names_in

RULES = {
    "mixed_language": "language_share < 0.95",
    "long_paragraph": "longest_paragraph > 4000",
    "code_in_thinking": "has_code",
    "no_summary": "not has_summary",
    "repetition": "repetition > 0.1",
    "cut_off": 'finish_reason == "length" or not complete',
}
"""What DeepSeek-R1 (arXiv 2501.12948, 2.3.3) left out of its traces, and loops and cut-off ones.

A trace is rejected where the expression holds; the rule's name is the reason. The paper gives no
thresholds: these leave 19 of 20 sound R1 traces on competition problems alone.
"""
BANDS = ("never", "hard", "medium", "easy", "always")
COLUMNS: dict[str, Any] = {
    "problem_id": pl.String, "sample": pl.Int64, "finish_reason": pl.String,
    "complete": pl.Boolean, "prompt_tokens": pl.Int64, "completion_tokens": pl.Int64,
    "tokens": pl.Int64, "cost_usd": pl.Float64, "seconds": pl.Float64, "model": pl.String,
    "score": pl.Float64, "verdict": pl.String, "extracted": pl.String, "grader": pl.String,
    "judge_version": pl.String,
    "pass_rate": pl.Float64, "difficulty": pl.String, "source": pl.String,
    "thinking_chars": pl.Int64, "answer_chars": pl.Int64, "thinking_tokens": pl.Int64,
    "has_thinking": pl.Boolean, "has_code": pl.Boolean, "has_summary": pl.Boolean,
    "longest_paragraph": pl.Int64, "language_share": pl.Float64, "repetition": pl.Float64,
}
"""Every column that an expression may name, with its type."""
TEXTS = ("thinking", "answer")
SIGNATURE = pl.Array(pl.UInt32, 128)


def check(config: Any) -> None:
    """Raise a UserError where filter.keep, a rule or the language cannot work; touches no data."""
    for text in (config.keep, *(RULES[name] for name in config.rules)):
        check_expression(text, COLUMNS)
    FEATURES["language_share"](config.language)


def summarise(judged: pl.DataFrame, config: Any) -> pl.DataFrame:
    """`judged` without its texts, with what the decision needs of them.

    `same` tells identical texts apart from others; `signature` is there where near-duplicates or
    diversity are asked for. Works on few rows at a time, since each step copies the texts.
    """
    wanted = sorted({name for text in (config.keep, *(RULES[rule] for rule in config.rules))
                     for name in names_in(text)})
    return pl.concat([_summary(part, config, wanted) for part in judged.iter_slices(256)]
                     or [_summary(judged, config, wanted)])


def _summary(judged: pl.DataFrame, config: Any, wanted: list[str]) -> pl.DataFrame:
    from pipeline.curate.near_duplicates import signatures

    table = describe(judged, wanted, config.language).with_columns(
        same=pl.struct(*TEXTS).hash(seed=1))
    if config.near_duplicates is not None or config.select.type == "diverse":
        texts = judged.select(pl.concat_str(TEXTS, separator="\n", ignore_nulls=True))
        signature = signatures(texts.to_series().to_list())
        table = table.with_columns(signature=pl.Series(signature, dtype=SIGNATURE))
    return table.drop(TEXTS)


def decide(table: pl.DataFrame, config: Any,
           sources: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Rows of `summarise` with pass_rate, difficulty, source, kept and reason.

    The reason is "" for a kept trace, else the first that applies: its verdict or "expression",
    the name of a rule, "duplicate", "near duplicate", "not selected", "over per_problem",
    "over per_source".
    """
    rate = pl.col("score").mean().over("problem_id")
    table = table.with_columns(pass_rate=rate, tokens=pl.col("completion_tokens"),
                               source=pl.col("problem_id").replace_strict(
                                   dict(sources or {}), default="", return_dtype=pl.String))
    table = table.with_columns(difficulty=difficulty())
    rule = compile_expression(config.keep, table.columns).fill_null(False)
    wrong = pl.col("verdict") != "correct"
    table = table.with_columns(reason=pl.when(rule).then(pl.lit("")).when(wrong)
                               .then(pl.col("verdict")).otherwise(pl.lit("expression")))
    for name in config.rules:
        table = _reject(table, compile_expression(RULES[name], table.columns), name)
    if config.distinct:
        first = pl.struct("problem_id", "same", "reason").is_first_distinct()
        table = _reject(table, ~first, "duplicate")
    if config.near_duplicates is not None:
        table = _reject(table, _nearly_repeats(table, config.near_duplicates), "near duplicate")
    table = _select(table, config.select)
    if config.per_problem is not None:
        table = _reject(table, _rank("tokens") > config.per_problem, "over per_problem")
    if config.per_source is not None:
        table = _reject(table, _rank_in_source() > config.per_source, "over per_source")
    return table.with_columns(kept=pl.col("reason") == "")


def select(judged: pl.DataFrame, config: Any,
           sources: Mapping[str, str] | None = None) -> pl.DataFrame:
    """`judged` with pass_rate, kept and reason; a UserError where nothing is left."""
    decided = decide(summarise(judged, config), config, sources)
    refuse_empty(decided, config)
    return judged.with_columns(decided["pass_rate"], decided["kept"], decided["reason"])


def refuse_empty(decided: pl.DataFrame, config: Any) -> None:
    """UserError where no trace is kept, with what rejected the most."""
    if not decided["kept"].any():
        counts = decided["reason"].value_counts(sort=True).rows()
        most = f"; {counts[0][1]} of them for {counts[0][0]!r}" if counts else ""
        raise UserError(f"filter.keep={config.keep!r} keeps none of {len(decided)} traces{most}; "
                        "loosen it, or look at `limbeck preview` and `limbeck show generate`")


def difficulty() -> pl.Expr:
    """A problem's band by pass rate: 0, up to 1/4, up to 3/4, below 1, 1; null where unknown."""
    rate = pl.col("pass_rate")
    return (pl.when(rate == 0).then(pl.lit(BANDS[0])).when(rate <= 0.25).then(pl.lit(BANDS[1]))
            .when(rate <= 0.75).then(pl.lit(BANDS[2])).when(rate < 1).then(pl.lit(BANDS[3]))
            .when(rate == 1).then(pl.lit(BANDS[4])))


def funnel(decided: pl.DataFrame) -> pl.DataFrame:
    """What became of the traces: columns what, traces, problems, share; "came" first, "kept" last.
    """
    numbers = {"traces": pl.len().cast(pl.Int64),
               "problems": pl.col("problem_id").n_unique().cast(pl.Int64)}
    left = decided.filter(~pl.col("kept")).group_by(what="reason").agg(**numbers)
    came, kept = (part.select(what=pl.lit(name), **numbers)
                  for name, part in (("came", decided), ("kept", decided.filter("kept"))))
    parts = came, left.sort("traces", "what", descending=[True, False]), kept
    return pl.concat(parts).with_columns(share=pl.col("traces") / max(len(decided), 1))


def _reject(table: pl.DataFrame, where: pl.Expr, reason: str) -> pl.DataFrame:
    live = (pl.col("reason") == "") & where.fill_null(False)
    return table.with_columns(reason=pl.when(live).then(pl.lit(reason)).otherwise("reason"))


def _rank(*by: str) -> pl.Expr:
    """1 for the live trace of a problem that comes first in `by`, and so on; null for others."""
    order = pl.struct(*by, "sample")
    return pl.when(pl.col("reason") == "").then(order).rank("ordinal").over("problem_id")


def _rank_in_source() -> pl.Expr:
    """Every problem's first trace before any second one; problems in an order fixed by hash."""
    order = pl.struct(_rank("tokens"), pl.col("problem_id").hash(seed=0))
    return pl.when(pl.col("reason") == "").then(order).rank("ordinal").over("source")


def _select(table: pl.DataFrame, how: Any) -> pl.DataFrame:
    if how.type == "best":
        table = table.with_columns(worse=-pl.col("score").fill_null(0.0))
        return _reject(table, _rank("worse", "tokens") > how.n, "not selected").drop("worse")
    if how.type == "shortest":
        return _reject(table, _rank("tokens") > how.n, "not selected")
    if how.type == "diverse":
        return _reject(table, ~pl.lit(_diverse(table, how.n)), "not selected")
    return table


def _nearly_repeats(table: pl.DataFrame, threshold: float) -> pl.Expr:
    from pipeline.curate.near_duplicates import near_duplicates

    live = np.flatnonzero((table["reason"] == "").to_numpy())
    where = np.zeros(len(table), bool)
    if len(live):
        signature = table["signature"].gather(live).to_numpy()
        where[live[near_duplicates(signature, threshold) >= 0]] = True
    return pl.lit(pl.Series(where))


def _diverse(table: pl.DataFrame, n: int) -> pl.Series:
    """Of each problem the shortest live trace, then always the one least like those taken."""
    live = table.with_row_index().filter(pl.col("reason") == "").sort("tokens", "sample")
    chosen = np.zeros(len(table), bool)
    for group in live.partition_by("problem_id", maintain_order=True):
        signature, taken = group["signature"].to_numpy(), [0]
        likeness = (signature == signature[0]).mean(axis=1)
        while len(taken) < min(n, len(group)):
            likeness[taken] = 2.0
            taken.append(int(likeness.argmin()))
            likeness = np.maximum(likeness, (signature == signature[taken[-1]]).mean(axis=1))
        chosen[group["index"].gather(taken).to_numpy()] = True
    return pl.Series(chosen)
