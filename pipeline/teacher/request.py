"""What is asked: one sample of one problem, the key it is stored under, and requests for it."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pipeline.completion import Messages
from pipeline.config.teacher import Sampling, Teacher


class Request(NamedTuple):
    """One sample wanted: the problem it is for, its index, and the rendered chat."""

    problem_id: str
    sample: int
    messages: Messages


@dataclass(frozen=True)
class Job:
    """One request to the endpoint: consecutive samples of one chat."""

    key: str
    messages: Messages
    samples: range
    attempts: int = 0


def dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class Keys:
    """Digests of (teacher, sampling without max_tokens, messages); one chat is digested once."""

    def __init__(self, teacher: Teacher, sampling: Sampling) -> None:
        self.origin = dump([teacher.identity(), sampling.identity()])
        self._seen: dict[int, tuple[Messages, str]] = {}

    def of(self, messages: Messages) -> str:
        """32 hex digits. Holding on to `messages` keeps its id from being used again."""
        known = self._seen.get(id(messages))
        if known is None:
            text = f"{self.origin}\n{dump(messages)}".encode("utf-8", "surrogatepass")
            known = messages, hashlib.blake2b(text, digest_size=16).hexdigest()
            self._seen[id(messages)] = known
        return known[1]


def jobs(requests: Iterable[Request], keys: Keys, n: int) -> Iterator[Job]:
    """Requests as jobs of at most `n` consecutive samples; equal chats are asked once."""
    wanted: dict[str, tuple[Messages, set[int]]] = {}
    for request in requests:
        wanted.setdefault(keys.of(request.messages), (request.messages, set()))[1].add(
            request.sample)
    for key, (messages, samples) in wanted.items():
        for run in runs(samples, n):
            yield Job(key, messages, run)


def runs(samples: Iterable[int], n: int) -> Iterator[range]:
    """Maximal runs of consecutive numbers, none longer than `n`."""
    run = range(0)
    for sample in sorted(samples):
        if run and (sample != run.stop or len(run) >= n):
            yield run
            run = range(0)
        run = range(run.start if run else sample, sample + 1)
    if run:
        yield run


def prompt_bound(job: Job) -> int:
    """No fewer tokens than the prompt has: each is a byte at least, a turn adds few."""
    return 16 + sum(16 + len(str(message.get("content")).encode("utf-8", "replace"))
                    for message in job.messages)


class RequestQueue:
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
