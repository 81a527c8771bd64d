"""Comparisons: a model says which of two answers to one problem is better.

Asked in both orders, as models favour what stands first (Zheng et al., arXiv 2306.05685).
"""

from __future__ import annotations

from pipeline.completion import Messages
from pipeline.config.judges import Pairwise
from pipeline.judge.llm import Ask
from pipeline.judge.models.opinion import Case, Item, Judged, SelfConsistent, ask_once, chat, shown
from pipeline.prompts import render

WORTH = {"FIRST": 1.0, "TIE": 0.5, "SECOND": 0.0}
"""Of a verdict to the answer that stands first."""


def pairwise(config: Pairwise, ask: Ask) -> SelfConsistent:
    """Score items by the share of their comparisons won; None for one that has no rival."""
    system = render("pairwise", question=config.question)

    def judge(items: list[Item]) -> Judged:
        pairs = _pairs(items, config.opponents)
        said = iter(ask_once(ask, [_chat(system, items[one], items[other]) for pair in pairs
                                   if _differ(items, pair) for one, other in (pair, pair[::-1])]))
        won: dict[int, list[float]] = {}
        cases: list[Case] = []
        for one, other in pairs:
            value = 0.5
            if _differ(items, (one, other)):
                first, second = WORTH.get(_word(next(said))), WORTH.get(_word(next(said)))
                if first is None or second is None:
                    continue
                cases.append((first, 1 - second))
                value = first if first == 1 - second else 0.5
            won.setdefault(one, []).append(value)
            won.setdefault(other, []).append(1 - value)
        return [sum(won[place]) / len(won[place]) if place in won else None
                for place in range(len(items))], cases

    return SelfConsistent(judge)


def _pairs(items: list[Item], opponents: int) -> list[tuple[int, int]]:
    """Each item of a group with the next ones, in a ring: every one is compared as often."""
    groups: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(item.group, []).append(place)
    pairs: dict[tuple[int, int], None] = {}
    for places in groups.values():
        for at, one in enumerate(places):
            for step in range(1, min(opponents, len(places) - 1) + 1):
                other = places[(at + step) % len(places)]
                pairs[min(one, other), max(one, other)] = None
    return list(pairs)


def _differ(items: list[Item], pair: tuple[int, int]) -> bool:
    return items[pair[0]].text != items[pair[1]].text


def _word(reply: str) -> str:
    return reply.strip(" \n.*\"'`")


def _chat(system: str, first: Item, second: Item) -> Messages:
    return chat(system, **{"problem": first.problem, "answer 1": shown(first.text),
                           "answer 2": shown(second.text)})
