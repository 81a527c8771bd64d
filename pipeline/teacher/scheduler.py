"""Asks the teacher for every missing trace and stores each the moment it is finished."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pipeline.config.teacher import Sampling, Teacher, TeacherRuntime
from pipeline.errors import UserError
from pipeline.leases import LOOK_SECONDS, Leases
from pipeline.teacher.answer import Reply
from pipeline.teacher.batch_files import check_not_in_batch
from pipeline.teacher.budget import Budget, price_of
from pipeline.teacher.client import Client
from pipeline.teacher.failures import AttemptError, FailureTracker
from pipeline.teacher.outcome import Display, Outcome
from pipeline.teacher.rate_limit import AdaptiveLimiter, concurrency_limits
from pipeline.teacher.request import (
    Job,
    Keys,
    Request,
    consecutive,
    jobs,
    prompt_bound,
)
from pipeline.teacher.share import SharedQueue
from pipeline.teacher.store import TraceStore
from pipeline.teacher.trace_rows import asked_row, trace_rows

SOLVER_N = 64


def generate(requests: Sequence[Request], *, teacher: Teacher, sampling: Sampling,
             runtime: TeacherRuntime, store: TraceStore,
             on_progress: Callable[..., None] | None = None, accept_rate: Any = None) -> Outcome:
    """Ask for those of `requests` that `store` lacks; each finished trace is stored.

    Other processes that ask for the same through this store share the requests with this one, and
    it returns when theirs have ended too. `on_progress(steps, note=...)` is called as traces come
    in; `accept_rate` (an AcceptRate) judges them. One request's failure leaves the others alone.
    Raises UserError if no answer ever came and none can (no connection, a wrong key, an unknown
    model) or if a pending batch holds some.
    """
    with store.writing() as leases:
        missing = store.missing(requests, teacher, sampling)
        outcome = Outcome(wanted=len(missing), reused=len(requests) - len(missing),
                          accept_rate=accept_rate)
        check_not_in_batch(missing, Keys(teacher, sampling), store)
        if missing:
            display = Display(outcome, on_progress)
            run = Scheduler(missing, teacher, sampling, runtime, store, leases, display)
            if runtime.max_usd:
                run.budget.resume(store.spent(requests, teacher, sampling))
                run.queue.count_lost(requests, run.keys)
            asyncio.run(run.main())
            outcome.unsure_usd = run.budget.unsure_usd()
            outcome.seconds = time.monotonic() - display.began
            outcome.notes += run.client.balancer.notes()
            if outcome.asked == outcome.wanted:      # given up when nothing was left to ask
                outcome.stopped = None
            if outcome.failed == outcome.asked and outcome.failed and not outcome.reused:
                raise run.failures.error(outcome.reasons.most_common(1)[0][0])
    return outcome


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report an error that nobody waited for; a stop that a task met is told once, by the command.
    """
    if not isinstance(context.get("exception"), KeyboardInterrupt):
        loop.default_exception_handler(context)


