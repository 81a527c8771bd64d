"""Asks from every node of a cluster: this machine plans and counts, the nodes ask and store.

No trace passes through here. A node gets few requests ahead, so that none is left with a queue
while others are idle, and dollars for no more than it was given.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from pipeline.cluster.ray_nodes import connected, lacks_code
from pipeline.config.cluster import RayCluster
from pipeline.config.teacher import Sampling, Teacher, TeacherRuntime
from pipeline.errors import UserError
from pipeline.teacher.batch_files import check_not_in_batch
from pipeline.teacher.budget import Budget, price_of
from pipeline.teacher.crew import Crew, Member
from pipeline.teacher.failures import FailureTracker, UnansweredError
from pipeline.teacher.node_asker import Report
from pipeline.teacher.outcome import Display, Outcome
from pipeline.teacher.request import Job, Keys, Request, jobs
from pipeline.teacher.scheduler import samples_together
from pipeline.teacher.store import TraceStore

WAIT_SECONDS = 0.5
ROUNDING = 1e-9
"""Share of an allowance by which sums of the same dollars may differ."""


def generate(requests: Iterable[Request], *, teacher: Teacher, sampling: Sampling,
             runtime: TeacherRuntime, store: TraceStore, cluster: RayCluster,
             on_progress: Callable[..., None] | None = None, accept_rate: Any = None) -> Outcome:
    """Ask for those of `requests` that `store` lacks, as pipeline.teacher.scheduler.generate.

    `runtime.concurrency` holds for each node, its rates and max_usd for all together. A node that
    is lost is replaced where there is another. Raises UserError also if there is no cluster.
    """
    requests = list(requests)
    missing = store.missing(requests, teacher, sampling)
    outcome = Outcome(wanted=len(missing), reused=len(requests) - len(missing))
    check_not_in_batch(missing, Keys(teacher, sampling), store)
    if not missing:
        return outcome
    store.folder.mkdir(parents=True, exist_ok=True)
    spent = store.spent(requests, teacher, sampling) if runtime.max_usd else 0.0
    with connected(cluster) as ray:
        arguments = (teacher, sampling, runtime, store.folder.resolve())
        crew = Crew(ray, cluster, teacher, arguments, runtime.api_key().get_secret_value())
        run = ClusterRun(crew, missing, teacher, sampling, runtime, store,
                         Display(outcome, on_progress))
        run.budget.resume(spent)
        try:
            run.main()
        finally:
            run.budget.unsure += sum(one.report.unsure for one in crew.members.values())
            crew.end()
    outcome.unsure_usd = run.budget.unsure_usd()
    outcome.seconds = time.monotonic() - run.display.began
    if outcome.asked >= outcome.wanted:
        outcome.stopped = None
    if outcome.failed == outcome.asked and outcome.failed and not outcome.reused:
        reason = outcome.reasons.most_common(1)[0][0]
        raise FailureTracker(teacher, runtime).error(reason)
    return outcome


class ClusterRun:
    """What is left to ask, and who was given what."""

    def __init__(self, crew: Crew, missing: list[Request], teacher: Teacher, sampling: Sampling,
                 runtime: TeacherRuntime, store: TraceStore, display: Display) -> None:
        self.crew, self.ray, self.store = crew, crew.ray, store
        self.teacher, self.sampling, self.runtime = teacher, sampling, runtime
        self.display, self.outcome = display, display.outcome
        self.keys = Keys(teacher, sampling)
        self.budget = Budget(price_of(teacher, runtime), runtime.max_usd, teacher, sampling,
                             runtime.where)
        self.outcome.notes += self.budget.notes
        self.queue = deque(self._jobs(missing))

    def main(self) -> None:
        """Hand out until nothing is left, nothing fits the budget, or no node can go on.

        Raises UnansweredError if no trace ever came.
        """
        while self.queue or any(one.given for one in self.crew.members.values()):
            self.crew.staff()
            self._wake_idle()
            calls = self.crew.calls()
            if not calls and (reason := self._why_to_stop()):
                if not self.outcome.asked - self.outcome.failed + self.outcome.reused:
                    raise UnansweredError(reason)
                self.outcome.stopped = reason
                return
            if not calls:
                time.sleep(0.1)
                continue
            ready, _ = self.ray.wait(list(calls), timeout=WAIT_SECONDS)
            for call in ready:
                self._hear(calls[call])

    def _why_to_stop(self) -> str | None:
        """Why nothing more can be asked, if so; no member is asking."""
        if self.queue and not self._fits(self.queue[0]):
            return self.budget.stop_reason()
        return self.crew.hopeless()

    def _hear(self, member: Member) -> None:
        """Count what a member reports and give it more; take it away if it died or stopped."""
        try:
            report: Report = self.ray.get(member.call)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except self.ray.exceptions.RayError as error:
            if lacking := lacks_code(error):
                raise lacking from None
            self._lose(member, f"a node's process ended ({_first_line(error)})")
            return
        member.began, member.call = True, None
        self._count(member, report)
        if report.stopped:
            self._lose(member, report.stopped if member.affords else "", stopped=True)
            return
        self._give(member)

    def _count(self, member: Member, report: Report) -> None:
        self.outcome.add(report.counts)
        member.take_back(report)
        if report.counts.asked > report.counts.failed:
            self.crew.heard(member)
        in_flight = sum(one.report.in_flight for one in self.crew.members.values())
        self.display.show(len(report.done), in_flight)

    def _wake_idle(self) -> None:
        for member in self.crew.members.values():
            if member.began and member.call is None:
                self._give(member)

    def _give(self, member: Member) -> None:
        """Hand out as many requests as there is room and money for, and wait for the report."""
        given: list[Request] = []
        for _ in range(member.report.room):
            if not self.queue or not self._fits(self.queue[0]):
                break
            job = self.queue.popleft()
            usd = self._worst(job) / len(job.samples)
            for sample in job.samples:
                given.append(Request(job.key, sample, job.messages))
                member.give(job.key, sample, job.messages, usd)
        if not member.given:
            return
        allowance = None
        if self.runtime.max_usd is not None:
            wanted = member.report.spent + member.report.unsure + member.promised
            others = self._committed() - self._part(member)
            member.allowance = min(wanted, self.runtime.max_usd - others)
            allowance = member.allowance * (1 + ROUNDING)
        member.affords = allowance is None or member.allowance >= wanted * (1 - ROUNDING)
        came = self.outcome.asked - self.outcome.failed + self.outcome.reused
        member.call = member.actor.work.remote(given, allowance, len(self.crew.members),
                                               member.affords, came)

    def _worst(self, job: Job) -> float:
        """Upper bound in dollars of asking for each of the job's samples by itself; 0 if nothing
        bounds what may be spent."""
        if self.runtime.max_usd is None:
            return 0.0
        single = Job(job.key, job.messages, range(1))
        return len(job.samples) * self.budget.worst(single)

    def _part(self, member: Member) -> float:
        """Dollars that a member spent or may spend of what it was given."""
        return member.report.spent + member.report.unsure + member.promised

    def _committed(self) -> float:
        return self.budget.spent + self.budget.unsure + sum(
            map(self._part, self.crew.members.values()))

    def _fits(self, job: Job) -> bool:
        return (self.runtime.max_usd is None
                or self._committed() + self._worst(job) <= self.runtime.max_usd)

    def _jobs(self, requests: list[Request]) -> list[Job]:
        return list(jobs(requests, self.keys, samples_together(self.teacher, self.runtime)))

    def _lose(self, member: Member, reason: str, stopped: bool = False) -> None:
        """Look up what a lost member stored, and queue the rest again, first."""
        self.crew.lose(member, reason, stopped)
        given = [Request(key, sample, messages)
                 for (key, sample), (messages, _) in member.given.items()]
        left = self.store.missing(given, self.teacher, self.sampling) if given else []
        asked_again = {(one.problem_id, one.sample) for one in left}
        stored = [one for one in given if (one.problem_id, one.sample) not in asked_again]
        cost = self.store.spent(stored, self.teacher, self.sampling) if stored else 0.0
        self.outcome.add(Outcome(asked=len(stored), cost_usd=cost))
        self.budget.spent += member.report.spent + cost
        jobs_left = self._jobs(left)
        if stopped:
            self.budget.unsure += member.report.unsure
        elif self.runtime.max_usd is None:      # what it had in flight may be charged all the same
            self.budget.unsure += member.report.unsure + sum(map(self.budget.worst, jobs_left))
        else:
            self.budget.unsure += max(member.allowance - member.report.spent - cost, 0.0)
        self.queue.extendleft(reversed(jobs_left))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
