"""Finds the value of a column, and a question or an answer in a conversation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

ASSISTANT_ROLES = ("assistant", "gpt", "model", "bot", "chatgpt")
"""The role of a conversation's answers, as OpenAI, ShareGPT and Gemma name it."""
USER_ROLES = ("user", "human")
Turn = Mapping[str, Any]


class NoColumnError(KeyError):
    """A row has no such column."""


def column(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column; `a.b` is field b of column a, `a.0` the first element of a list.

    Raises NoColumnError if there is none.
    """
    found: Any = row
    for part in [name] if name in row else name.split("."):
        found = decoded(found)
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            raise NoColumnError(name)
    return found


def decoded(value: Any) -> Any:
    """`value`, or what it holds if it is an object as JSON text, as CSV and Parquet files have."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        with suppress(ValueError):
            return json.loads(value)
    return value


def is_conversation(value: Any) -> bool:
    """Whether `value` is a list of messages."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(turn, Mapping) and role_of(turn) for turn in value)


def role_of(turn: Turn) -> str:
    """Who says a message, in OpenAI's or ShareGPT's field; "" if it is none."""
    return str(turn.get("role") or turn.get("from") or "").casefold()


def said_in(turn: Turn) -> str:
    """The text of a message, whose content may be typed parts."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def question_in(turns: list[Turn]) -> str:
    """What a conversation's first user message asks."""
    return next((said_in(turn) for turn in turns if role_of(turn) in USER_ROLES), "")


def answer_in(turns: list[Turn], problem: str = "", key: Callable[[str], str] = str) -> Turn | None:
    """The assistant's last message of those that follow `problem`, before the user's next.

    Texts are compared by `key`; a user message that equals the problem comes before one that
    contains it. If none does, the longest answer is taken, since small talk is short.
    """
    asked = key(problem)
    said = {at: key(said_in(turn)) for at, turn in enumerate(turns) if role_of(turn) in USER_ROLES}
    start = next((at for at in said if asked and said[at] == asked),
                 next((at for at in said if asked and asked in said[at]), None))
    answers = []
    for turn in turns[start + 1 if start is not None else 0:]:
        if role_of(turn) in ASSISTANT_ROLES:
            answers.append(turn)
        elif role_of(turn) in USER_ROLES and start is not None and answers:
            break
    if not answers:
        return None
    return max(answers, key=lambda turn: len(said_in(turn))) if start is None else answers[-1]
