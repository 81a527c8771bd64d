"""A teacher's reply, in whichever dialect it came: choices, token usage, errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class MalformedReplyError(Exception):
    """A body without a complete answer; `status` is the error code in it, if any."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(clean_text(reason))
        self.status = status


@dataclass(frozen=True)
class Choice:
    """One completion; `complete` if it stopped by itself, with closed thinking and an answer."""

    thinking: str | None
    answer: str
    finish_reason: str
    complete: bool
    logprobs: list[dict] | None = None


@dataclass(frozen=True)
class Usage:
    """Billed tokens of one request; `usd` if the endpoint says what it charged."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0
    usd: float | None = None


@dataclass(frozen=True)
class Reply:
    """Complete choices by index, the usage (None if none came) and the model that answered."""

    choices: dict[int, Choice]
    usage: Usage | None = None
    model: str = ""
    broken: dict[int, str] = field(default_factory=dict)
    """Errors of the other choices; under -1 that of the whole stream."""


def clean_text(text: str) -> str:
    """Replace lone surrogates, which cannot be stored, by question marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def read_usage(raw: Any) -> Usage | None:
    """Read a `usage` object; None if it is absent or unreadable."""
    if not isinstance(raw, Mapping):
        return None
    def number(value: Any) -> int:
        return int(value) if isinstance(value, int | float) and 0 < value < 1e12 else 0

    def detail(side: str, name: str) -> int:
        details = raw.get(f"{side}_tokens_details")
        return number(details.get(name)) if isinstance(details, Mapping) else 0
    cached = number(raw.get("prompt_cache_hit_tokens")) or detail("prompt", "cached_tokens")
    thought = detail("completion", "reasoning_tokens")
    prompt, completion = number(raw.get("prompt_tokens")), number(raw.get("completion_tokens"))
    # Some endpoints count thinking beside the completion: it is larger then, or the total is.
    completion += thought if thought > completion else 0
    completion = max(completion, number(raw.get("total_tokens")) - prompt if prompt else 0)
    usd = raw.get("cost")
    usd = float(usd) if isinstance(usd, int | float) and 0 <= usd < 1e12 else None
    if not completion and usd is None:
        return None
    return Usage(prompt, min(cached, prompt), completion, thought, usd)
