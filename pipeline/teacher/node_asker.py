"""One node's part of asking: a process that shares the requests with others by the store's leases.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.cluster.ray_nodes import check_same_code, check_sees
from pipeline.config.experiment import Runtime
from pipeline.config.teacher import Sampling, Teacher, TeacherRuntime
from pipeline.objects import bucket_of, local_copy
from pipeline.serving.in_actor import in_actor
from pipeline.teacher.ask import running_teacher
from pipeline.teacher.outcome import Outcome
from pipeline.teacher.request import Request
from pipeline.teacher.scheduler import generate
from pipeline.teacher.store import TraceStore


class CountingStore(TraceStore):
    """A store that counts what this process appends, between two calls of `take_counts`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._counts, self._mutex = Outcome(), threading.Lock()

    def append(self, *rows: Mapping[str, Any]) -> None:
        super().append(*rows)
        with self._mutex:
            for row in rows:
                if row["failure"]:
                    self._counts.fail(row["failure"], 1)
                else:
                    self._counts.count(row)

    def take_counts(self) -> Outcome:
        """Return what was counted since the last call."""
        with self._mutex:
            counts, self._counts = self._counts, Outcome()
            return counts


class NodeAsker:
    """An actor of two threads: one asks, the other tells how far it is."""

    def __init__(self, teacher: Teacher, sampling: Sampling, runtime: TeacherRuntime,
                 place: str, over_nodes: bool = False) -> None:
        self.teacher, self.sampling, self.runtime = teacher, sampling, runtime
        self.folder = local_copy(place)
        self.store, self.over_nodes = CountingStore(self.folder), over_nodes

    def ask(self, key: str, digest: str, *requests: list[Request]) -> tuple[Outcome, Outcome]:
        """Ask for those of `requests`, of all parts, that no other process asks for, until all end.

        Returns what came of it, and the part of it that `counts` has not told.

        `key` is the endpoint's, `digest` that of the code. Raises UserError if this node has other
        code or does not see the store, and as generate.
        """
        check_same_code(digest)
        if bucket_of(self.folder) is None:
            check_sees(self.folder)
        if key:
            os.environ[self.runtime.api_key_env] = key
        logs = self.folder / "logs" / f"{socket.gethostname()}-{os.getpid()}"
        # A dead server ends this process: others ask what it had, and another is started.
        with self._server(Runtime(teacher=self.runtime, traces=logs)) as address, self.store:
            outcome = generate(list(chain(*requests)), teacher=self.teacher, sampling=self.sampling,
                               runtime=address, store=self.store)
        return outcome, self.store.take_counts()

    def _server(self, runtime: Runtime) -> AbstractContextManager[TeacherRuntime]:
        """Start the teacher if it is a local one, on this actor's placement group if it has one."""
        if not self.over_nodes:
            return running_teacher(self.teacher, runtime, on_exit=os._exit)
        assert self.teacher.type == "vllm"
        options = {"distributed_executor_backend": "ray", **self.teacher.vllm}
        return running_teacher(self.teacher.model_copy(update={"vllm": options}), runtime,
                               on_exit=os._exit, start=in_actor)

    def counts(self, seconds: float) -> Outcome:
        """What was stored since the last call, after so many seconds."""
        time.sleep(seconds)
        return self.store.take_counts()
