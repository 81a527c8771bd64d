"""Work in parts on every processor or GPU of a cluster; what a lost process had is done elsewhere.

A part is small: names of files that all nodes see, or a few rows. What it makes it writes there
itself, so that no table passes through the machine that deals the parts out.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from pipeline.cluster.ray_nodes import (
    check_same_code,
    code_digest,
    connected,
    first_line,
    lacks_code,
    living_nodes,
    no_node,
    raised_by,
)
from pipeline.config.experiment import RayCluster
from pipeline.errors import UserError

LOOK_SECONDS = 1.0
"""Between two looks at which nodes are there."""
MAX_DEATHS = 10
"""Processes that a part may end, or that end in a row before they began, until the run gives up."""
T = TypeVar("T")


class PartWorker:
    """A process that does parts of one kind of work."""

    def begin(self, work: Callable[[Any], Any], digest: str) -> None:
        """Take up `work`. Raises UserError if this node's code is not that of `digest`."""
        check_same_code(digest)
        self.work = work

    def do(self, part: Any) -> Any:
        """Return what the work makes of `part`."""
        return self.work(part)


class Workers:
    """One process for each processor of the cluster, or for each `gpus` GPUs of a node."""

    def __init__(self, ray: Any, cluster: RayCluster, gpus: int = 0) -> None:
        self.ray, self.cluster, self.gpus = ray, cluster, gpus
        self.actor = ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus)(PartWorker)
        self.idle: list[Any] = []
        self.starting: dict[Any, Any] = {}
        """The process of each call of `begin`."""
        self.deaths, self._looked, self._slots = 0, 0.0, 0
        self.seen = time.monotonic()
        """When a process could last work."""

    def slots(self) -> int:
        """Processes that the cluster has room for now. Raises UserError if no node has the GPUs."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return self._slots
        held = [node["Resources"] for node in living_nodes(self.ray).values()]
        if not self.gpus:
            self._slots = sum(int(one["CPU"]) for one in held)
        else:
            there = sum(int(one.get("GPU", 0)) // self.gpus for one in held)
            self._slots = self.cluster.servers or there
            if not self._slots and not self._looked:
                raise UserError(f"a process of this stage needs {self.gpus} GPU(s) and no node of "
                                "the cluster has them; add nodes with GPUs, or set "
                                "runtime.cluster.servers if an autoscaler brings them")
        self._looked = time.monotonic()
        return self._slots

    def run(self, work: Callable[[Any], T], parts: Iterable[Any]) -> Iterator[tuple[int, T]]:
        """Yield (number of a part, what `work` made of it) as parts are done.

        Raises what `work` raises, and UserError if no node can work.
        """
        left, waiting, tries = enumerate(parts), deque[tuple[int, Any]](), Counter[int]()
        running: dict[Any, tuple[Any, int, Any]] = {}
        shared, self.seen = self.ray.put(work), time.monotonic()
        # Those that have not begun the work before this one begin this after it.
        self.starting = {actor.begin.remote(shared, code_digest()): actor
                         for actor in [*self.idle, *self.starting.values()]}
        self.idle = []
        try:
            while True:
                # No more of them in memory than can be done at once.
                waiting.extend(islice(left, max(0, max(self.slots(), 1) - len(waiting))))
                if not waiting and not running:
                    return
                self._staff(shared, len(waiting) + len(running), len(running))
                while waiting and self.idle:
                    actor, (number, part) = self.idle.pop(), waiting.popleft()
                    running[actor.do.remote(part)] = actor, number, part
                for call in self._done(running):
                    actor, number, part = running.pop(call)
                    try:
                        result = self.ray.get(call)
                    except self.ray.exceptions.RayError as error:
                        tries[number] += 1
                        self._lose(actor, error, tries[number])
                        waiting.appendleft((number, part))
                        continue
                    self.idle.append(actor)
                    yield number, result
        finally:
            for actor, _, _ in running.values():
                self.ray.kill(actor)

    def end(self) -> None:
        """End the processes."""
        for actor in [*self.idle, *self.starting.values()]:
            self.ray.kill(actor)
        self.idle, self.starting = [], {}

    def _staff(self, shared: Any, parts: int, running: int) -> None:
        """Start processes where there is room. Raises UserError if there was none for too long."""
        here = len(self.idle) + len(self.starting) + running
        for _ in range(min(self.slots(), parts) - here):
            actor = self.actor.remote()
            self.starting[actor.begin.remote(shared, code_digest())] = actor
        now = time.monotonic()
        if self.idle or running:
            self.seen = now
        if now - self.seen > self.cluster.patience:
            raise UserError(no_node(now - self.seen))

    def _done(self, running: dict[Any, Any]) -> list[Any]:
        """Parts that are done or lost after a moment; what has begun meanwhile is idle then."""
        calls = [*running, *self.starting]
        if not calls:
            time.sleep(LOOK_SECONDS)
            return []
        ready = self.ray.wait(calls, num_returns=len(calls), timeout=0)[0] or \
            self.ray.wait(calls, timeout=LOOK_SECONDS)[0]
        for call in ready:
            if (actor := self.starting.pop(call, None)) is None:
                continue
            try:
                self.ray.get(call)
            except self.ray.exceptions.RayError as error:
                self.deaths += 1
                self._lose(actor, error, self.deaths)
            else:
                self.deaths = 0
                self.idle.append(actor)
        return [call for call in ready if call in running]

    def _lose(self, actor: Any, error: Exception, times: int) -> None:
        """Forget a process that died. Raises the error of the work, if it was not the process's."""
        self.ray.kill(actor)
        if isinstance(error, self.ray.exceptions.RayTaskError):
            raise raised_by(error) from None
        if lacking := lacks_code(error):
            raise lacking from None
        if times >= MAX_DEATHS:
            raise UserError(f"processes of the cluster end at the same work, {times} times now "
                            f"({first_line(error)}); see `ray status`, and give a node more "
                            "memory") from None


_open: dict[int, tuple[Workers, int]] = {}
"""Workers by their GPUs, and how many blocks use them."""


@contextmanager
def workers(cluster: RayCluster, gpus: int = 0, or_none: bool = False) -> Iterator[Workers]:
    """Yield the cluster's workers; blocks inside one another share them.

    Each has `gpus` GPUs of a node; or a processor alone, if `or_none` and no node has a GPU.
    """
    with connected(cluster) as ray:
        if or_none and not cluster.servers and not any(
                node["Resources"].get("GPU") for node in living_nodes(ray).values()):
            gpus = 0
        crew, users = _open.get(gpus) or (Workers(ray, cluster, gpus), 0)
        _open[gpus] = crew, users + 1
        try:
            yield crew
        finally:
            crew, users = _open.pop(gpus)
            if users > 1:
                _open[gpus] = crew, users - 1
            else:
                crew.end()


def each_part(cluster: RayCluster | None, work: Callable[[Any], T], parts: Iterable[Any],
              gpus: int = 0, or_none: bool = False) -> Iterator[tuple[int, T]]:
    """Yield (number of a part, what `work` made of it): of all here, or on `cluster` as they end.

    Each process of `workers` there has a copy of `work`.
    """
    if cluster is None:
        yield from enumerate(map(work, parts))
        return
    with workers(cluster, gpus, or_none) as crew:
        yield from crew.run(work, parts)
