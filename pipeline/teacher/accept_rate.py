"""Judges traces while more are asked: the share accepted so far, on the progress line."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from pipeline.judge import JudgePool, Problem
from pipeline.judge.table import as_completion

WAITING = 64


class AcceptRate:
    """Counts what the judge accepts of the traces it is given, in a thread of its own.

    Where traces come faster than verdicts some are passed over; the share is of those judged.
    `problems` are by the `messages` column of the trace store; traces of others are passed over.
    """

    def __init__(self, problems: Mapping[str, Problem]) -> None:
        self.problems, self.judged, self.accepted = problems, 0, 0
        self.pool, self.thread = JudgePool(1), ThreadPoolExecutor(1)
        self.room = threading.Semaphore(WAITING)

    def __enter__(self) -> AcceptRate:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.thread.shutdown(wait=error is None, cancel_futures=True)
        self.pool.close()

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Judge a stored trace soon, if there is room."""
        problem = self.problems.get(row["messages"])
        if problem is not None and self.room.acquire(blocking=False):
            self.thread.submit(self._judge, dict(row), problem)

    def _judge(self, row: dict[str, Any], problem: Problem) -> None:
        try:
            verdict = self.pool.judge(as_completion(row), problem)
            self.accepted += verdict.score == 1.0
            self.judged += 1
        finally:
            self.room.release()

    def parts(self, cost_each: float) -> list[str]:
        """What a progress line says: the share, and dollars an accepted trace."""
        if not self.judged:
            return []
        share = self.accepted / self.judged
        money = [f"${cost_each / share:.4f} each"] if cost_each and share else []
        return [f"{share:.0%} accepted", *money]
