"""What models that judge share: the items they score, and whether they agree with themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pipeline.completion import Messages
from pipeline.errors import UserError
from pipeline.judge.llm import MAX_PROBLEM, Ask, plain

PROBE = 10
"""Items judged first, by which a judge that never agrees with itself is found out."""
MAX_TEXT = 40_000
"""Characters of a text that a model is shown; beyond it the middle is left out."""


class Item(NamedTuple):
    """A text to score: an answer or a whole completion, its problem, and whom it rivals."""

    group: str
    """Texts of one group answer one problem and may be compared."""
    problem: str
    text: str


Score = Callable[[list[Item]], list[float | None]]
"""A score for each item; None if the model gave none that can be read."""
Case = tuple[Any, Any]
"""What a model said of one thing in either order; equal if it agrees with itself."""
Judged = tuple[list[float | None], list[Case]]


def shown(text: str) -> str:
    """`text` as a model is shown it: no control tokens, and of a very long one both ends."""
    text = plain(text)
    half = MAX_TEXT // 2
    return text if len(text) <= MAX_TEXT else f"{text[:half]}\n[...]\n{text[-half:]}"


def chat(system: str, **fields: Any) -> Messages:
    """The chat that asks about `fields`, as JSON."""
    if "problem" in fields:
        fields["problem"] = shown(fields["problem"])[:MAX_PROBLEM]
    content = json.dumps(fields, ensure_ascii=False)
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


def ask_once(ask: Ask, chats: Sequence[Messages]) -> list[str]:
    """A reply to each of `chats`; equal ones are asked once.

    Raises UserError if none came, unless `ask` says that it spends nothing (`ask.spend`).
    """
    texts = {chat[-1]["content"]: chat for chat in chats}
    replies = dict(zip(texts, ask(list(texts.values())), strict=True)) if texts else {}
    if replies and not any(replies.values()) and getattr(ask, "spend", True):
        raise UserError(f"the model gave no answer to any of {len(replies):,} questions; see what "
                        "is printed above, fix the address or raise max_usd, and run again: what "
                        "came is kept")
    return [replies[chat[-1]["content"]] for chat in chats]


class SelfConsistent:
    """Scores by `judge`, and refuses a model that contradicts itself in every case.

    The first items are judged alone, so that such a model is found before the others are paid for.
    """

    def __init__(self, judge: Callable[[list[Item]], Judged]) -> None:
        self.judge = judge
        self.cases: list[bool] = []
        self.trusted = False

    def __call__(self, items: list[Item]) -> list[float | None]:
        if not self.trusted and len(items) > PROBE:
            self._check(self.judge(items[:PROBE])[1])
        scores, cases = self.judge(items)
        if not self.trusted:
            self._check(cases)
        return scores

    def _check(self, cases: list[Case]) -> None:
        self.cases += [one == other for one, other in cases]
        if len(self.cases) >= PROBE:
            if not any(self.cases):
                raise UserError(f"the model contradicted itself in all {len(self.cases):,} cases "
                                "that it was asked in both orders, so its verdicts mean nothing; "
                                "name another model or put the question more plainly")
            self.trusted = True
