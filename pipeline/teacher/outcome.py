"""What a run of asking has done so far, and the one line that says so."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LINE_EVERY = 60.0


@dataclass
class Outcome:
    """Counts of one run; of traces, unless their name says otherwise."""

    wanted: int = 0
    """Missing at the start."""
    reused: int = 0
    asked: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Why, for those that failed."""
    cut_off: int = 0
    retries: int = 0
    """Attempts beyond the first."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unsure_usd: float | None = 0.0
    """Upper bound of what attempts and answers without a bill may have cost besides; None: some
    came and, without max_tokens, nobody knows."""
    seconds: float = 0.0
    stopped: str | None = None
    """Why asking ended before everything was asked, if it did."""
    quick: Any = None
    """The QuickJudge that sees each trace as it is stored, if any."""
    notes: list[str] = field(default_factory=list)
    """What the user should know, one sentence each."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def count(self, row: Mapping[str, Any]) -> None:
        """Take one stored trace into account."""
        self.asked += 1
        self.cut_off += row["finish_reason"] == "length"
        self.prompt_tokens += row["prompt_tokens"]
        self.completion_tokens += row["completion_tokens"]
        self.cost_usd += row["cost_usd"]
        if self.quick is not None:
            self.quick(row)

    def fail(self, reason: str, traces: int) -> None:
        """Take so many traces into account that did not come."""
        self.asked += traces
        self.failed += traces
        self.reasons[reason[:160]] += traces

    def line(self, seconds: float, in_flight: int) -> str:
        """Speed, load, shares, money so far and projected, and time left."""
        came, done = self.asked - self.failed, max(self.asked, 1)
        parts = [f"{self.completion_tokens / max(seconds, 1e-3):,.0f} tok/s",
                 f"{in_flight} in flight"]
        parts += [f"{self.retries} retries"] if self.retries else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.cut_off / max(came, 1):.0%} cut off"] if self.cut_off else []
        if self.quick is not None:
            parts += self.quick.parts(self.cost_usd / max(came, 1))
        if self.cost_usd:
            parts.append(f"${self.cost_usd:.2f} of about ${self.cost_usd * self.wanted / done:.2f}")
        left = seconds * (self.wanted - self.asked) / done
        return " · ".join([*parts, f"{left / 60:.0f} min left"] if left > 60 else parts)


class Display:
    """Passes progress on, and prints one line a minute where nobody watches a terminal."""

    def __init__(self, outcome: Outcome, on_progress: Callable[..., None] | None) -> None:
        self.outcome, self.on_progress = outcome, on_progress
        self.began = self._last = time.monotonic()

    def show(self, steps: int, in_flight: int) -> None:
        now = time.monotonic()
        line = self.outcome.line(now - self.began, in_flight)
        if self.on_progress is not None:
            self.on_progress(steps, note=line)
        if now - self._last > LINE_EVERY and not sys.stderr.isatty():
            self._last = now
            print(f"teacher: {self.outcome.asked:,} of {self.outcome.wanted:,} · {line}",
                  file=sys.stderr, flush=True)
