"""Judges traces while more are asked, for the share accepted so far on the progress line."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from pipeline.judge import JudgePool, Problem
from pipeline.judge.table import as_completion

MAX_WAITING = 64


class AcceptRate:
    """Counts what the judge accepts of the traces it is given, in a thread of its own.

    `problems` are keyed by the `messages` column of the trace store; other traces are skipped, and
    so are some if traces come faster than verdicts.
    """

    def __init__(self, problems: Mapping[str, Problem]) -> None:
        self.problems, self.judged, self.accepted = problems, 0, 0
        self.pool, self.thread = JudgePool(1), ThreadPoolExecutor(1)
        self.free_places = threading.Semaphore(MAX_WAITING)

    def __enter__(self) -> AcceptRate:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.thread.shutdown(wait=error is None, cancel_futures=True)
        self.pool.close()

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Queue a stored trace for the judge, unless the queue is full."""
        problem = self.problems.get(row["messages"])
        if problem is not None and self.free_places.acquire(blocking=False):
            self.thread.submit(self._judge, dict(row), problem)

    def _judge(self, row: dict[str, Any], problem: Problem) -> None:
        try:
            verdict = self.pool.judge(as_completion(row), problem)
            self.accepted += verdict.score == 1.0
            self.judged += 1
        finally:
            self.free_places.release()

    def parts(self, usd_per_trace: float) -> list[str]:
        """Parts of the progress line: the share, and dollars for each accepted trace."""
        if not self.judged:
            return []
        share = self.accepted / self.judged
        cost = [f"${usd_per_trace / share:.4f} each"] if usd_per_trace and share else []
        return [f"{share:.0%} accepted", *cost]
