"""When the next request may go: slots in flight, requests a minute, tokens a minute."""

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

MARGIN = 0.98
"""Share of a stated rate that is used: sent evenly at this, no way of counting finds it passed."""
CUT = 0.7
"""Share of the slots kept when the endpoint objects."""
SLOWER = 4.0
"""Rising ends where a token takes this many times as long as at best."""


class TokenBucket:
    """Evenly spaced sending at `rate` units a second; None: as fast as you like."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._next = 0.0

    def wait(self, cost: float) -> float:
        """Seconds until `cost` units may be sent, which are thereby taken."""
        if self.rate is None:
            return 0.0
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + cost / self.rate
        return start - now

    def hold(self, until: float) -> None:
        """Nothing before `until`, and no burst then."""
        self._next = max(self._next, until)


class AdaptiveLimiter:
    """Slots that are refilled the moment they are free, first come, first served.

    Their number doubles with every round of answers until the endpoint objects (429, 503,
    timeouts) or each token takes long; from then on it creeps up by one a round (AIMD, as TCP).
    """

    def __init__(self, slots: int, ceiling: int, rpm: float | None, tpm: float | None) -> None:
        self.slots = float(slots)
        self.ceiling = ceiling
        self.in_flight = 0
        self._requests = TokenBucket(rpm and rpm / 60 * MARGIN)
        self._tokens = TokenBucket(tpm and tpm / 60 * MARGIN)
        self._fixed = rpm is not None, tpm is not None
        self._queue: deque[asyncio.Future[None]] = deque()
        self._doubling = True
        self._held_until = self._last_cut = 0.0
        self._pace = self._best_pace = self._learnt = 0.0

    async def slot(self, tokens: float, *, again: bool = False) -> None:
        """Wait for a slot and for the rates; a repeated attempt goes before new ones."""
        if self.in_flight >= int(self.slots) or self._queue:
            waiter = asyncio.get_running_loop().create_future()
            self._queue.appendleft(waiter) if again else self._queue.append(waiter)
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
            self.free()
            raise

    def free(self) -> None:
        self.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        while self._queue and self.in_flight < int(self.slots):
            waiter = self._queue.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(None)

    def answered(self, seconds: float, tokens: int) -> None:
        """One more answer: rise, unless the slots are not even used or answers got slow."""
        each = seconds / max(tokens, 1)
        self._pace = each if not self._pace else 0.95 * self._pace + 0.05 * each
        self._best_pace = min(self._best_pace or self._pace, self._pace)
        if self._pace > SLOWER * self._best_pace:
            self._doubling = False
        elif self.slots < self.ceiling and self.in_flight >= self.slots / 2:
            self.slots = min(self.ceiling, self.slots + (1 if self._doubling else 1 / self.slots))

    def refused(self, wait: float | None, sent: float) -> None:
        """The endpoint objected to what was sent then: fewer slots, and nothing sent for `wait`.

        What was already on its way when slots were last cut says nothing about the cut.
        """
        now = time.monotonic()
        self._held_until = max(self._held_until, now + (wait or 0.0))
        self._requests.hold(self._held_until)
        self._doubling = False
        if sent > self._last_cut:
            self._last_cut = now
            used = self.slots if self._requests.rate else min(self.slots, self.in_flight + 1)
            self.slots = max(1.0, used * CUT)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take rates from x-ratelimit-* headers (OpenAI's guide to rate limits) unless fixed."""
        if (now := time.monotonic()) < self._learnt + 1:
            return
        self._learnt = now
        for name, bucket, fixed in (("requests", self._requests, self._fixed[0]),
                                    ("tokens", self._tokens, self._fixed[1])):
            rate = None if fixed else stated_rate(headers, name)
            if rate:
                bucket.rate = rate * MARGIN


def stated_rate(headers: Mapping[str, str], name: str) -> float | None:
    """Units a second that x-ratelimit-{limit,remaining,reset}-NAME allow; None where not stated.

    The window is a minute, unless the time until all is available again tells of a longer one.
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


LOCAL = {"solver": 32, "vllm": 1024}
"""For each server: local ones queue by themselves; others are felt out from START to CEILING."""
AHEAD = 1.25
"""Samples in flight for each that a vLLM engine runs at once: its queue never runs empty."""
START, CEILING = 8, 2048


def concurrency_limits(teacher: Teacher, runtime: TeacherRuntime, samples: int) -> tuple[int, int]:
    """(at the start, at most) requests of `samples` or more, no more than files may be open."""
    given = runtime.concurrency or local_concurrency(teacher, samples) * len(runtime.addresses())
    start, ceiling = given or START, given or CEILING
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < ceiling + 256:             # a connection is a file
        soft = min(hard, ceiling + 256)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = max(1, soft - 128)
    return min(start, most), min(ceiling, most)


def local_concurrency(teacher: Teacher, samples: int) -> int:
    """Requests for one local server; 0 where the teacher is none."""
    if teacher.type == "vllm" and isinstance(running := teacher.vllm.get("max_num_seqs"), int):
        return math.ceil(AHEAD * running * data_parallel_size(teacher.vllm) / samples)
    return LOCAL.get(teacher.type, 0)
