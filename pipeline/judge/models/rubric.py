"""A rubric: a model says of each criterion whether an answer meets it.

Rubrics as rewards: Gunjal et al. (arXiv 2507.17746). Models favour what stands first (Zheng et al.,
arXiv 2306.05685), so the criteria are asked in both orders and only agreement counts.
"""

from __future__ import annotations

import re

from pipeline.config.judges import Rubric
from pipeline.judge.llm import Ask
from pipeline.judge.models.opinion import Case, Item, Judged, SelfConsistent, ask_once, chat, shown
from pipeline.prompts import render

_LINE = re.compile(r"\W*(\d+)\W+(YES|NO)\W*")


def rubric(config: Rubric, ask: Ask) -> SelfConsistent:
    """Score items by the weight of the criteria met, of those on which both orders agree."""
    system = render("rubric")
    orders = list(config.criteria), list(config.criteria)[::-1]

    def judge(items: list[Item]) -> Judged:
        chats = [chat(system, problem=item.problem, answer=shown(item.text), criteria={
            str(number): text for number, text in enumerate(order, start=1)})
            for item in items for order in orders]
        replies = ask_once(ask, chats)
        scores: list[float | None] = []
        cases: list[Case] = []
        for place in range(len(items)):
            one, other = (verdicts(reply, order) for reply, order in
                          zip(replies[2 * place:2 * place + 2], orders, strict=True))
            cases += [(one[name], other[name]) for name in one if name in other]
            scores.append(_score(config, one, other))
        return scores, cases

    return SelfConsistent(judge)


def verdicts(reply: str, order: list[str]) -> dict[str, bool]:
    """{criterion: whether it is met}; empty unless `reply` says of each, once, YES or NO."""
    found = [_LINE.fullmatch(line) for line in reply.splitlines() if line.strip()]
    said = {int(line[1]): line[2] == "YES" for line in found if line}
    if len(said) != len(found) or said.keys() != set(range(1, len(order) + 1)):
        return {}
    return {order[number - 1]: met for number, met in said.items()}


def _score(config: Rubric, one: dict[str, bool], other: dict[str, bool]) -> float | None:
    agreed = {name for name in one if one[name] == other.get(name)}
    whole = sum(config.criteria[name] for name in agreed)
    # Where it contradicts itself on most, what is left is chance.
    if not whole or whole * 2 < sum(config.criteria.values()):
        return None
    return sum(config.criteria[name] for name in agreed if one[name]) / whole
