"""Decides which judged traces are kept and records a reason for each rejection.

The decision needs no text: `summarise` reduces a batch of traces to a few numbers a row, `decide`
looks at all rows together, so a table of any size needs little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pipeline.config.filter import RULES, FilterConfig, Selection
from pipeline.curate.features import FEATURES, add_features
from pipeline.curate.reviews import EDITED_FROM, REVIEW_COLUMNS
from pipeline.curate.shares import over_share
from pipeline.errors import UserError
from pipeline.expression import check_expression, compile_expression, names_in

if TYPE_CHECKING:
    from pipeline.curate.near_duplicates import Sign

BANDS = ("never", "hard", "medium", "easy", "always")
COLUMNS: dict[str, Any] = {
    "problem_id": pl.String, "sample": pl.Int64, "finish_reason": pl.String,
    "complete": pl.Boolean, "prompt_tokens": pl.Int64, "completion_tokens": pl.Int64,
    "tokens": pl.Int64, "cost_usd": pl.Float64, "seconds": pl.Float64, "model": pl.String,
    "score": pl.Float64, "verdict": pl.String, "extracted": pl.String, "grader": pl.String,
    "judge_version": pl.String,
    "pass_rate": pl.Float64, "difficulty": pl.String, "source": pl.String,
    **{name: feature.dtype for name, feature in FEATURES.items()}, **REVIEW_COLUMNS,
}
"""Every column that an expression may name, with its type."""
TEXTS = ("thinking", "answer")
REMEDIES = {
    "unclosed_thinking": "raise generate.sampling.max_tokens if they were truncated, set "
                         "generate.teacher.opened=false if they do not begin inside the thinking",
    "cut_off": "raise generate.sampling.max_tokens",
    "no_answer": "raise generate.sampling.max_tokens, or check which column holds the answers",
    "unknown end": "name finish_reason in filter.keep if such traces are whole"}
"""What to do if most traces leave for a reason that a looser filter.keep would not change."""
SIGNATURE = pl.Array(pl.UInt32, 128)


def check_filter(config: FilterConfig) -> None:
    """Raises UserError if filter.keep, a rule or the language cannot work; touches no data."""
    if taken := [name for name in config.judges if name in COLUMNS]:
        raise UserError(f"judges.{taken[0]} has the name of a column of the filter; rename it")
    for text in _expressions(config):
        check_expression(text, {**COLUMNS, **dict.fromkeys(config.judges, pl.Float64)})
    if config.rewrite is not None:
        later = {"pass_rate", "difficulty", "source", *REVIEW_COLUMNS}
        check_expression(config.rewrite.when, {name: kind for name, kind in COLUMNS.items()
                                               if name not in later})
    FEATURES["language_share"].expression(config.language, *config.languages)


def _expressions(config: FilterConfig) -> list[str]:
    """Every expression of `config`, those of its sources too."""
    keeps = [config.keep, *(rule.keep for rule in config.sources.values() if rule.keep)]
    return [*keeps, *(RULES[name] for name in _rules(config))]


def _rules(config: FilterConfig) -> list[str]:
    """The names of all rules in use, filter.rules first."""
    own = (name for rule in config.sources.values() for name in rule.rules or [])
    return list(dict.fromkeys([*config.rules, *own]))


def needs_reviews(config: FilterConfig) -> bool:
    """Whether what people said of traces decides here."""
    return config.reviews.obey or any(names_in(text) & set(REVIEW_COLUMNS)
                                      for text in _expressions(config))


def summarise(judged: pl.DataFrame, config: FilterConfig,
              sign: Sign | None = None) -> pl.DataFrame:
    """Replace the texts of `judged` by what the decision needs of them.

    Adds the wanted features, `same` (a hash of the texts) and, for near-duplicates or diversity,
    `signature`, which `sign` makes.
    """
    from pipeline.curate.near_duplicates import signatures_of_all

    wanted = sorted({name for text in _expressions(config) for name in names_in(text)})
    # A few rows at a time, since each step copies the texts.
    table = pl.concat([_summary(part, config, wanted) for part in judged.iter_slices(256)]
                      or [_summary(judged, config, wanted)])
    if not config.signs():
        return table
    texts = (part.select(pl.concat_str(TEXTS, separator="\n", ignore_nulls=True)).to_series()
             .to_list() for part in judged.iter_slices(256))
    signature = (sign or signatures_of_all)(texts)
    return table.with_columns(signature=pl.Series(signature, dtype=SIGNATURE))


def _summary(judged: pl.DataFrame, config: FilterConfig, wanted: list[str]) -> pl.DataFrame:
    table = add_features(judged, wanted, config.language, *config.languages).with_columns(
        same=pl.struct(*TEXTS).hash(seed=1),
        answered=pl.col("answer").fill_null("").str.strip_chars() != "")
    return table.drop(*TEXTS, "original_thinking", "original_answer", strict=False)


def decide(table: pl.DataFrame, config: FilterConfig,
           sources: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Add pass_rate, difficulty, source, kept and reason to rows of `summarise`.

    The reason is "" for a kept trace, else the first that applies: "reviewed bad" (if
    filter.reviews.obey), its verdict or "expression", "unknown end", the name of a rule,
    "duplicate", "near duplicate", "not selected", "over per_problem", "over per_source",
    "over share".
    """
    # What people wrote says nothing of how hard a problem is to the teacher.
    asked = pl.when(pl.col("sample") < EDITED_FROM).then("score")
    table = table.with_columns(pass_rate=asked.mean().over("problem_id"),
                               tokens=pl.col("completion_tokens"),
                               source=pl.col("problem_id").replace_strict(
                                   dict(sources or {}), default="", return_dtype=pl.String))
    table = table.with_columns(difficulty=difficulty())
    keep = _keep(table, config).fill_null(False)
    # Of kind open nothing is right or wrong.
    wrong = (pl.col("verdict") != "correct") & (pl.col("grader") != "open")
    table = table.with_columns(reason=pl.when(keep).then(pl.lit("")).when(wrong)
                               .then(pl.col("verdict")).otherwise(pl.lit("expression")))
    # Cut by a filter, a tool or in a way not known: whether the text is whole is unknown. A
    # truncated one has a verdict of its own.
    unknown = ~pl.col("finish_reason").is_in(["stop", "length"])
    table = _reject(table, unknown & _of_sources(config, _ignores_ends), "unknown end")
    for name in _rules(config):
        ruled = _of_sources(config, partial(_names_rule, name))
        table = _reject(table, compile_expression(RULES[name], table.columns) & ruled, name)
    good = pl.lit(False)
    if config.reviews.obey:
        good = (pl.col("review") == "good") & pl.col("answered")
        table = table.with_columns(reason=pl.when(pl.col("review") == "bad").then(
            pl.lit("reviewed bad")).when(good).then(pl.lit("")).otherwise("reason"))
    if config.distinct:
        first = pl.struct("problem_id", "same", "reason").is_first_distinct()
        table = _reject(table, ~first, "duplicate")
    if config.near_duplicates is not None:
        table = _reject(table, _is_near_duplicate(table, config.near_duplicates), "near duplicate")
    table = _select(table, config.select)
    if config.per_problem is not None:
        table = _reject(table, _rank("tokens") > config.per_problem, "over per_problem")
    if config.per_source is not None:
        table = _reject(table, _rank_in_source() > config.per_source, "over per_source")
    spared = good & (pl.col("reason") != "duplicate")
    table = table.with_columns(reason=pl.when(spared).then(pl.lit("")).otherwise("reason"))
    if any(rule.count or rule.share for rule in config.sources.values()):
        table = _reject(table, over_share(table, _rank_in_source(), config), "over share")
    return table.with_columns(kept=pl.col("reason") == "")


