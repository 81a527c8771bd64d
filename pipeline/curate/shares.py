"""How many traces of each source are kept: counts, or shares of what is kept, exact to a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from pipeline.config.filter import FilterConfig
from pipeline.errors import UserError


def traces_a_problem(experiment: Any) -> int:
    """The most traces of one problem that the filter could keep."""
    config = experiment.filter
    limits = (experiment.generate.samples, config.per_problem, getattr(config.select, "n", None))
    return min(limit for limit in limits if limit is not None)


def wanted(kept: Mapping[str, int], config: FilterConfig) -> dict[str, int]:
    """{source: traces to keep} of the sources with a count or a share, given those that pass.

    Raises UserError, with the number that each source lacks, if there are too few.
    """
    shares = {name: rule.share for name, rule in config.sources.items() if rule.share}
    asked = {name: rule.count for name, rule in config.sources.items() if rule.count}
    if shares:
        total = config.total or _largest_total(shares, kept)
        asked = apportioned(shares, total)
    check_reachable(kept, config, "pass the filter", asked)
    return asked


def check_reachable(most: Mapping[str, int], config: FilterConfig, what: str,
                    asked: Mapping[str, int] | None = None) -> None:
    """Raise UserError if a source has `most` traces that `what` and more are asked of it."""
    if asked is None:
        shares = {name: rule.share for name, rule in config.sources.items() if rule.share}
        asked = apportioned(shares, config.total) if shares and config.total else \
            {name: rule.count for name, rule in config.sources.items() if rule.count}
    short = [f"{count - most[name]:,} of {count:,} traces of {name} are missing (only "
             f"{most[name]:,} {what})" for name, count in asked.items()
             if name in most and most[name] < count]
    if short:
        raise UserError(f"the shares of prepare.sources cannot be met: {', '.join(short)}; take "
                        "more problems or generate.samples, loosen keep, or ask for fewer")


def apportioned(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """`total` divided by `shares`, each within one of its quota (largest remainders first)."""
    whole = sum(shares.values())
    # Rounded, as 3 of 0.1 + 0.2 + ... must be no remainder.
    quotas = {name: round(total * share / whole, 9) for name, share in shares.items()}
    out = {name: int(quota) for name, quota in quotas.items()}
    for name in sorted(shares, key=lambda name: out[name] - quotas[name])[:total - sum(
            out.values())]:
        out[name] += 1
    return out


def _largest_total(shares: Mapping[str, float], kept: Mapping[str, int]) -> int:
    """The most traces that can be kept in these proportions; at least one of each source."""
    whole = sum(shares.values())
    total = min(int((kept.get(name, 0) + 1) * whole / share) for name, share in shares.items())
    while total > 0 and any(count > kept.get(name, 0)
                            for name, count in apportioned(shares, total).items()):
        total -= 1
    while not all(apportioned(shares, total).values()):
        total += 1          # what is missing of it is said
    return total


def over_share(table: pl.DataFrame, rank: pl.Expr, config: FilterConfig) -> pl.Expr:
    """Whether a row that is still kept, at `rank` in its source, is beyond what is wanted."""
    passing = dict(table.filter(pl.col("reason") == "")["source"].value_counts().rows())
    limits = wanted({name: passing.get(name, 0) for name in config.sources}, config)
    return rank > pl.col("source").replace_strict(limits, default=None, return_dtype=pl.Int64)
