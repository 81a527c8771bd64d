"""Jobs that are still to be sent, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import replace

from pipeline.teacher.request import Job, runs


class Waiting:
    """First jobs that go on, then those never sent, at last those of problems that failed.

    After a failure each problem is tried once in turn until one is answered: whether one alone is
    refused or all are is found out with few requests.
    """

    def __init__(self, planned: Iterable[Job]) -> None:
        self.again: deque[Job] = deque()
        self.fresh, self.later = deque(planned), deque[Job]()
        self.last = ""

    def take(self, failed: Collection[str]) -> Job | None:
        """The next job; `failed` are the keys of the problems that failed of late."""
        if self.again:
            return self.again.popleft()
        while failed and self.fresh and self.fresh[0].key in {self.last, *failed}:
            self.later.append(self.fresh.popleft())
        waiting = self.fresh or self.later
        job = waiting.popleft() if waiting else None
        self.last = job.key if job else ""
        return job

    def requeue(self, job: Job, samples: Iterable[int], n: int) -> None:
        """Samples of `job` that go on, at most `n` together."""
        self.again.extend(replace(job, samples=run) for run in runs(samples, n))
