"""When to stop asking: no request can succeed, or none has for long."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pipeline.config.teacher import Teacher, TeacherRuntime
from pipeline.errors import UserError
from pipeline.proxies import proxy_of
from pipeline.teacher.request import Job

MAX_UNREACHED, MAX_SUSPECT, MAX_FAILED = 5, 3, 20
"""Failed connections, suspect problems and failed problems in a row after which asking stops.

With fewer than MAX_FAILED problems left it stops after as many failed requests, once each problem
has failed.
"""
Cause = Literal["request", "overload", "unreachable", "suspect", "fatal"]
"""What failed: this request; an endpoint with too much to do; every connection; perhaps all
requests (a wrong address, or one question that a moderator refuses); certainly all of them."""


class UnansweredError(UserError):
    """No request was answered, and none will be before something is fixed."""


class FailureTracker:
    """Successes and failures of a run, and whether it makes sense to go on.

    Failures count by problem: many samples of one that a moderator refuses say nothing about the
    others. `give_up_reason` is reset if a request in flight is answered after all.
    """

    def __init__(self, teacher: Teacher, runtime: TeacherRuntime, planned: Iterable[Job] = (),
                 earlier: int = 0) -> None:
        self.teacher, self.runtime = teacher, runtime
        self.successes = earlier         # `earlier`: traces of the same requests, from other runs
        self.unreached = 0
        self.suspect: set[str] = set()
        self.failed: Counter[str] = Counter()
        self.pending: Counter[str] = Counter()      # samples by problem, neither come nor failed
        for job in planned:
            self.pending[job.key] += len(job.samples)
        self.give_up_reason: str | None = None

    def record_answer(self, key: str, samples: int) -> None:
        self._settle(key, samples)
        self.successes += 1
        self.unreached, self.give_up_reason = 0, None
        self.suspect.clear()
        self.failed.clear()

    def record_elsewhere(self, key: str, samples: int) -> None:
        """Expect nothing more of samples that another process asked for."""
        self._settle(key, samples)

    def record_attempt(self, key: str, error: AttemptError) -> None:
        """Count a failed attempt. A server that once answered may come back, so it gets longer."""
        self.unreached = self.unreached + 1 if error.cause == "unreachable" else 0
        if error.cause == "suspect" and not self.successes:
            self.suspect.add(key)
        patience = MAX_UNREACHED * (self.runtime.max_attempts if self.successes else 1)
        if error.cause == "fatal" or len(self.suspect) >= MAX_SUSPECT or self.unreached >= patience:
            self.give_up_reason = str(error)

    def record_failure(self, key: str, samples: int, reason: str) -> None:
        """Count a request that failed for good."""
        self._settle(key, samples)
        self.failed[key] += 1
        all_failed = (self.failed.total() >= MAX_FAILED
                      and self.pending.keys() <= self.failed.keys())
        if len(self.failed) >= MAX_FAILED or all_failed:
            count = "1 problem" if len(self.failed) == 1 else f"{len(self.failed)} problems"
            self.give_up_reason = self.give_up_reason or (
                f"requests for {count} in a row failed, the last with {reason}")

    def _settle(self, key: str, samples: int) -> None:
        self.pending[key] -= samples
        if self.pending[key] <= 0:
            del self.pending[key]

    def error(self, reason: str) -> UnansweredError:
        """The error of a teacher that stopped answering, with the fix."""
        runtime, remedy = self.runtime, "see its log"
        if reason.startswith(("HTTP 401", "HTTP 403")):
            remedy = f"set {runtime.api_key_env} to a valid key for it"
        elif reason.startswith("HTTP 404"):
            remedy = (f"check that {runtime.where}.base_url ends as the endpoint wants (usually "
                      f"/v1) and that it serves model {self.teacher.model!r}")
        elif reason.startswith("HTTP 402") or "quota" in reason:
            remedy = "top up the account"
        elif self.unreached:
            remedy = f"check that it runs and that {runtime.where}.base_url is right"
            if self.teacher.type == "vllm":
                remedy = f"see vllm*.log in runtime.traces; if you serve it yourself, {remedy}"
        if proxies := sorted(set(filter(None, map(proxy_of, runtime.addresses())))):
            remedy += (f"; it is asked through the proxy {' and '.join(proxies)}: if that is what "
                       "fails, add its host to NO_PROXY")
        what = "no more answers" if self.successes else "no answer"
        return UnansweredError(f"{runtime.who} at {runtime.shown_url()} gives {what} "
                               f"({reason}); {remedy}")


class AttemptError(Exception):
    """One attempt without a complete answer.

    `retry`: another attempt may succeed; `billed`: it may be charged all the same; `wait`: seconds
    the endpoint asked for.
    """

    def __init__(self, reason: str, cause: Cause = "request", *, retry: bool = False,
                 billed: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.cause, self.retry, self.billed, self.wait = cause, retry, billed, wait

    def pause(self, attempts: int, most: float) -> float:
        """Seconds until the next attempt after `attempts`: as asked for, else doubling."""
        doubling = min(0.5 * 2 ** (attempts - 1), 30.0) * random.uniform(0.5, 1.0)
        return min(doubling if self.wait is None else self.wait, most)
