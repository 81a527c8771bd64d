"""Verdicts from every processor of a cluster, the same as those of this machine alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import lru_cache
from types import TracebackType
from typing import Any

from pipeline.cluster.ray_nodes import (
    check_same_code,
    code_digest,
    connected,
    first_line,
    lacks_code,
    living_nodes,
)
from pipeline.completion import Completion
from pipeline.config.experiment import RayCluster, Runtime
from pipeline.errors import UserError
from pipeline.judge import Judgement, JudgePool, Problem

PARTS, MOST = 8, 64
"""Tasks for each processor, so that none waits long for the last, and completions of a task."""
RETRIES = 10
"""Times that a task is repeated whose node is lost."""


def judge_pool(runtime: Runtime) -> JudgePool:
    """The pool of `runtime`: the processes of this machine, or a cluster's."""
    if runtime.cluster is None:
        return JudgePool(runtime.judge_workers)
    return ClusterPool(runtime.cluster, runtime.judge_workers)


class ClusterPool(JudgePool):
    """Judges tables on a cluster, and single answers by `workers` processes here."""

    def __init__(self, cluster: RayCluster, workers: int) -> None:
        super().__init__(workers)
        self.cluster, self.stack = cluster, ExitStack()
        self.ray: Any = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stack.close()
        super().__exit__(kind, error, trace)

    def judge_many(self, completions: Iterable[str | Completion], problems: Iterable[Problem],
                   progress: Callable[[int], None] | None = None) -> list[Judgement]:
        """Judge all, in order, as JudgePool does. Raises UserError if the cluster cannot."""
        if self.ray is None:
            self.ray = self.stack.enter_context(connected(self.cluster))
        rows = list(zip(completions, problems, strict=True))
        out: list[list[Judgement]] = []
        parts = self._parts(rows)
        calls = [self._task().remote(part, code_digest()) for part in parts]
        for call in calls:
            out.append(self._get(call))
            if progress:
                progress(sum(map(len, out)))
        return [one for part in out for one in part]

    def _parts(self, rows: list[Any]) -> list[list[Any]]:
        processors = sum(node["Resources"]["CPU"] for node in living_nodes(self.ray).values())
        size = min(MOST, max(1, int(len(rows) / (PARTS * max(processors, 1)))))
        return [rows[start:start + size] for start in range(0, len(rows), size)]

    def _task(self) -> Any:
        return self.ray.remote(num_cpus=1, max_retries=RETRIES)(judge_part)

    def _get(self, call: Any) -> list[Judgement]:
        try:
            return self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise lacks_code(error) or error from None
        except self.ray.exceptions.RayError as error:
            raise lacks_code(error) or UserError(
                f"the cluster could not judge ({first_line(error)}); see `ray "
                "status`, and run the same command again") from None


def judge_part(rows: list[tuple[str | Completion, Problem]], digest: str) -> list[Judgement]:
    """Judge `rows` on this node. Raises UserError if its code is not that of `digest`."""
    check_same_code(digest)
    completions, problems = zip(*rows, strict=True)
    return _pool().judge_many(completions, problems)


@lru_cache(maxsize=1)
def _pool() -> JudgePool:
    # A process of Ray's does one task at a time, and keeps its worker for the next.
    return JudgePool(workers=1)