def _keep(table: pl.DataFrame, config: FilterConfig) -> pl.Expr:
    """filter.keep, or in a source with its own expression that one."""
    keep = compile_expression(config.keep, table.columns)
    for name, rule in config.sources.items():
        if rule.keep is not None:
            own = compile_expression(rule.keep, table.columns)
            keep = pl.when(pl.col("source") == name).then(own).otherwise(keep)
    return keep


def depends_on_judges(judged: pl.DataFrame, config: FilterConfig,
                      sources: Mapping[str, str]) -> pl.Series:
    """Whether what is not known yet decides if a row is kept: only then is a judge worth asking."""
    wanted = {name for text in _expressions(config) for name in names_in(text)}
    table = add_features(judged, sorted(wanted), config.language, *config.languages).with_columns(
        tokens=pl.col("completion_tokens"), source=pl.col("problem_id").replace_strict(
            dict(sources), default="", return_dtype=pl.String))
    if config.llm_judge is not None or config.majority is not None:
        open_yet = pl.col("verdict") == "cannot_judge"      # decided after this
        table = table.with_columns(pl.when(~open_yet).then(name).alias(name)
                                   for name in ("verdict", "score", "grader"))
    later = {**COLUMNS, **dict.fromkeys(config.judges, pl.Float64)}
    unknown = [pl.lit(None, later[name]).alias(name) for name in wanted & set(later)
               if name not in table.columns or name == "pass_rate"]
    table = table.with_columns(unknown)
    return table.select(_keep(table, config).is_null()).to_series()


def _ignores_ends(keep: str, rules: list[str]) -> bool:
    return not names_in(keep) & {"finish_reason", "complete"}


def _names_rule(name: str, keep: str, rules: list[str]) -> bool:
    return name in rules


def _of_sources(config: FilterConfig, holds: Callable[[str, list[str]], bool]) -> pl.Expr:
    """Whether `holds(keep, rules)` for what is asked of a row's source."""
    if not config.sources:
        return pl.lit(holds(config.keep, list(config.rules)))
    here = {name: holds(rule.keep or config.keep, config.rules if rule.rules is None
                        else list(rule.rules)) for name, rule in config.sources.items()}
    return pl.col("source").replace_strict(here, default=holds(config.keep, list(config.rules)),
                                           return_dtype=pl.Boolean)


