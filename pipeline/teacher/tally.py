"""Counts of the traces that pass by, and what a user must know of them before any is trained on."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable

import polars as pl

from pipeline.completion import END_OF_WORD


class TraceTally:
    """Passes tables.Trace frames on to `write_batch` and counts how they end."""

    def __init__(self, write_batch: Callable[[pl.DataFrame], None]) -> None:
        self.write_batch = write_batch
        self.ends: Counter[str] = Counter()
        self.traces = self.thinking = 0

    def __call__(self, traces: pl.DataFrame) -> None:
        self.ends.update(dict(traces["finish_reason"].value_counts().rows()))
        self.traces += len(traces)
        self.thinking += int((traces["thinking"].fill_null("") != "").sum())
        self.write_batch(traces)

    def report(self, remedy: str) -> None:
        """Print what is wrong with the traces as a whole; `remedy` is for no thinking at all."""
        if self.traces and not self.thinking:
            print(f"generate: none of the {self.traces:,} traces holds any thinking, so a student "
                  f"would learn to answer without it; {remedy}", file=sys.stderr)
        for end, count in self.ends.items():
            if end not in END_OF_WORD.values():
                print(f"generate: {count:,} traces ended by {end!r}, which limbeck does not know: "
                      "whether they are whole is unknown, so none is kept unless filter.keep "
                      "names finish_reason or complete", file=sys.stderr)
