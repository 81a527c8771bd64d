"""One node's part of asking: a process that gets requests, and writes to the store by itself."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cluster.ray_nodes import check_same_code, check_sees
from pipeline.config.experiment import Runtime
from pipeline.config.teacher import JudgeRuntime, Sampling, Teacher, TeacherRuntime
from pipeline.errors import UserError
from pipeline.teacher.ask import running_judge, running_teacher
from pipeline.teacher.failures import UnansweredError
from pipeline.teacher.outcome import Display, Outcome
from pipeline.teacher.request import Request
from pipeline.teacher.scheduler import Scheduler
from pipeline.teacher.store import TraceStore

REPORT_SECONDS = 1.0
AHEAD = 0.25
"""Requests that a node has waiting, for each that it has in flight: few, so that another may take
the rest."""


@dataclass
class Report:
    """What a node did since its last report, and what it may do further."""

    done: list[tuple[str, int]] = field(default_factory=list)
    """(key, sample) of what is stored, an answer or a failure."""
    counts: Outcome = field(default_factory=Outcome)
    spent: float = 0.0
    unsure: float = 0.0
    """Dollars in all, as in Budget."""
    in_flight: int = 0
    room: int = 1
    """Further requests that it can take."""
    stopped: str | None = None
    """Why it asks no more."""


class Quiet(Display):
    """A display of counts that another machine shows."""

    def show(self, steps: int, in_flight: int) -> None:
        pass


class NotingStore(TraceStore):
    """A store that notes what is on disk."""

    def __init__(self, folder: Path, news: asyncio.Event) -> None:
        super().__init__(folder)
        self.done: list[tuple[str, int]] = []
        self.news = news

    def append(self, *rows: Mapping[str, Any]) -> None:
        super().append(*rows)
        self.done += [(row["key"], row["sample"]) for row in rows]
        self.news.set()


class NodeAsker:
    """An actor; its methods are called one after another by the machine that plans."""

    def __init__(self, teacher: Teacher, sampling: Sampling, runtime: TeacherRuntime,
                 folder: Path) -> None:
        self.teacher, self.sampling, self.runtime, self.folder = teacher, sampling, runtime, folder
        self.stack = ExitStack()
        self.run: Scheduler | None = None

    async def begin(self, key: str, digest: str) -> Report:
        """Start a local teacher if needed. `key` is the endpoint's, `digest` that of the code.

        Raises UserError if this node has other code or does not see the store.
        """
        check_same_code(digest)
        check_sees(self.folder)
        if key:
            os.environ[self.runtime.api_key_env] = key
        logs = self.folder / "logs" / f"{socket.gethostname()}-{os.getpid()}"
        # A dead server ends this process: what it had is asked elsewhere, and another is started.
        there: Any = running_judge(self.teacher, self.runtime, logs) if isinstance(  # type: ignore
            self.runtime, JudgeRuntime) else running_teacher(
                self.teacher, Runtime(teacher=self.runtime, traces=logs), on_exit=os._exit)
        self.address = self.stack.enter_context(there)
        self.news = asyncio.Event()
        self.store = NotingStore(self.folder, self.news)
        self.stack.enter_context(self.store.writing())
        return Report(room=8)

    async def work(self, requests: list[Request], allowance: float | None, share: int,
                   more: bool, earlier: int) -> Report:
        """Ask for `requests` too; returns after a second, or when there is room for more of them.

        `allowance`: dollars that this node may spend in all. `share`: nodes that share the
        endpoint's rates. `more`: further requests or dollars may come. `earlier`: traces that came.
        """
        if self.run is None:
            self.run = self._scheduler(requests, earlier)
            self.main = asyncio.create_task(self.run.main())
            self.main.add_done_callback(lambda _: self.news.set())
        else:
            self.run.add(requests)
        self.run.budget.max_usd = allowance
        self.run.limiter.divide(share)
        self.run.more_may_come = more
        self.run.task_ended.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(REPORT_SECONDS):
                while not self.main.done() and not (more and self.store.done and self._has_room()):
                    self.news.clear()
                    await self.news.wait()
        return self._report()

    async def end(self) -> None:
        """Stop asking, and leave the store and a local teacher behind in order."""
        if self.run is not None:
            self.main.cancel()
            await asyncio.gather(self.main, return_exceptions=True)
        self.stack.close()

    def _scheduler(self, requests: list[Request], earlier: int) -> Scheduler:
        return Scheduler(requests, self.teacher, self.sampling, self.address, self.store,
                         Quiet(Outcome(reused=earlier), None))

    def _waiting(self) -> int:
        assert self.run is not None
        queue = self.run.queue
        return len(queue.new) + len(queue.retries) + len(queue.failed_before)

    def _room(self) -> int:
        assert self.run is not None
        slots = int(self.run.limiter.slots)
        return slots + max(4, int(AHEAD * slots)) - len(self.run.tasks) - self._waiting()

    def _has_room(self) -> bool:
        assert self.run is not None
        return self._room() >= max(2, int(AHEAD * self.run.limiter.slots / 2))

    def _report(self) -> Report:
        """Raises UserError if the store cannot be written."""
        assert self.run is not None
        run, stopped = self.run, self.run.outcome.stopped
        if self.main.done() and not self.main.cancelled() and (error := self.main.exception()):
            if not isinstance(error, UnansweredError):
                raise error if isinstance(error, UserError) else RuntimeError(repr(error))
            stopped = str(error)
        done, self.store.done = self.store.done, []
        counts = run.outcome
        run.outcome = run.display.outcome = Outcome(stopped=counts.stopped)
        return Report(done, counts, run.budget.spent, run.budget.unsure, run.limiter.in_flight,
                      max(self._room(), 0), stopped)
