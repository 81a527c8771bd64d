"""When to stop asking: no request can succeed, or none has for long."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from pipeline.config.teacher import Teacher, TeacherRuntime
from pipeline.errors import UserError
from pipeline.teacher.request import Job

UNREACHED, DOUBTED, FAILED = 5, 3, 20
"""Failed connections, problems refused and problems failed, in a row, after which hope is lost.

Where fewer problems are left than FAILED: so many requests for them, once each has failed.
"""


class UnansweredError(UserError):
    """No request was answered, and none will be before something is mended."""


class FailureTracker:
    """Successes and failures of a run, and what they say of the endpoint.

    `earlier`: traces of the same requests that it gave before. `lost`: why no request seems to
    have a chance, until one that was in flight is answered all the same. Failures count by
    problem: many samples of one that a moderator refuses say nothing about the others.
    `left`: samples of each problem that have neither come nor failed, by key.
    """

    def __init__(self, teacher: Teacher, runtime: TeacherRuntime, planned: Iterable[Job] = (),
                 earlier: int = 0) -> None:
        self.teacher, self.runtime = teacher, runtime
        self.successes, self.unreached = earlier, 0
        self.doubted: set[str] = set()
        self.failed: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        for job in planned:
            self.left[job.key] += len(job.samples)
        self.lost: str | None = None

    def answered(self, key: str, samples: int) -> None:
        """Take an answer of so many samples into account."""
        self._ended(key, samples)
        self.successes += 1
        self.unreached, self.lost = 0, None
        self.doubted.clear()
        self.failed.clear()

    def attempt(self, key: str, error: AttemptError) -> None:
        """Take a failed attempt into account. A server that once answered may come back."""
        self.unreached = self.unreached + 1 if error.unreached else 0
        if error.doubt and not self.successes:
            self.doubted.add(key)
        patience = UNREACHED * (self.runtime.max_attempts if self.successes else 1)
        if error.fatal or len(self.doubted) >= DOUBTED or self.unreached >= patience:
            self.lost = str(error)

    def request(self, key: str, samples: int, reason: str) -> None:
        """Take a request of so many samples that failed for good into account."""
        self._ended(key, samples)
        self.failed[key] += 1
        all_failed = self.failed.total() >= FAILED and self.left.keys() <= self.failed.keys()
        if len(self.failed) >= FAILED or all_failed:
            count = "1 problem" if len(self.failed) == 1 else f"{len(self.failed)} problems"
            self.lost = self.lost or (f"requests for {count} in a row failed, "
                                      f"the last with {reason}")

    def _ended(self, key: str, samples: int) -> None:
        self.left[key] -= samples
        if self.left[key] <= 0:
            del self.left[key]

    def sentence(self, reason: str) -> UnansweredError:
        """What a teacher that gives nothing is told of, with the remedy."""
        runtime, remedy = self.runtime, "see what its log says"
        if reason.startswith(("HTTP 401", "HTTP 403")):
            remedy = f"set {runtime.api_key_env} to a valid key for it"
        elif reason.startswith("HTTP 404"):
            remedy = (f"check that {runtime.where}.base_url ends as the endpoint wants (usually "
                      f"/v1) and that it serves model {self.teacher.model!r}")
        elif reason.startswith("HTTP 402") or "quota" in reason:
            remedy = "top up the account"
        elif self.unreached:
            remedy = f"see that it runs and that {runtime.where}.base_url is right"
        what = "no more answers" if self.successes else "no answer"
        return UnansweredError(f"{runtime.who} at {runtime.shown_url()} gives {what} "
                               f"({reason}); {remedy}")


class AttemptError(Exception):
    """One attempt that gave no whole answer.

    `again`: worth another attempt; `fatal`: no request can succeed; `doubt`: perhaps none can;
    `refused`: the endpoint has too much to do; `unreached`: no connection; `billed`: it may be
    charged all the same; `wait`: seconds the endpoint asked for.
    """

    def __init__(self, reason: str, *, again: bool = False, fatal: bool = False,
                 doubt: bool = False, refused: bool = False, unreached: bool = False,
                 billed: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.again, self.fatal, self.doubt, self.refused = again, fatal, doubt, refused
        self.unreached, self.billed, self.wait = unreached, billed, wait

    def pause(self, attempts: int, most: float) -> float:
        """Seconds until the next attempt, after so many: as asked for, else doubling."""
        doubling = min(0.5 * 2 ** (attempts - 1), 30.0) * random.uniform(0.5, 1.0)
        return min(doubling if self.wait is None else self.wait, most)
