"""A pool of worker processes that can be killed: bounds each verdict in time and memory.

Workers are plain subprocesses (no fork of a process that may hold torch threads, no re-run of
the caller's main module), started when first needed. A signal timeout works in a main thread only
(Math-Verify issue 65, trl 5281, verl 5635); a kill works from any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "HOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
START_SECONDS = 60.0
FIRST_SECONDS = {"ifeval": 30.0, "user": 30.0}
"""More seconds for the first task of a kind in a worker, which imports a large package."""


class WorkerKilledError(RuntimeError):
    """A worker was killed (args[0] "timeout"), or died or ran out of memory ("error")."""


class Worker:
    """One worker process; after a kill the next one starts at once."""

    def __init__(self, memory_mb: int) -> None:
        self.memory_mb = memory_mb
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.imported: set[str] = set()

    def start(self) -> None:
        """Start the process; it is `ready` once it has said so."""
        environment = {k: os.environ[k] for k in ENVIRONMENT if k in os.environ}
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment |= {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1",
                        "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.judge.worker", str(self.memory_mb)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment, start_new_session=True)
        self.ready, self.imported = False, set()

    def ask(self, task: str, arguments: Sequence[Any], seconds: float) -> Any:
        """Return the task's value. Raises ValueError if it failed, WorkerKilledError if killed."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        if not self.ready:
            self._read(time.monotonic() + START_SECONDS)
        self.ready = True
        # Neither a start nor an import is charged to the answer.
        seconds += 0.0 if task in self.imported else FIRST_SECONDS.get(task, 0.0)
        deadline = time.monotonic() + seconds
        self.imported.add(task)
        assert self.process and self.process.stdin
        line = json.dumps({"task": task, "arguments": list(arguments), "seconds": seconds}) + "\n"
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._killed("error") from None
        reply = self._read(deadline)
        if reply.get("error") == "memory":
            raise self._killed("error")
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply["value"]

    def _read(self, deadline: float) -> dict[str, Any]:
        """Read one reply line; kill the worker at `deadline`."""
        assert self.process and self.process.stdout
        buffer = b""
        descriptor = self.process.stdout.fileno()
        while not buffer.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise self._killed("timeout")
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise self._killed("error")
            buffer += chunk
        return dict(json.loads(buffer))

    def _killed(self, why: str) -> WorkerKilledError:
        """End the process, and start another if this one had ever been ready."""
        restart = self.ready
        self.kill()
        if restart:
            self.start()
        return WorkerKilledError(why)

    def kill(self) -> None:
        """End the process and reap it."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):  # what was not written is lost with it
                    stream.close()
        self.process, self.ready = None, False


class WorkerPool:
    """Answers tasks; each takes at most `seconds` and `memory_mb` of a worker.

    Safe to share between threads. A worker starts when the rules first leave it an answer, or
    with start().
    """

    def __init__(self, workers: int | None = None, seconds: float = 5.0,
                 memory_mb: int = 1024) -> None:
        self.seconds, self.workers = seconds, workers or min(8, os.cpu_count() or 1)
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self._all = [Worker(memory_mb) for _ in range(self.workers)]
        for worker in self._all:
            self._idle.put(worker)
        self._cache: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Start the workers without waiting for them."""
        for worker in self._all:
            if worker.process is None:
                worker.start()

    def close(self) -> None:
        """End every worker. The pool may be used again; workers then start anew."""
        for worker in self._all:
            worker.kill()

    def ask(self, task: str, arguments: Sequence[Any]) -> Any:
        """Ask a worker, or the cache. Raises ValueError or WorkerKilledError without an answer."""
        key = json.dumps([task, list(arguments)])
        if key in self._cache:
            return self._cache[key]
        worker = self._idle.get()
        try:
            value = worker.ask(task, arguments, self.seconds * 0.8)
        finally:
            self._idle.put(worker)
        with self._lock:
            if len(self._cache) > 100_000:
                self._cache.clear()
            self._cache[key] = value
        return value
