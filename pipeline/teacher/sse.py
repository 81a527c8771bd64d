"""Server-sent events put together into the reply that one whole body would have been."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.teacher.answer import MalformedReplyError, Reply
from pipeline.teacher.dialects import BROKEN, malformed_on_error, read_json, refuse_error


class Assembler:
    """Takes a stream line by line; holds its text, not its events.

    A choice counts only once its finish_reason has come: a stream that just ends, with or without
    `[DONE]`, leaves its unfinished choices out (Reply.broken), never cut short.
    """

    def __init__(self, opened: bool = False) -> None:
        self.opened = opened
        self.head: dict[str, Any] = {}
        self.choices: dict[int, dict[str, Any]] = {}
        self.broke = ""

    def feed(self, line: str) -> None:
        """One line without its newline.

        Raises DamagedError on an error event or broken JSON, unless a choice had ended by then.
        """
        try:
            self._take(line)
        except MalformedReplyError as error:
            if not self.any_ended():
                raise
            self.broke = str(error)

    def any_ended(self) -> bool:
        """Whether some choice is whole by now."""
        ends = [choice["finish_reason"] for choice in self.choices.values()]
        return any(isinstance(end, str) and end not in BROKEN for end in ends)

    @malformed_on_error()
    def _take(self, line: str) -> None:
        name, _, value = line.rstrip("\r").partition(":")
        value = value.strip()
        if name != "data" or not value or value == "[DONE]":
            return
        try:
            event = json.loads(value)
        except (ValueError, RecursionError):
            raise MalformedReplyError(f"a stream event that is not JSON: {value[:80]!r}") from None
        refuse_error(event)
        self.head.update({k: event[k] for k in ("usage", "model") if event.get(k)})
        for position, raw in enumerate(event.get("choices") or []):
            refuse_error(raw)
            self._add(raw.get("index", position), raw)

    def _add(self, index: int, raw: Mapping[str, Any]) -> None:
        choice = self.choices.setdefault(index, {"pieces": {}, "finish_reason": None, "tokens": []})
        for name, piece in (raw.get("delta") or raw.get("message") or {}).items():
            if name != "role" and piece is not None and isinstance(piece, str | list):
                choice["pieces"].setdefault(name, []).append(piece)
        choice["finish_reason"] = raw.get("finish_reason") or choice["finish_reason"]
        logprobs = raw.get("logprobs")
        tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        choice["tokens"] += tokens if isinstance(tokens, list) else [tokens] if tokens else []

    @malformed_on_error()
    def reply(self) -> Reply:
        """The reply so far; DamagedError where no choice is whole."""
        if not self.choices:
            raise MalformedReplyError("a stream without an answer")
        choices = [{"index": index, "finish_reason": choice["finish_reason"],
                    "message": {n: _join(pieces) for n, pieces in choice["pieces"].items()},
                    "logprobs": {"content": choice["tokens"] or None}}
                   for index, choice in sorted(self.choices.items())]
        reply = read_json({**self.head, "choices": choices}, opened=self.opened)
        return replace(reply, broken=reply.broken | ({-1: self.broke} if self.broke else {}))


def _join(pieces: list[Any]) -> Any:
    """Deltas of one field: strings joined, parts listed."""
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(pieces)
    return [part for piece in pieces for part in (piece if isinstance(piece, list) else
                                                  [{"type": "text", "text": piece}])]


def read_body(text: str, *, opened: bool = False) -> Reply:
    """The reply in a whole body, JSON or server-sent events; DamagedError where there is none.

    `opened`: the server's template opens `<think>` and nothing splits it off.
    """
    from pipeline.teacher.sse import Assembler

    text = "\n".join(line for line in text.strip().split("\n") if not line.startswith(":")).strip()
    if not text:
        raise MalformedReplyError("an empty body")
    if text.startswith(("data:", "event:")):
        assembler = Assembler(opened)
        for line in text.split("\n"):
            assembler.feed(line)
        return assembler.reply()
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        kind = "HTML" if text.startswith("<") else "not whole JSON"
        raise MalformedReplyError(f"a body that is {kind}: {text[:80]!r}") from None
    return read_json(body, opened=opened)
