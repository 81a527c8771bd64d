"""Splits streamed text into thinking and answer as it comes."""

from __future__ import annotations

from pipeline.completion import CLOSE, OPEN

Part = tuple[str, str]
"""("thinking" or "answer", text)."""


class ThinkingStream:
    """Feeds on pieces of one completion; a tag may be spread over several."""

    def __init__(self, opened: bool = False):
        self.kind = "thinking" if opened else "answer"
        self.held = ""
        self.started = False

    def feed(self, piece: str) -> list[Part]:
        """Return the parts that are settled by now."""
        text = self.held + piece
        out: list[Part] = []
        while True:
            tag = CLOSE if self.kind == "thinking" else OPEN
            before, found, after = text.partition(tag)
            if not found:
                break
            out.append(self._bare(before))
            self.kind = "answer" if self.kind == "thinking" else "thinking"
            self.started, text = False, after
        held = _start_of(tag, text)
        self.held = text[len(text) - held:]
        out.append(self._bare(text[:len(text) - held]))
        return [part for part in out if part[1]]

    def end(self) -> list[Part]:
        """Return what was held back for a tag that did not come."""
        held, self.held = self.held, ""
        return [self._bare(held)] if held else []

    def _bare(self, text: str) -> Part:
        """A part without the line breaks after its tag."""
        if not self.started:
            text = text.lstrip("\n")
            self.started = bool(text)
        return self.kind, text


def _start_of(tag: str, text: str) -> int:
    """How many characters at the end of `text` may be the start of `tag`."""
    lengths = range(min(len(tag) - 1, len(text)), 0, -1)
    return next((length for length in lengths if tag.startswith(text[-length:])), 0)
