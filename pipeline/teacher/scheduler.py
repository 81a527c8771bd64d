"""Asks the teacher for every trace that is missing, and keeps each the moment it is finished."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from pipeline.config.teacher import Sampling, Teacher, TeacherRuntime
from pipeline.errors import UserError
from pipeline.teacher.answer import Reply
from pipeline.teacher.batch_files import check_not_in_batch
from pipeline.teacher.budget import Budget, price_of
from pipeline.teacher.client import Client
from pipeline.teacher.failures import AttemptError, FailureTracker
from pipeline.teacher.outcome import Display, Outcome
from pipeline.teacher.rate_limit import AdaptiveLimiter, concurrency_limits
from pipeline.teacher.request import Job, Keys, Request, RequestQueue, jobs, prompt_bound, runs
from pipeline.teacher.store import TraceStore
from pipeline.teacher.trace_rows import asked_row, trace_rows

SOLVER_N = 64


def generate(requests: Iterable[Request], *, teacher: Teacher, sampling: Sampling,
             runtime: TeacherRuntime, store: TraceStore,
             on_progress: Callable[..., None] | None = None, quick: Any = None) -> Outcome:
    """Ask for those of `requests` that `store` does not hold; each finished trace is stored.

    `on_progress(steps, note=...)` is called as traces come in, `quick` (a QuickJudge) sees them.
    One request's failure leaves the others alone. A UserError is raised where nothing ever came and
    nothing can (no connection, a wrong key, an unknown model) or where a batch on its way holds
    some of them.
    """
    requests = list(requests)
    with store.writing():
        missing = store.missing(requests, teacher, sampling)
        outcome = Outcome(wanted=len(missing), reused=len(requests) - len(missing),
                          quick=quick)
        check_not_in_batch(missing, Keys(teacher, sampling), store)
        if missing:
            display = Display(outcome, on_progress)
            run = Scheduler(missing, teacher, sampling, runtime, store, display)
            run.budget.resume(store.spent(requests, teacher, sampling) if runtime.max_usd else 0.0)
            asyncio.run(run.main())
            outcome.unsure_usd = run.budget.unsure_usd()
            outcome.seconds = time.monotonic() - display.began
            outcome.notes += run.client.spread.notes()
            if outcome.asked == outcome.wanted:      # hope was lost after the last of them
                outcome.stopped = None
            if outcome.failed == outcome.asked and outcome.failed and not outcome.reused:
                raise run.hope.sentence(outcome.reasons.most_common(1)[0][0])
    return outcome


class Scheduler:
    """One call of generate: jobs waiting, tasks in flight, and what came of them."""

    def __init__(self, missing: list[Request], teacher: Teacher, sampling: Sampling,
                 runtime: TeacherRuntime, store: TraceStore, display: Display) -> None:
        self.teacher, self.sampling, self.runtime, self.store = teacher, sampling, runtime, store
        self.display, self.outcome = display, display.outcome
        self.keys = Keys(teacher, sampling)
        self.budget = Budget(price_of(teacher, runtime), runtime.max_usd, teacher, sampling)
        self.outcome.notes += self.budget.notes
        self.client = Client(teacher, sampling, runtime)
        n = SOLVER_N if teacher.type == "solver" else runtime.n
        planned = list(jobs(missing, self.keys, n))
        self.hope = FailureTracker(teacher, runtime, planned, self.outcome.reused)
        self.waiting = RequestQueue(planned)
        fewest = min(len(job.samples) for job in planned)
        limits = concurrency_limits(teacher, runtime, fewest)
        self.pace = AdaptiveLimiter(*limits, runtime.rpm, runtime.tpm)
        self.tasks: set[asyncio.Task[None]] = set()
        self.ended = asyncio.Event()
        self.fatal: BaseException | None = None
        self.typical = 500.0             # tokens of an answer, learnt as answers come

    async def main(self) -> None:
        """Fill slots until nothing is left or nothing can succeed."""
        async with self.client:
            try:
                while (job := await self._next()) is not None:
                    await self._start(job)
            finally:                 # whatever is left then waits for another attempt
                for task in self.tasks:
                    task.cancel()
                await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.fatal is not None:
            raise self.fatal

    async def _one_ends(self) -> None:
        self.ended.clear()
        await self.ended.wait()

    async def _next(self) -> Job | None:
        """The next job; None once there is none and none can come back."""
        while self.fatal is None and self.outcome.stopped is None:
            if self.hope.lost is not None:       # an answer to what is in flight may restore it
                await self._last_hope(self.hope.lost)
                continue
            job = self.waiting.take(self.hope.failed)
            if job is None and not self.tasks:
                return None
            if job is None:
                await self._one_ends()
            elif len(job.samples) > 1 and not self.client.honours_n:
                self.waiting.requeue(job, job.samples, 1)
            else:
                return job
        return None

    async def _last_hope(self, reason: str) -> None:
        """Wait while attempts last; end the run where none is left."""
        if self.pace.in_flight:
            await self._one_ends()
        elif self.hope.successes:
            self.outcome.stopped = str(self.hope.sentence(reason))
        else:
            self.fatal = self.hope.sentence(reason)

    async def _start(self, job: Job) -> None:
        """Give the job its share of the budget and a slot, then let it run by itself."""
        worst = self.budget.worst(job)
        while not self.budget.fits(worst):
            if not self.tasks:
                self.outcome.stopped = self.budget.sentence()
                return
            await self._one_ends()
        self.budget.reserved += worst
        try:
            await self.pace.slot(self._expected(job))
        except asyncio.CancelledError:
            self.budget.reserved -= worst
            raise
        if not self._going():
            self.pace.free()
            self.budget.reserved -= worst
            self.waiting.again.append(job)
            return
        task = asyncio.create_task(self._run(job, worst))
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.ended.set()
        if not task.cancelled() and task.exception() is not None:
            self.fatal = self.fatal or task.exception()

    async def _run(self, job: Job, worst: float) -> None:
        """Attempts at one job, which holds a slot while an attempt lasts and not between them."""
        try:
            while True:
                job = replace(job, attempts=job.attempts + 1)
                began = time.monotonic()
                try:
                    error = await self._attempt(job, began)
                finally:
                    self.pace.free()
                if error is None or not await self._try_again(job, error, worst, began):
                    return
        finally:
            self.budget.reserved -= worst

    async def _attempt(self, job: Job, began: float) -> AttemptError | None:
        """What went wrong with one attempt, or None where its answer is stored."""
        try:
            reply = await self.client.ask(job)
        except AttemptError as error:
            return error
        try:
            self._answered(job, reply, time.monotonic() - began)
        except UserError as error:               # before the slot is free: nothing more goes
            self.fatal = self.fatal or error
        return None

    async def _try_again(self, job: Job, error: AttemptError, worst: float,
                         began: float) -> bool:
        """Whether to attempt the job again; if so, after the wait, and with a slot."""
        if error.billed:
            self.budget.unsure += worst
        if error.refused:
            self.pace.refused(min(error.wait or 0.0, self.runtime.max_wait), began)
        self.hope.attempt(job.key, error)
        if error.again and len(job.samples) > 1 and not self.client.honours_n:
            self.waiting.requeue(replace(job, attempts=0), job.samples, 1)
            return False
        left = error.again and job.attempts < self.runtime.max_attempts
        if left and self._going():
            await asyncio.sleep(error.pause(job.attempts, self.runtime.max_wait))
            if self._going() and self.budget.fits(0.0):
                await self.pace.slot(self._expected(job), again=True)
                self.outcome.retries += 1
                return True
        if left and self.hope.lost is not None:
            self.waiting.again.append(job)               # goes on should hope return
        else:
            self._failed(job, str(error))
        return False

    def _going(self) -> bool:
        return self.fatal is None and self.outcome.stopped is None and self.hope.lost is None

    def _failed(self, job: Job, reason: str) -> None:
        """Record a job that failed for good, sample by sample."""
        self.outcome.fail(reason, len(job.samples))
        self.store.append(*(self._asked(job, sample) | {"failure": reason[:300]}
                            for sample in job.samples))
        self.hope.request(job.key, len(job.samples), reason)
        self.display.show(len(job.samples), self.pace.in_flight)

    def _answered(self, job: Job, reply: Reply, seconds: float) -> None:
        """Store what is whole; samples that did not come, or came broken, are asked again."""
        rows = trace_rows(job, reply, self.budget.price, seconds, self.teacher, self.sampling)
        self.hope.answered(job.key, len(rows))
        whole = [self._asked(job, row["sample"]) | row for row in rows]
        self.store.append(*whole)
        for row in whole:
            self.outcome.count(row)
        self.budget.bill(job, reply, rows)
        longest = max((row["completion_tokens"] for row in rows), default=0)
        self.typical += 0.05 * (longest - self.typical)
        self.pace.answered(seconds, longest)
        self.pace.learn(self.client.headers)
        self._ask_rest(job, set(job.samples) - {row["sample"] for row in rows}, bool(reply.broken))
        self.display.show(len(rows), self.pace.in_flight)

    def _asked(self, job: Job, sample: int) -> dict[str, Any]:
        return asked_row(job, sample, self.keys.origin, self.sampling)

    def _ask_rest(self, job: Job, left: set[int], broken: bool) -> None:
        """Queue what a reply left out: broken choices as a further attempt, others one by one."""
        if left and not broken:
            self.client.honours_n = False
            self.waiting.requeue(replace(job, attempts=0), left, 1)
        elif left and job.attempts < self.runtime.max_attempts:
            self.waiting.requeue(job, left, len(left))
        elif left:
            for run in runs(left, len(left)):
                self._failed(replace(job, samples=run), "the answer broke off")

    def _expected(self, job: Job) -> float:
        return prompt_bound(job) / 4 + self.typical * len(job.samples)