class Scheduler:
    """One call of generate: queued jobs, tasks in flight, and their outcome."""

    def __init__(self, missing: Sequence[Request], teacher: Teacher, sampling: Sampling,
                 runtime: TeacherRuntime, store: TraceStore, leases: Leases, display: Display
                 ) -> None:
        self.teacher, self.sampling, self.runtime, self.store = teacher, sampling, runtime, store
        self.display, self.outcome = display, display.outcome
        self.keys = Keys(teacher, sampling)
        self.budget = Budget(price_of(teacher, runtime), runtime.max_usd, teacher, sampling)
        self.outcome.notes += self.budget.notes
        self.client = Client(teacher, sampling, runtime)
        n = SOLVER_N if teacher.type == "solver" else runtime.n
        planned = list(jobs(missing, self.keys, n))
        self.failures = FailureTracker(teacher, runtime, planned, self.outcome.reused)
        self.queue = SharedQueue(planned, leases, self.budget)
        fewest = min(len(job.samples) for job in planned)
        limits = concurrency_limits(teacher, runtime, fewest)
        self.limiter = AdaptiveLimiter(*limits, runtime.rpm, runtime.tpm)
        self.tasks: set[asyncio.Task[None]] = set()
        self.task_ended = asyncio.Event()
        """Set if an attempt has ended since the budget was looked at: that frees some of it."""
        self.fatal_error: BaseException | None = None
        self.typical_tokens = 500.0     # of an answer, learnt as they come

    async def main(self) -> None:
        """Keep the slots filled until nothing is left or nothing can succeed."""
        asyncio.get_running_loop().set_exception_handler(_report)
        async with self.client:
            try:
                while (job := await self._next_job()) is not None:
                    await self._start(job)
            finally:                 # tasks that are left only wait for another attempt
                for task in self.tasks:
                    task.cancel()
                await asyncio.gather(*self.tasks, return_exceptions=True)
                self.queue.give_back()
        if self.fatal_error is not None:
            raise self.fatal_error

    async def _task_ends(self) -> None:
        self.task_ended.clear()
        await self.task_ended.wait()

    async def _next_job(self) -> Job | None:
        """The next job; None when all are done and none can be requeued."""
        while self.fatal_error is None and self.outcome.stopped is None:
            if self.failures.give_up_reason is not None:     # an answer in flight resets it
                await self._wait_or_stop(self.failures.give_up_reason)
                continue
            self.task_ended.clear()
            job = await self.queue.take_leased(self.failures.failed)
            if job is None and not await self._more_comes():
                return None
            if job is None:
                continue
            if len(job.samples) > 1 and not self.client.honours_n:
                self.queue.requeue(job, job.samples, 1)
            else:
                return job
        return None

    async def _more_comes(self) -> bool:
        """Wait for what may bring another job; False if nothing does."""
        if self.queue.elsewhere:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._task_ends(), LOOK_SECONDS)
            for job, end in await self.queue.look_elsewhere():
                self._count_elsewhere(job, end.stored)
            return True
        if self.tasks:
            await self._task_ends()
            return True
        return False

    def _count_elsewhere(self, job: Job, stored: bool) -> None:
        """Count what another process asked for."""
        self.outcome.wanted -= 1
        self.outcome.reused += stored
        if not stored:
            self.outcome.reasons["another process asked and got no answer"] += 1
        self.failures.record_elsewhere(job.key, 1)
        self.display.show(1, self.limiter.in_flight)

    async def _fits(self, job: Job, worst: float) -> bool:
        """Whether the budget has `worst` dollars for the job; they are reserved in its lease."""
        self.task_ended.clear()
        return self.budget.fits(worst) and await self.queue.reserve(job)

    async def _wait_for_budget(self) -> bool:
        """Wait until an attempt ends, here or elsewhere; else end the run."""
        held = self.queue.others_hold       # when the next request was more than what was left
        await self.queue.count_others()
        if self.tasks:
            await self._task_ends()
        elif self.queue.others_hold:
            await asyncio.sleep(LOOK_SECONDS)
        elif not (held or self.task_ended.is_set()):        # else it was given back meanwhile
            self.outcome.stopped = self.budget.stop_reason()
        return self.outcome.stopped is None

    async def _wait_or_stop(self, reason: str) -> None:
        """Wait while attempts are in flight, then end the run."""
        if self.limiter.in_flight:
            await self._task_ends()
        elif self.failures.successes:
            self.outcome.stopped = str(self.failures.error(reason))
        else:
            self.fatal_error = self.failures.error(reason)

    async def _start(self, job: Job) -> None:
        """Reserve budget and a slot for the job, then run it as a task."""
        worst = self.budget.worst(job)
        while not await self._fits(job, worst):
            if not await self._wait_for_budget():
                return
        self.budget.reserved += worst
        try:
            await self.limiter.acquire(self._expected_tokens(job))
        except asyncio.CancelledError:
            self.budget.reserved -= worst
            raise
        if not self._running():
            self.limiter.release()
            self.budget.reserved -= worst
            self.queue.retries.append(job)
            return
        task = asyncio.create_task(self._run_job(job, worst))
        self.tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.task_ended.set()
        if not task.cancelled() and task.exception() is not None:
            self.fatal_error = self.fatal_error or task.exception()

    async def _run_job(self, job: Job, worst: float) -> None:
        """Attempt one job until it ends; it holds a slot during attempts, not between them."""
        try:
            while True:
                job = replace(job, attempts=job.attempts + 1)
                began = time.monotonic()
                try:
                    error = await self._attempt(job, began, worst)
                finally:
                    self.limiter.release()
                if error is None or not await self._try_again(job, error, worst, began):
                    return
        finally:
            self.budget.reserved -= worst

    async def _attempt(self, job: Job, began: float, worst: float) -> AttemptError | None:
        """The error of one attempt, or None if its answer is stored."""
        self.queue.may_cost(job, worst)
        try:
            reply = await self.client.ask(job)
        except AttemptError as error:
            self.queue.may_cost(job, 0.0 if error.billed else -worst)
            return error
        self.queue.may_cost(job, -worst)
        try:
            self._store_reply(job, reply, time.monotonic() - began)
        except UserError as error:       # before the slot is released: nothing more is sent
            self.fatal_error = self.fatal_error or error
        return None

    async def _try_again(self, job: Job, error: AttemptError, worst: float,
                         began: float) -> bool:
        """Whether to attempt the job again; if so, returns after the wait and with a slot."""
        if error.billed:
            self.budget.unsure += worst
        if error.cause == "overload":
            self.limiter.on_overload(min(error.wait or 0.0, self.runtime.max_wait), began)
        self.failures.record_attempt(job.key, error)
        if error.retry and len(job.samples) > 1 and not self.client.honours_n:
            self.queue.requeue(replace(job, attempts=0), job.samples, 1)
            return False
        may_retry = error.retry and job.attempts < self.runtime.max_attempts
        if may_retry and self._running():
            await asyncio.sleep(error.pause(job.attempts, self.runtime.max_wait))
            if self._running() and self.budget.fits(0.0) and await self.queue.reserve(job):
                await self.limiter.acquire(self._expected_tokens(job), retry=True)
                self.outcome.retries += 1
                return True
        if may_retry and self.failures.give_up_reason is not None:
            self.queue.retries.append(job)               # sent if an answer comes
        else:
            self._record_failure(job, str(error))
        return False

    def _running(self) -> bool:
        return (self.fatal_error is None and self.outcome.stopped is None
                and self.failures.give_up_reason is None)

    def _record_failure(self, job: Job, reason: str) -> None:
        """Record a job that failed for good, one row a sample."""
        self.outcome.fail(reason, len(job.samples))
        self.store.append(*(self._asked_row(job, sample) | {"failure": reason[:300]}
                            for sample in job.samples))
        self.queue.end(job, job.samples, stored=False)
        self.failures.record_failure(job.key, len(job.samples), reason)
        self.display.show(len(job.samples), self.limiter.in_flight)

    def _store_reply(self, job: Job, reply: Reply, seconds: float) -> None:
        """Store complete samples; missing and broken ones are asked again."""
        rows = trace_rows(job, reply, self.budget.price, seconds, self.teacher, self.sampling)
        self.failures.record_answer(job.key, len(rows))
        stored = [self._asked_row(job, row["sample"]) | row for row in rows]
        self.store.append(*stored)
        for row in stored:
            self.outcome.count(row)
        self.queue.end(job, {row["sample"] for row in rows}, self.budget.bill(job, reply, rows))
        longest = max((row["completion_tokens"] for row in rows), default=0)
        self.typical_tokens += 0.05 * (longest - self.typical_tokens)
        self.limiter.on_answer(seconds, longest)
        self.limiter.learn_rates(self.client.headers)
        missing = set(job.samples) - {row["sample"] for row in rows}
        self._requeue_missing(job, missing, bool(reply.broken))
        self.display.show(len(rows), self.limiter.in_flight)

    def _asked_row(self, job: Job, sample: int) -> dict[str, Any]:
        return asked_row(job, sample, self.keys.origin, self.sampling)

    def _requeue_missing(self, job: Job, missing: set[int], broken: bool) -> None:
        """Queue samples that a reply lacks: broken ones as another attempt, others one by one."""
        if missing and not broken:
            self.client.honours_n = False
            self.queue.requeue(replace(job, attempts=0), missing, 1)
        elif missing and job.attempts < self.runtime.max_attempts:
            self.queue.requeue(job, missing, len(missing))
        elif missing:
            for samples in consecutive(missing, len(missing)):
                self._record_failure(replace(job, samples=samples), "the answer broke off")

    def _expected_tokens(self, job: Job) -> float:
        return prompt_bound(job) / 4 + self.typical_tokens * len(job.samples)
