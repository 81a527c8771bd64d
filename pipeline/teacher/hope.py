"""When to stop asking: no request can succeed, or none has for long."""

from __future__ import annotations

from pipeline.errors import UserError
from pipeline.teacher.client import AttemptError
from pipeline.teacher.config import Teacher, TeacherRuntime

UNREACHED, DOUBTED, FAILED = 5, 3, 20
"""Failed connections, refusals and failed requests in a row that end a run without success."""


class UnansweredError(UserError):
    """No request was answered, and none will be before something is mended."""


class Hope:
    """Successes and failures of a run, and what they say of the endpoint."""

    def __init__(self, teacher: Teacher, runtime: TeacherRuntime) -> None:
        self.teacher, self.runtime = teacher, runtime
        self.successes = self.unreached = self.doubted = self.failed = 0

    def answered(self) -> None:
        self.successes += 1
        self.unreached = self.doubted = self.failed = 0

    def attempt(self, error: AttemptError) -> bool:
        """Whether a failed attempt ends the run. A server that once answered may come back."""
        self.unreached = self.unreached + 1 if error.unreached else 0
        self.doubted += error.doubt and not self.successes
        patience = UNREACHED * (self.runtime.max_attempts if self.successes else 1)
        return error.fatal or self.doubted >= DOUBTED or self.unreached >= patience

    def request(self) -> bool:
        """Whether one more request that failed for good ends the run."""
        self.failed += 1
        return self.failed >= FAILED

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
        return UnansweredError(f"{runtime.who} at {runtime.shown_url()} gives no answer "
                               f"({reason}); {remedy}")
