"""Benchmarks measured within a thinking budget: how they are named, asked, and their curve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.config.evaluate import EvaluateConfig
from pipeline.prompts import asking_length
from pipeline.student.thinking_budget import Budget

MARK = " @"


def named(benchmarks: Mapping[str, Any], budgets: Iterable[int]) -> dict[str, Any]:
    """`benchmarks`, and each again as NAME @TOKENS for every budget."""
    tokens = list(dict.fromkeys(budgets))
    return {**benchmarks, **{f"{name}{MARK}{budget}": rows for name, rows in benchmarks.items()
                             for budget in tokens}}


def benchmark_of(name: str) -> str:
    """NAME of NAME @TOKENS."""
    head, mark, tokens = name.rpartition(MARK)
    return head if mark and tokens.isdecimal() else name


def budgets_of(names: Iterable[str], config: EvaluateConfig) -> dict[str, Budget]:
    """The budget of each name that has one."""
    return {name: Budget(int(name.rpartition(MARK)[2]), config.answer_tokens, config.waits)
            for name in names if benchmark_of(name) != name}


def asked_within(chats: Mapping[str, Any], budget: Budget | None) -> dict[str, list]:
    """`chats` that ask for so many tokens of thinking; unchanged without a budget."""
    if budget is None:
        return dict(chats)
    return {name: asking_length(chat, budget.thinking) for name, chat in chats.items()}


def nested(scores: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A model's scores by benchmark, those of NAME @TOKENS as `budgets` of NAME's."""
    out = {name: dict(found) for name, found in scores.items() if benchmark_of(name) == name}
    for name, found in scores.items():
        if (benchmark := benchmark_of(name)) != name:
            out[benchmark].setdefault("budgets", {})[name.rpartition(MARK)[2]] = found
    return out


def curves(models: Mapping[str, Mapping[str, Any]]
           ) -> dict[str, dict[str, list[tuple[float, ...]]]]:
    """{benchmark: {model: [(mean tokens, score, low, high)]}} of what was measured in budgets.

    Without a budget is a point too: it is where the model stops by itself.
    """
    out: dict[str, dict[str, list[tuple[float, ...]]]] = {}
    for model, by in models.items():
        for benchmark, found in by.items():
            measured = [one for one in (*found.get("budgets", {}).values(), found)
                        if "avg" in one]
            if found.get("budgets") and measured:
                out.setdefault(benchmark, {})[model] = sorted(
                    (one["mean_tokens"], one["avg"], one["ci_low"], one["ci_high"])
                    for one in measured)
    return out
