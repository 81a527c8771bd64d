"""Counts of a run of asking, and its progress line."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LINE_SECONDS = 60.0


@dataclass
class Outcome:
    """Counts of one run, in traces unless the name says otherwise."""

    wanted: int = 0
    """Missing at the start."""
    reused: int = 0
    asked: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Why traces failed."""
    cut_off: int = 0
    retries: int = 0
    """Attempts beyond the first."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unsure_usd: float | None = 0.0
    """Upper bound of what attempts and answers without usage may have cost besides; None: some
    came, and without max_tokens they have no bound."""
    seconds: float = 0.0
    stopped: str | None = None
    """Why asking ended early, if it did."""
    accept_rate: Any = None
    """The AcceptRate that judges each trace as it is stored, if any."""
    notes: list[str] = field(default_factory=list)
    """What else the user should know, one sentence each."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def count(self, row: Mapping[str, Any]) -> None:
        """Count one stored trace."""
        self.asked += 1
        self.cut_off += row["finish_reason"] == "length"
        self.prompt_tokens += row["prompt_tokens"]
        self.completion_tokens += row["completion_tokens"]
        self.cost_usd += row["cost_usd"]
        if self.accept_rate is not None:
            self.accept_rate(row)

    def fail(self, reason: str, traces: int) -> None:
        """Count `traces` as failed."""
        self.asked += traces
        self.failed += traces
        self.reasons[reason[:160]] += traces

    def add(self, more: Outcome) -> None:
        """Add the counts of traces that another machine asked for."""
        for name in ("asked", "failed", "reasons", "cut_off", "retries", "prompt_tokens",
                     "completion_tokens", "cost_usd"):
            setattr(self, name, getattr(self, name) + getattr(more, name))

    def line(self, seconds: float, in_flight: int | None) -> str:
        """Speed, load if it is known, shares, dollars so far and projected, and time left."""
        stored, done = self.asked - self.failed, max(self.asked, 1)
        parts = [f"{self.completion_tokens / max(seconds, 1e-3):,.0f} tok/s"]
        parts += [f"{in_flight} in flight"] if in_flight is not None else []
        parts += [f"{self.retries} retries"] if self.retries else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.cut_off / max(stored, 1):.0%} cut off"] if self.cut_off else []
        if self.accept_rate is not None:
            parts += self.accept_rate.parts(self.cost_usd / max(stored, 1))
        if self.cost_usd:
            parts.append(f"${self.cost_usd:.2f} of about ${self.cost_usd * self.wanted / done:.2f}")
        left = seconds * (self.wanted - self.asked) / done
        return " · ".join([*parts, f"{left / 60:.0f} min left"] if left > 60 else parts)


class Display:
    """Passes progress on to a bar, and prints lines if standard error is not a terminal."""

    def __init__(self, outcome: Outcome, on_progress: Callable[..., None] | None) -> None:
        self.outcome, self.on_progress = outcome, on_progress
        self.began = self._last = time.monotonic()

    def show(self, steps: int, in_flight: int | None) -> None:
        """Show the outcome so far, in print at most once a minute."""
        line = self.outcome.line(time.monotonic() - self.began, in_flight)
        counts = f"{self.outcome.asked:,} of {self.outcome.wanted:,} · "
        self.show_line(steps, line, counts, LINE_SECONDS)

    def show_line(self, steps: int, line: str, counts: str = "", every: float = 0.0) -> None:
        """Show `line`; in print after `counts` and at most once in `every` seconds."""
        if self.on_progress is not None:
            self.on_progress(steps, note=line)
        now = time.monotonic()
        if now - self._last >= every and not sys.stderr.isatty():
            self._last = now
            print(f"teacher: {counts}{line}", file=sys.stderr, flush=True)
