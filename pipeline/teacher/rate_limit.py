"""When the next request may be sent: slots in flight, requests and tokens a minute."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import math
import re
import resource
import time
from collections import deque
from collections.abc import Mapping

from pipeline.config.teacher import Teacher, TeacherRuntime
from pipeline.serving.vllm_server import data_parallel_size

RATE_MARGIN = 0.98
"""Share of a stated rate that is used: sent evenly, it stays below however the endpoint counts."""
BACKOFF = 0.7
"""Share of the slots that is kept when the endpoint is overloaded."""
MAX_SLOWDOWN = 4.0
"""Slots stop rising when a token takes this many times as long as at best."""


class TokenBucket:
    """Evenly spaced sending at `rate` units a second; None: no limit."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._next = 0.0

    def wait(self, cost: float) -> float:
        """Take `cost` units; returns the seconds until they may be sent."""
        if self.rate is None:
            return 0.0
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + cost / self.rate
        return start - now

    def hold(self, until: float) -> None:
        """Send nothing before `until`, and no burst then."""
        self._next = max(self._next, until)


class AdaptiveLimiter:
    """Slots for requests in flight, given in order of arrival, whose number adapts (AIMD, as TCP).

    It doubles with every round of answers until the endpoint is overloaded (429, 503, timeouts) or
    slows down; from then on it rises by one a round.
    """

    def __init__(self, slots: int, ceiling: int, rpm: float | None, tpm: float | None) -> None:
        self.slots = float(slots)
        self.ceiling = ceiling
        self.in_flight = 0
        self._requests = TokenBucket(rpm and rpm / 60 * RATE_MARGIN)
        self._tokens = TokenBucket(tpm and tpm / 60 * RATE_MARGIN)
        self._fixed = rpm is not None, tpm is not None
        self._queue: deque[asyncio.Future[None]] = deque()
        self._doubling = True
        self._held_until = self._last_cut = 0.0
        self._mean = self._best_mean = 0.0       # seconds a token, averaged
        self._learned_at = 0.0

    async def acquire(self, tokens: float, *, retry: bool = False) -> None:
        """Wait for a slot and for the rates; a retry goes before new requests."""
        if self.in_flight >= int(self.slots) or self._queue:
            waiter = asyncio.get_running_loop().create_future()
            self._queue.appendleft(waiter) if retry else self._queue.append(waiter)
            self._wake()
            await waiter
        else:
            self.in_flight += 1
        try:
            pause = max(self._requests.wait(1), self._tokens.wait(tokens))
            if pause > 0:
                await asyncio.sleep(pause)
            while (held := self._held_until - time.monotonic()) > 0:
                await asyncio.sleep(held)
        except asyncio.CancelledError:
            self.release()
            raise

    def release(self) -> None:
        self.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        while self._queue and self.in_flight < int(self.slots):
            waiter = self._queue.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(None)

    def on_answer(self, seconds: float, tokens: int) -> None:
        """Raise the slots, unless half of them are idle or answers got slow."""
        each = seconds / max(tokens, 1)
        mean = each if not self._mean else 0.95 * self._mean + 0.05 * each
        self._mean, self._best_mean = mean, min(self._best_mean or mean, mean)
        if mean > MAX_SLOWDOWN * self._best_mean:
            self._doubling = False
        elif self.slots < self.ceiling and self.in_flight >= self.slots / 2:
            self.slots = min(self.ceiling, self.slots + (1 if self._doubling else 1 / self.slots))

    def on_overload(self, wait: float | None, sent: float) -> None:
        """Cut the slots and send nothing for `wait` s; `sent` is when the failed request went out.
        """
        now = time.monotonic()
        self._held_until = max(self._held_until, now + (wait or 0.0))
        self._requests.hold(self._held_until)
        self._doubling = False
        if sent > self._last_cut:        # earlier requests say nothing about the last cut
            self._last_cut = now
            used = self.slots if self._requests.rate else min(self.slots, self.in_flight + 1)
            self.slots = max(1.0, used * BACKOFF)

    def learn_rates(self, headers: Mapping[str, str]) -> None:
        """Take rates from x-ratelimit-* headers (OpenAI's guide to rate limits) unless fixed."""
        if (now := time.monotonic()) < self._learned_at + 1:
            return
        self._learned_at = now
        for name, bucket, fixed in (("requests", self._requests, self._fixed[0]),
                                    ("tokens", self._tokens, self._fixed[1])):
            rate = None if fixed else stated_rate(headers, name)
            if rate:
                bucket.rate = rate * RATE_MARGIN


def stated_rate(headers: Mapping[str, str], name: str) -> float | None:
    """Units a second that x-ratelimit-{limit,remaining,reset}-NAME allow; None if not stated.

    The window is a minute, unless the time until a full reset implies a longer one.
    """
    try:
        limit = float(headers[f"x-ratelimit-limit-{name}"])
        used = limit - float(headers.get(f"x-ratelimit-remaining-{name}", limit))
    except (KeyError, ValueError):
        return None
    if limit <= 0:
        return None
    reset = seconds_of(headers.get(f"x-ratelimit-reset-{name}", ""))
    window = limit * reset / used if used > 0 else 0.0
    return limit / (window if window > 120 else 60.0)


def seconds_of(text: str) -> float:
    """`6m0s`, `1.5s`, `20ms` or a plain number of seconds; 0 for anything else."""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[dhms])", text)
    if parts:
        return sum(float(number) * units[unit] for number, unit in parts)
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that retry-after-ms or Retry-After (a number or an HTTP date) ask for, or None."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text) / unit
    try:
        when = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())


LOCAL_CONCURRENCY = {"solver": 32, "vllm": 1024}
"""For each server, since local ones queue themselves; others start at START_CONCURRENCY."""
OVERCOMMIT = 1.25
"""Samples in flight for each that a vLLM engine runs at once, so that its queue never empties."""
START_CONCURRENCY, MAX_CONCURRENCY = 8, 2048


def concurrency_limits(teacher: Teacher, runtime: TeacherRuntime, samples: int) -> tuple[int, int]:
    """(initial, largest) number of requests in flight, of `samples` or more each."""
    fixed = runtime.concurrency or local_concurrency(teacher, samples) * len(runtime.addresses())
    start, ceiling = fixed or START_CONCURRENCY, fixed or MAX_CONCURRENCY
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < ceiling + 256:             # each connection is an open file
        soft = min(hard, ceiling + 256)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = max(1, soft - 128)
    return min(start, most), min(ceiling, most)


def local_concurrency(teacher: Teacher, samples: int) -> int:
    """Requests in flight for one local server; 0 if the teacher is remote."""
    if teacher.type == "vllm" and isinstance(running := teacher.vllm.get("max_num_seqs"), int):
        return math.ceil(OVERCOMMIT * running * data_parallel_size(teacher.vllm) / samples)
    return LOCAL_CONCURRENCY.get(teacher.type, 0)
