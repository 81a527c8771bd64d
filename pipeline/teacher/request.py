"""What is asked: samples of a problem, the key each is stored under, and the queue of requests."""

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
    """One wanted sample: its problem, its index, and the rendered chat."""

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

    def names(self) -> list[str]:
        """One name for each sample, by which it is leased."""
        return [f"{self.key}:{sample}" for sample in self.samples]


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class Keys:
    """Digests of (teacher, sampling without max_tokens, messages); each chat is digested once."""

    def __init__(self, teacher: Teacher, sampling: Sampling) -> None:
        self.origin = canonical_json([teacher.identity(), sampling.identity()])
        self._seen: dict[int, tuple[Messages, str]] = {}

    def of(self, messages: Messages) -> str:
        """32 hex digits."""
        known = self._seen.get(id(messages))
        if known is None:
            known = messages, self.digest(messages).hex()
            self._seen[id(messages)] = known     # holding `messages` keeps its id from reuse
        return known[1]

    def digest(self, messages: Messages) -> bytes:
        """The 16 bytes of `of`, and nothing is kept."""
        text = f"{self.origin}\n{canonical_json(messages)}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16).digest()


def jobs(requests: Iterable[Request], keys: Keys, n: int) -> Iterator[Job]:
    """Group requests into jobs of at most `n` consecutive samples; equal chats are asked once."""
    wanted: dict[str, tuple[Messages, set[int]]] = {}
    for request in requests:
        wanted.setdefault(keys.of(request.messages), (request.messages, set()))[1].add(
            request.sample)
    for key, (messages, samples) in wanted.items():
        for part in consecutive(samples, n):
            yield Job(key, messages, part)


def consecutive(samples: Iterable[int], n: int) -> Iterator[range]:
    """Maximal ranges of consecutive numbers, none longer than `n`."""
    part = range(0)
    for sample in sorted(samples):
        if part and (sample != part.stop or len(part) >= n):
            yield part
            part = range(0)
        part = range(part.start if part else sample, sample + 1)
    if part:
        yield part


def prompt_bound(job: Job) -> int:
    """Upper bound of the prompt's tokens."""
    # A token is one byte at least, and a turn adds few.
    return 16 + sum(16 + len(str(message.get("content")).encode("utf-8", "replace"))
                    for message in job.messages)


class RequestQueue:
    """Jobs in order: retries, then new ones, then those of problems that failed before.

    After a failure each problem is tried once in turn until one is answered, so few requests tell
    whether one problem is refused or all are.
    """

    def __init__(self, planned: Iterable[Job]) -> None:
        self.retries: deque[Job] = deque()
        self.new, self.failed_before = deque(planned), deque[Job]()
        self.last = ""

    def take(self, failed: Collection[str]) -> Job | None:
        """Take the next job; `failed` holds the keys of the problems that failed lately."""
        if self.retries:
            return self.retries.popleft()
        while failed and self.new and self.new[0].key in {self.last, *failed}:
            self.failed_before.append(self.new.popleft())
        waiting = self.new or self.failed_before
        job = waiting.popleft() if waiting else None
        self.last = job.key if job else ""
        return job

    def requeue(self, job: Job, samples: Iterable[int], n: int) -> None:
        """Queue samples of `job` for another attempt, at most `n` together."""
        self.retries.extend(replace(job, samples=part) for part in consecutive(samples, n))
