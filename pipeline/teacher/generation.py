"""Asks the teacher for every trace that is missing, and keeps each the moment it is finished."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import UserError
from pipeline.teacher.client import Client, Failure
from pipeline.teacher.config import Sampling, Teacher, TeacherRuntime
from pipeline.teacher.pace import Pace
from pipeline.teacher.prices import Budget, price_of
from pipeline.teacher.reply import Reply
from pipeline.teacher.request import Job, Keys, Request, dump, jobs, runs
from pipeline.teacher.rows import trace_rows
from pipeline.teacher.store import TraceStore

UNREACHED, HOPELESS = 5, 20
"""Failed connections in a row, and failed requests in a row, after which asking stops."""


@dataclass
class Outcome:
    """What a run did; every count is of traces unless it says otherwise."""

    asked: int = 0
    reused: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    cut_off: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unsure_usd: float = 0.0
    """Upper bound of what attempts without a bill may have cost besides."""
    seconds: float = 0.0
    stopped: str | None = None
    """Why asking ended before everything was asked, if it did."""
    notes: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


Progress = Callable[..., None]


def generate(requests: Iterable[Request], *, teacher: Teacher, sampling: Sampling,
             runtime: TeacherRuntime, store: TraceStore, on_progress: Progress | None = None,
             accept: Callable[[dict[str, Any]], bool | None] | None = None) -> Outcome:
    """Ask for those of `requests` that `store` does not hold; each finished trace is stored.

    `on_progress(steps, note=...)` is called as traces come in; `accept` is a quick judge of a
    stored row, for the share accepted so far. One request's failure leaves the others alone; a
    UserError is raised where none can succeed (no connection, a wrong key, an unknown model).
    """
    requests = list(requests)
    with store.writing():
        missing = store.missing(requests, teacher, sampling)
        run = _Run(missing, teacher, sampling, runtime, store, on_progress, accept)
        run.outcome.reused = len(requests) - len(missing)
        if missing:
            try:
                asyncio.run(run.main())
            finally:
                run.outcome.seconds = time.monotonic() - run.started
    outcome = run.outcome
    if outcome.failed and outcome.failed == outcome.asked and not outcome.reused:
        raise run.hopeless(outcome.reasons.most_common(1)[0][0])
    return outcome


class _Run:
    """One call of generate: jobs waiting, tasks in flight, and what came of them."""

    def __init__(self, missing: list[Request], teacher: Teacher, sampling: Sampling,
                 runtime: TeacherRuntime, store: TraceStore, on_progress: Progress | None,
                 accept: Callable[[dict[str, Any]], bool | None] | None) -> None:
        self.teacher, self.sampling, self.runtime, self.store = teacher, sampling, runtime, store
        self.accept, self.on_progress = accept, on_progress
        self.keys = Keys(teacher, sampling)
        self.budget = Budget(price_of(teacher, runtime), runtime.max_usd, teacher.model)
        self.client = Client(teacher, sampling, runtime)
        self.pace = Pace(*_slots(teacher, runtime), runtime.rpm, runtime.tpm)
        self.fresh = jobs(missing, self.keys, 64 if teacher.type == "solver" else runtime.n)
        self.again: deque[Job] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
        self.outcome = Outcome()
        self.fatal: UserError | None = None
        self.in_a_row = self.unreached = self.successes = 0
        self.typical = 500.0             # tokens of an answer, learnt as answers come
        self.started = time.monotonic()
        if runtime.max_usd is not None and sampling.max_tokens is None:
            raise UserError("runtime.teacher.max_usd needs generate.sampling.max_tokens: without "
                            "a limit nobody knows what a request may cost")

    async def main(self) -> None:
        """Fill slots until nothing is left or nothing can succeed."""
        async with self.client:
            try:
                while (job := await self._next()) is not None:
                    await self._start(job)
                while self.tasks and self.fatal is None:
                    await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in self.tasks:
                    task.cancel()
                await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.fatal is not None:
            raise self.fatal

    async def _next(self) -> Job | None:
        """The next job; None once there is none and none can come back."""
        while self.fatal is None and self.outcome.stopped is None:
            if self.again:
                return self.again.popleft()
            job = next(self.fresh, None)
            if job is not None:
                if len(job.samples) > 1 and not self.client.honours_n:
                    self.again.extend(replace(job, samples=run) for run in runs(job.samples, 1))
                    continue
                return job
            if not self.tasks:
                return None
            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
        return None

    async def _start(self, job: Job) -> None:
        """Give the job a slot and its share of the budget, then let it run by itself."""
        worst = self._worst(job)
        while not self.budget.fits(worst):
            if not self.tasks:
                self.outcome.stopped = (f"the next request might pass max_usd "
                                        f"{self.runtime.max_usd:g}")
                return
            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
        self.budget.reserved += worst
        try:
            await self.pace.slot(self._expected(job))
        except asyncio.CancelledError:
            self.budget.reserved -= worst
            raise
        task = asyncio.create_task(self._run(job, worst))
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self.fatal = error if isinstance(error, UserError) else self.fatal
            if self.fatal is None:
                raise error

    async def _run(self, job: Job, worst: float) -> None:
        """Attempts at one job, which holds a slot at the start and at every further attempt."""
        try:
            while True:
                job = replace(job, attempts=job.attempts + 1)
                began = time.monotonic()
                try:
                    reply = await self.client.ask(job)
                except Failure as failure:
                    self.pace.free()
                    if not await self._failed(job, failure, worst):
                        return
                except BaseException:
                    self.pace.free()
                    raise
                else:
                    self.pace.free()
                    return self._answered(job, reply, time.monotonic() - began)
        finally:
            self.budget.reserved -= worst

    async def _failed(self, job: Job, failure: Failure, worst: float) -> bool:
        """Whether to try again, after waiting for it and for a slot."""
        if failure.billed:
            self.budget.unsure += worst
            self.outcome.unsure_usd += worst
        if failure.refused:
            self.pace.refused(min(failure.wait or 0.0, self.runtime.max_wait))
        self._give_up_early(failure)
        if failure.again and not self.client.honours_n and len(job.samples) > 1:
            self.again.extend(replace(job, samples=run) for run in runs(job.samples, 1))
            return False
        over = job.attempts >= self.runtime.max_attempts or self.outcome.stopped or self.fatal
        if not failure.again or over or not self.budget.fits(worst if failure.billed else 0.0):
            self._record_failure(job, str(failure))
            return False
        self.outcome.retries += 1
        wait = failure.wait
        if wait is None:
            wait = min(0.5 * 2 ** (job.attempts - 1), 30.0) * random.uniform(0.5, 1.0)
        await asyncio.sleep(min(wait, self.runtime.max_wait))
        await self.pace.slot(self._expected(job), again=True)
        return True

    def _give_up_early(self, failure: Failure) -> None:
        """Stop the whole run where no request can succeed, now or after a while."""
        self.unreached = self.unreached + 1 if failure.unreached else 0
        dead = self.unreached >= UNREACHED
        if (failure.fatal or dead) and not self.successes:
            self.fatal = self.hopeless(str(failure))
        elif failure.fatal or self.unreached >= UNREACHED * self.runtime.max_attempts:
            self.outcome.stopped = str(failure)

    def _record_failure(self, job: Job, reason: str) -> None:
        self.in_a_row += 1
        self.outcome.asked += len(job.samples)
        self.outcome.failed += len(job.samples)
        self.outcome.reasons[reason[:160]] += len(job.samples)
        for sample in job.samples:
            self.store.append(self._row(job, sample) | {"failure": reason[:300]})
        if self.in_a_row >= HOPELESS and self.outcome.stopped is None:
            self.outcome.stopped = f"{self.in_a_row} requests in a row failed, the last: {reason}"
            if not self.successes:
                self.fatal = self.hopeless(reason)
        self._report(len(job.samples))

    def hopeless(self, reason: str) -> UserError:
        """The sentence for a teacher that gives nothing."""
        url = self.runtime.shown_url()
        remedy = "see that it runs and that runtime.teacher.base_url is right"
        if reason.startswith(("HTTP 401", "HTTP 403")):
            remedy = f"set {self.runtime.api_key_env} to a valid key for it"
        elif reason.startswith("HTTP 404"):
            remedy = (f"check that runtime.teacher.base_url ends as the endpoint wants (usually "
                      f"/v1) and that it serves model {self.teacher.model!r}")
        elif reason.startswith("HTTP 402") or "quota" in reason:
            remedy = "top up the account"
        return UserError(f"the teacher at {url} gives no answer ({reason}); {remedy}")

    def _answered(self, job: Job, reply: Reply, seconds: float) -> None:
        """Store what is whole; samples that did not come, or came broken, are asked again."""
        self.in_a_row, self.successes = 0, self.successes + 1
        rows = trace_rows(job, reply, self.budget.price, seconds, self.sampling)
        for row in rows:
            row.update({k: v for k, v in self._row(job, row["sample"]).items() if k not in row})
            self.store.append(row)
            self._count(row)
        tokens = sum(row["completion_tokens"] for row in rows)
        self.typical += 0.05 * (tokens / len(rows) - self.typical)
        self.pace.answered(seconds, max(row["completion_tokens"] for row in rows))
        self.pace.learn(self.client.headers)
        left = set(job.samples) - {row["sample"] for row in rows}
        if left:
            self.client.honours_n = self.client.honours_n and bool(reply.broken)
            self._leave(job, left)
        self._report(len(rows))

    def _leave(self, job: Job, left: set[int]) -> None:
        """Queue the samples a reply left out; those it broke have used up an attempt."""
        for run in runs(left, len(left) if self.client.honours_n else 1):
            rest = replace(job, samples=run, attempts=job.attempts if self.client.honours_n else 0)
            if rest.attempts >= self.runtime.max_attempts:
                self._record_failure(rest, "the answer broke off")
            else:
                self.again.append(rest)

    def _count(self, row: dict[str, Any]) -> None:
        outcome = self.outcome
        outcome.asked += 1
        outcome.cut_off += row["finish_reason"] == "length"
        outcome.prompt_tokens += row["prompt_tokens"]
        outcome.completion_tokens += row["completion_tokens"]
        outcome.cost_usd += row["cost_usd"]
        self.budget.spent += row["cost_usd"]

    def _row(self, job: Job, sample: int) -> dict[str, Any]:
        """The columns that do not depend on the answer."""
        return {"key": job.key, "sample": sample, "model": self.teacher.model,
                "max_tokens": self.sampling.max_tokens, "failure": None,
                "origin": self.keys.origin, "messages": dump(job.messages)}

    def _prompt(self, job: Job) -> int:
        """No fewer tokens than the prompt has: a token is a byte at least, a turn adds few."""
        return sum(len(str(m.get("content")).encode()) + 16 for m in job.messages) + 16

    def _expected(self, job: Job) -> float:
        return self._prompt(job) / 4 + self.typical * len(job.samples)

    def _worst(self, job: Job) -> float:
        limit = self.sampling.max_tokens or 0
        return self.budget.price.worst(self._prompt(job), limit * len(job.samples))

    def _report(self, steps: int) -> None:
        if self.on_progress is not None:
            self.on_progress(steps, note=self._note())

    def _note(self) -> str:
        outcome, passed = self.outcome, time.monotonic() - self.started
        return f"{outcome.completion_tokens / max(passed, 1e-3):,.0f} tok/s"


def _slots(teacher: Teacher, runtime: TeacherRuntime) -> tuple[int, int]:
    """(slots at the start, ceiling): local servers queue by themselves, others are felt out."""
    local = {"solver": 32, "vllm": 1024}.get(teacher.type)
    start = runtime.concurrency or local or 32
    ceiling = runtime.concurrency or local or 2048
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < ceiling + 256:             # a connection is a file
        with contextlib.suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, ceiling + 256), hard))
            soft = min(hard, ceiling + 256)
    most = max(1, soft - 128)
    return min(start, most), min(ceiling, most)