def select(judged: pl.DataFrame, config: FilterConfig,
           sources: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Add pass_rate, kept and reason to `judged`. Raises UserError if no trace is kept."""
    decided = decide(summarise(judged, config), config, sources)
    check_any_kept(decided, config)
    return judged.with_columns(decided["pass_rate"], decided["kept"], decided["reason"])


def check_any_kept(decided: pl.DataFrame, config: FilterConfig) -> None:
    """Raises UserError if no trace is kept, with the most frequent reason."""
    if not decided["kept"].any():
        counts = decided["reason"].value_counts(sort=True).rows()
        most = f"; {counts[0][1]} of them for {counts[0][0]!r}" if counts else ""
        remedy = REMEDIES.get(counts[0][0] if counts else "", "loosen it")
        raise UserError(f"filter.keep={config.keep!r} keeps none of {len(decided)} traces{most}; "
                        f"{remedy}, or look at `limbeck preview` and `limbeck show generate`")


def difficulty() -> pl.Expr:
    """A problem's band by pass rate: 0, up to 1/4, up to 3/4, below 1, 1; null if unknown."""
    rate = pl.col("pass_rate")
    return (pl.when(rate == 0).then(pl.lit(BANDS[0])).when(rate <= 0.25).then(pl.lit(BANDS[1]))
            .when(rate <= 0.75).then(pl.lit(BANDS[2])).when(rate < 1).then(pl.lit(BANDS[3]))
            .when(rate == 1).then(pl.lit(BANDS[4])))


def funnel(decided: pl.DataFrame) -> pl.DataFrame:
    """Traces and problems by outcome: columns what, traces, problems, share; "came" to "kept"."""
    numbers = {"traces": pl.len().cast(pl.Int64),
               "problems": pl.col("problem_id").n_unique().cast(pl.Int64)}
    rejected = decided.filter(~pl.col("kept")).group_by(what="reason").agg(**numbers)
    came, kept = (part.select(what=pl.lit(name), **numbers)
                  for name, part in (("came", decided), ("kept", decided.filter("kept"))))
    parts = came, rejected.sort("traces", "what", descending=[True, False]), kept
    return pl.concat(parts).with_columns(share=pl.col("traces") / max(len(decided), 1))


def _reject(table: pl.DataFrame, condition: pl.Expr, reason: str) -> pl.DataFrame:
    rejected = (pl.col("reason") == "") & condition.fill_null(False)
    return table.with_columns(reason=pl.when(rejected).then(pl.lit(reason)).otherwise("reason"))


def _rank(*by: str) -> pl.Expr:
    """Rank, from 1, of a problem's traces that are still kept, by `by`; null for rejected ones."""
    order = pl.struct(*by, "sample")
    return pl.when(pl.col("reason") == "").then(order).rank("ordinal").over("problem_id")


def _rank_in_source() -> pl.Expr:
    """Rank in a source: every problem's first trace before any second; problems ordered by hash."""
    order = pl.struct(_rank("tokens"), pl.col("problem_id").hash(seed=0))
    return pl.when(pl.col("reason") == "").then(order).rank("ordinal").over("source")


def _select(table: pl.DataFrame, selection: Selection) -> pl.DataFrame:
    if selection.type == "best":
        table = table.with_columns(worse=-pl.col("score").fill_null(0.0))
        return _reject(table, _rank("worse", "tokens") > selection.n, "not selected").drop("worse")
    if selection.type == "shortest":
        return _reject(table, _rank("tokens") > selection.n, "not selected")
    if selection.type == "diverse":
        return _reject(table, ~pl.lit(_most_diverse(table, selection.n)), "not selected")
    return table


def _is_near_duplicate(table: pl.DataFrame, threshold: float) -> pl.Expr:
    from pipeline.curate.near_duplicates import near_duplicates

    kept = np.flatnonzero((table["reason"] == "").to_numpy())
    repeated = np.zeros(len(table), bool)
    if len(kept):
        signature = table["signature"].gather(kept).to_numpy()
        repeated[kept[near_duplicates(signature, threshold) >= 0]] = True
    return pl.lit(pl.Series(repeated))


def _most_diverse(table: pl.DataFrame, n: int) -> pl.Series:
    """Take each problem's shortest trace, then repeatedly the one least like those taken."""
    kept = table.with_row_index().filter(pl.col("reason") == "").sort("tokens", "sample")
    chosen = np.zeros(len(table), bool)
    for group in kept.partition_by("problem_id", maintain_order=True):
        signature, taken = group["signature"].to_numpy(), [0]
        similarity = (signature == signature[0]).mean(axis=1)
        while len(taken) < min(n, len(group)):
            similarity[taken] = 2.0
            taken.append(int(similarity.argmin()))
            similarity = np.maximum(similarity, (signature == signature[taken[-1]]).mean(axis=1))
        chosen[group["index"].gather(taken).to_numpy()] = True
    return pl.Series(chosen)
