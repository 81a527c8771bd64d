"""Asks from every node of a cluster: the nodes ask and store, this machine counts.

No trace passes through here, and no request is dealt out: the nodes share them by the store's
leases, which also keep the budget of all together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.cluster.ray_nodes import code_digest, connected, first_line, lacks_code
from pipeline.config.experiment import RayCluster
from pipeline.config.teacher import Sampling, Teacher, TeacherRuntime
from pipeline.errors import UserError
from pipeline.objects import address, bucket_of
from pipeline.teacher.budget import Budget, price_of
from pipeline.teacher.crew import Crew, Member
from pipeline.teacher.failures import FailureTracker, UnansweredError
from pipeline.teacher.outcome import Display, Outcome
from pipeline.teacher.request import Request
from pipeline.teacher.store import TraceStore

COUNT_SECONDS, END_SECONDS = 1.0, 10.0
"""Between two counts of what a node stored; for the others to see that nothing is left."""
TOGETHER = 10_000
"""Requests that are formed at a time, and then are in the cluster's memory and not in this one's.
"""


def generate(requests: Sequence[Request], *, teacher: Teacher, sampling: Sampling,
             runtime: TeacherRuntime, store: TraceStore, cluster: RayCluster,
             on_progress: Callable[..., None] | None = None, accept_rate: Any = None) -> Outcome:
    """Ask for those of `requests` that `store` lacks, as pipeline.teacher.scheduler.generate.

    `runtime.concurrency` holds for each node, max_usd for all together; rates are divided among the
    nodes. A node that is lost is replaced where there is another. Raises UserError also if there is
    no cluster or one of its nodes has other code.
    """
    left = store.missing(requests, teacher, sampling)
    missing = len(left)
    outcome = Outcome(wanted=missing, reused=len(requests) - missing)
    outcome.notes += Budget(price_of(teacher, runtime), runtime.max_usd, teacher, sampling,
                            runtime.where).notes
    if not missing:
        return outcome
    store.folder.mkdir(parents=True, exist_ok=True)
    with connected(cluster) as ray:
        # A ceiling counts what the answers that are there cost.
        run = ClusterRun(ray, cluster, requests if runtime.max_usd else left, teacher, sampling,
                         runtime, store, Display(outcome, on_progress))
        try:
            run.main()
        finally:
            run.crew.end()
    outcome.seconds = time.monotonic() - run.display.began
    if run.crew.losses:         # and with them, what they had not reported
        stored = missing - len(store.missing(requests, teacher, sampling))
        outcome.asked = max(outcome.asked, stored + outcome.failed)
    if outcome.failed == outcome.asked and outcome.failed and not outcome.reused:
        raise FailureTracker(teacher, runtime).error(outcome.reasons.most_common(1)[0][0])
    return outcome


class ClusterRun:
    """The members of one call of generate, and what they did so far."""

    def __init__(self, ray: Any, cluster: RayCluster, requests: Sequence[Request], teacher: Teacher,
                 sampling: Sampling, runtime: TeacherRuntime, store: TraceStore,
                 display: Display) -> None:
        self.ray, self.display, self.outcome = ray, display, display.outcome
        key = runtime.api_key().get_secret_value()
        shared = [ray.put(list(requests[start:start + TOGETHER]))
                  for start in range(0, len(requests), TOGETHER)]
        nodes = max(1, sum(node["Alive"] for node in ray.nodes()))
        own = runtime.model_copy(update={name: rate / nodes for name in ("rpm", "tpm")
                                         if (rate := getattr(runtime, name))})
        # A node's copy of an object store is below its own user's cache.
        place = address(store.folder if bucket_of(store.folder) else store.folder.resolve())
        self.crew = Crew(ray, cluster, teacher, (teacher, sampling, own, place),
                         lambda actor: actor.ask.remote(key, code_digest(), *shared))
        self.ended: float | None = None
        """When the first member found nothing more to ask for."""

    def main(self) -> None:
        """Wait until all is asked for, or no node can go on.

        Raises UnansweredError if no trace ever came.
        """
        while self.ended is None or (any(one.up for one in self.crew.members.values())
                                     and time.monotonic() < self.ended + END_SECONDS):
            if self.ended is None:
                self.crew.staff()
                if reason := self.crew.hopeless():
                    if not self.outcome.asked - self.outcome.failed + self.outcome.reused:
                        raise UnansweredError(reason)
                    self.outcome.stopped = reason
                    return
            calls = self.crew.calls()
            if not calls:
                time.sleep(0.1)
                continue
            for call in self.ray.wait(list(calls), timeout=COUNT_SECONDS)[0]:
                self._hear(calls[call], call)

    def _hear(self, member: Member, call: Any) -> None:
        """Count what a member reports; take it away if it died or stopped."""
        try:
            if call is member.counting:
                self._count(member, self.ray.get(call))
                member.up = True
                member.counting = member.actor.counts.remote(COUNT_SECONDS)
                return
            outcome, rest = self.ray.get(call)
            self._count(member, rest)
            self._count(member, self.ray.get(member.counting))
        except self.ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, UnansweredError):
                raise (error.cause if isinstance(error.cause, UserError) else error) from None
            self.crew.lose(member, str(error.cause), stopped=True)
        except self.ray.exceptions.RayError as error:
            if lacking := lacks_code(error):
                raise lacking from None
            self.crew.lose(member, f"its process ended ({first_line(error)})")
        else:
            self._finish(member, outcome)

    def _count(self, member: Member, counts: Outcome) -> None:
        self.outcome.add(counts)
        if counts.asked > counts.failed:
            self.crew.heard(member)
        if counts.asked:
            self.display.show(counts.asked, None)

    def _finish(self, member: Member, outcome: Outcome) -> None:
        """Take a member away whose call returned, with what only its whole outcome says."""
        self.outcome.retries += outcome.retries
        self.outcome.notes += [one for one in outcome.notes if one not in self.outcome.notes]
        both = self.outcome.unsure_usd, outcome.unsure_usd
        self.outcome.unsure_usd = None if None in both else sum(filter(None, both))
        if outcome.stopped:
            self.crew.lose(member, outcome.stopped, stopped=True)
        else:
            self.crew.dismiss(member)
            self.ended = self.ended or time.monotonic()
