"""Reads the body of a reply: server-sent events, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.teacher.answer import MalformedReplyError, Reply
from pipeline.teacher.dialects import check_no_error, is_end, malformed_on_error, read_json


class Assembler:
    """Puts a stream together line by line; keeps its text, not its events.

    A choice counts only once its finish_reason has come: if the stream just ends, with or without
    `[DONE]`, unfinished choices go to Reply.broken instead of being truncated.
    """

    def __init__(self, prompt_opens_thinking: bool = False) -> None:
        self.prompt_opens_thinking = prompt_opens_thinking
        self.head: dict[str, Any] = {}
        self.choices: dict[int, dict[str, Any]] = {}
        self.error = ""

    def feed(self, line: str) -> None:
        """Read one line, without its newline.

        Raises MalformedReplyError on an error event or broken JSON, unless a choice is complete.
        """
        try:
            self._take(line)
        except MalformedReplyError as error:
            if not self.any_complete():
                raise
            self.error = str(error)

    def any_complete(self) -> bool:
        """Whether some choice is complete by now."""
        return any(is_end(choice["finish_reason"]) for choice in self.choices.values())

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
        check_no_error(event)
        self.head.update({k: event[k] for k in ("usage", "model") if event.get(k)})
        for position, raw in enumerate(event.get("choices") or []):
            check_no_error(raw)
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
        """The reply so far. Raises MalformedReplyError if no choice is complete."""
        if not self.choices:
            raise MalformedReplyError("a stream without an answer")
        choices = [{"index": index, "finish_reason": choice["finish_reason"],
                    "message": {n: _join(pieces) for n, pieces in choice["pieces"].items()},
                    "logprobs": {"content": choice["tokens"] or None}}
                   for index, choice in sorted(self.choices.items())]
        reply = read_json({**self.head, "choices": choices},
                          prompt_opens_thinking=self.prompt_opens_thinking)
        return replace(reply, broken=reply.broken | ({-1: self.error} if self.error else {}))


def _join(pieces: list[Any]) -> Any:
    """Join the deltas of one field: strings to a string, parts to a list."""
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(pieces)
    return [part for piece in pieces for part in (piece if isinstance(piece, list) else
                                                  [{"type": "text", "text": piece}])]


def read_body(text: str, *, prompt_opens_thinking: bool = False) -> Reply:
    """Read a body, JSON or server-sent events. Raises MalformedReplyError if it holds no reply."""
    text = "\n".join(line for line in text.strip().split("\n") if not line.startswith(":")).strip()
    if not text:
        raise MalformedReplyError("an empty body")
    if text.startswith(("data:", "event:")):
        assembler = Assembler(prompt_opens_thinking)
        for line in text.split("\n"):
            assembler.feed(line)
        return assembler.reply()
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        kind = "HTML" if text.startswith("<") else "not complete JSON"
        raise MalformedReplyError(f"a body that is {kind}: {text[:80]!r}") from None
    return read_json(body, prompt_opens_thinking=prompt_opens_thinking)
