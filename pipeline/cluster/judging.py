"""Verdicts and signatures from every processor of a cluster, the same as this machine's alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from types import TracebackType

import numpy as np

from pipeline.cluster.parts import Workers, workers
from pipeline.completion import Completion
from pipeline.config.experiment import RayCluster, Runtime
from pipeline.curate.near_duplicates import Sign, signatures, signatures_of_all
from pipeline.judge import Judgement, JudgePool, Problem

PARTS, MOST = 16, 64
"""Parts for each processor, so that none waits long for the last, and rows of one."""


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
        self.crew: Workers | None = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stack.close()
        super().__exit__(kind, error, trace)

    def judge_many(self, completions: Iterable[str | Completion], problems: Iterable[Problem],
                   progress: Callable[[int], None] | None = None) -> list[Judgement]:
        """Judge all, in order, as JudgePool does. Raises UserError if the cluster cannot."""
        if self.crew is None:
            self.crew = self.stack.enter_context(workers(self.cluster))
        rows = list(zip(completions, problems, strict=True))
        size = min(MOST, max(1, len(rows) // (PARTS * max(self.crew.slots(), 1))))
        parts = (rows[start:start + size] for start in range(0, len(rows), size))
        out, done = dict[int, list[Judgement]](), 0
        for number, found in self.crew.run(judge_part, parts):
            out[number] = found
            done += len(found)
            if progress:
                progress(done)
        return [one for number in range(len(out)) for one in out[number]]


def judge_part(rows: list[tuple[str | Completion, Problem]]) -> list[Judgement]:
    """Judge `rows` on this node."""
    completions, problems = zip(*rows, strict=True)
    return _pool().judge_many(completions, problems)


@lru_cache(maxsize=1)
def _pool() -> JudgePool:
    # A process does one part at a time, and keeps its worker for the next.
    return JudgePool(workers=1)


@contextmanager
def signer(cluster: RayCluster | None) -> Iterator[Sign]:
    """Yield near_duplicates.signatures_of_all, or what makes the same over `cluster`."""
    if cluster is None:
        yield signatures_of_all
        return
    with workers(cluster) as crew:
        def sign(parts: Iterable[Sequence[str]]) -> np.ndarray:
            found = dict(crew.run(signatures, parts))
            return np.concatenate([signatures([]), *(found[i] for i in range(len(found)))])

        yield sign
