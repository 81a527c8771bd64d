"""Shares the requests of a run with other processes that want the same traces."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from itertools import chain, islice, takewhile

from pipeline.leases import Ended, Leases
from pipeline.teacher.budget import Budget
from pipeline.teacher.request import Job, Keys, Request, RequestQueue, consecutive

Choice = Callable[[Mapping[str, float]], Mapping[str, float]]
FEWEST, MOST = 8, 512
"""Jobs leased at once: so many that a lease is taken about once a second, lest a shared file system
has much to do, and no more, lest others wait for the last ones."""


class SharedQueue(RequestQueue):
    """A queue of jobs that are leased a little ahead; `elsewhere` are those that others hold."""

    def __init__(self, planned: Iterable[Job], leases: Leases, budget: Budget) -> None:
        super().__init__(planned)
        self.leases, self.budget = leases, budget
        self.elsewhere: deque[Job] = deque()
        self.others_hold = False
        self.unsure: defaultdict[str, float] = defaultdict(float)
        """Dollars by name that requests without an answer may cost."""
        self._size, self._took = FEWEST, time.monotonic()
        self._together, self._taking, self._since = 1, 0.0, time.monotonic()
        self._priced = budget.max_usd is not None
        self._names = {name for job in self.new for name in job.names()} if self._priced else set()
        self._settled, self._counted = 0.0, 0

    async def take_leased(self, failed: Collection[str]) -> Job | None:
        """As `take`, a job that is leased; its dollars are not reserved yet."""
        while (job := self.take(failed)) is not None:
            if self._is_mine(job):
                return job
            queue = self.new or self.failed_before
            ahead = self._ahead(queue)
            await self._lease([job, *ahead])
            queue.extendleft(reversed([part for one in ahead for part in self._kept(one)]))
            mine, free = self._parts(job)
            if mine:
                self.retries.extend(mine[1:])
                self.new.extendleft(reversed(free))
                return mine[0]
            queue.extendleft(reversed(free))
        return None

    def _ahead(self, queue: deque[Job]) -> list[Job]:
        """Take the next jobs off `queue` until this process has its share of free ones."""
        share, ahead, free = self._share(queue, 2), list[Job](), 0
        while queue and free < share:
            ahead.append(queue.popleft())
            free += self._is_free(ahead[-1])
        return ahead

    def _share(self, queue: Collection[Job], parts: int) -> int:
        """How many of `queue` to lease: towards the end 1 / `parts` of what is free for each that
        asks, lest others stand idle while requests wait for a slot here (guided self-scheduling).
        """
        asking = {lease.by for lease in list(self.leases.held.values())} | {
            self.leases.heartbeat.id}
        if len(asking) == 1 and not self.leases.ended:
            return self._size            # no other process has asked for anything
        parts *= len(asking)
        if len(queue) >= 2 * parts * self._size:
            return self._size
        return min(self._size, sum(map(self._is_free, queue)) // parts)

    def _is_mine(self, job: Job) -> bool:
        return all(map(self.leases.is_mine, job.names()))

    def _is_free(self, job: Job) -> bool:
        return any(map(self.leases.is_free, job.names()))

    async def look_elsewhere(self) -> list[tuple[Job, Ended]]:
        """Queue what others gave back or left behind; returns what they ended, a sample each."""
        await self._lease(self.elsewhere, self._share(self.elsewhere, 1) or 1)
        ended, jobs, self.elsewhere = [], self.elsewhere, deque()
        for job in jobs:
            for sample, name in zip(job.samples, job.names(), strict=True):
                one = replace(job, samples=range(sample, sample + 1))
                if (end := self.leases.ended.get(name)) is not None:
                    ended.append((one, end))
                else:
                    (self.new if self.leases.is_mine(name) else self.elsewhere).append(one)
        return ended

    async def reserve(self, job: Job) -> bool:
        """Whether another request for `job`, which is leased, may be sent as to its cost.

        Its dollars are reserved so late, since a process that is killed may have spent them.
        """
        if self._has(job):
            return True
        ahead = takewhile(self._is_mine, self.new)
        await self._take(self._dollars(chain([job], self.retries, ahead)), self._affordable)
        return self._has(job)

    def _has(self, job: Job) -> bool:
        return all(self._reserved(name) >= usd for name, usd in self._dollars([job]).items())

    def _dollars(self, jobs: Iterable[Job]) -> dict[str, float]:
        """The most that each name of the first of `jobs` costs in the end, if asked once more."""
        found: dict[str, float] = {}
        for job in islice(jobs, self._together if self._priced else 0):
            usd = self.budget.worst(job) / len(job.samples)
            found |= {name: usd + self.unsure.get(name, 0.0) for name in job.names()}
        return found

    async def _take(self, wanted: Mapping[str, float], choose: Choice) -> float:
        """Take leases or reserve for them; returns the seconds of it.

        Where a tenth of the time goes into that, as in an object store, more is reserved at once.
        """
        began = time.monotonic()
        await asyncio.to_thread(self.leases.take, wanted, choose)
        self._taking += (cost := time.monotonic() - began)
        if (passed := time.monotonic() - self._since) > 1:
            if self._taking > 0.1 * passed:
                self._together = min(max(self._together * 4, FEWEST), MOST)
            elif self._taking < 0.025 * passed:
                self._together = max(self._together // 2, 1)
            self._taking, self._since = 0.0, time.monotonic()
        return cost

    def count_lost(self, requests: Iterable[Request], keys: Keys) -> None:
        """Count what dead processes may have spent on those of `requests` that are stored since.

        These are missing no more, so that the queue does not hold their names.
        """
        self.leases.take(())             # reads what has come since the store was looked at
        if self.leases.forfeited:
            names = (f"{keys.digest(one.messages).hex()}:{one.sample}" for one in requests)
            self._names.update(filter(self.leases.forfeited.__contains__, names))

    async def count_others(self) -> None:
        """Read what others spent and hold, and free what the dead held."""
        theirs = [name for name in self._names & self.leases.held.keys()
                  if not self.leases.is_mine(name)]
        await asyncio.to_thread(self.leases.take, theirs, lambda free: {})
        self._count_others()

    def end(self, job: Job, samples: Collection[int], usd: float = 0.0, stored: bool = True
            ) -> None:
        """End the leases of `samples`, which are stored or failed for good, and cost `usd`."""
        for sample, name in zip(job.samples, job.names(), strict=True):
            if sample in samples:
                self.leases.end(name, stored=stored, usd=usd + self.unsure.pop(name, 0.0))
                usd = 0.0                # of one request: counted with the first sample
        self.may_cost(job, usd)

    def may_cost(self, job: Job, usd: float) -> None:
        """Count dollars of a request for `job` that was not answered, or take them back."""
        if self._priced and usd:
            self.unsure[job.names()[0]] += usd

    def give_back(self) -> None:
        """Tell others what requests without an answer may have cost."""
        self.leases.release({name: usd for name, usd in self.unsure.items() if usd > 0})

    async def _lease(self, jobs: Collection[Job], most: int | None = None) -> None:
        """Lease what is free of `jobs`, and as the rate of leases wants it more or less next."""
        wanted = dict.fromkeys((name for job in jobs for name in job.names()), 0.0)

        def choose(free: Mapping[str, float]) -> Mapping[str, float]:
            new = [name for name in free if not self.leases.is_mine(name)][:most]
            affordable = self._affordable({name: free[name] for name in new if free[name]})
            return dict.fromkeys(new, 0.0) | affordable

        cost = await self._take(wanted | self._dollars(jobs), choose)
        pause, self._took = time.monotonic() - self._took, time.monotonic()
        if pause < max(0.5, 10 * cost):
            self._size = min(self._size * 2, MOST)
        elif pause > max(2, 40 * cost):
            self._size = max(self._size // 2, FEWEST)

    def _kept(self, job: Job) -> list[Job]:
        mine, free = self._parts(job)
        return mine + free

    def _parts(self, job: Job) -> tuple[list[Job], list[Job]]:
        """The parts of `job` that are leased, and those that are free; others are `elsewhere`."""
        if self._is_mine(job):
            return [job], []
        kinds: dict[str, list[int]] = {"mine": [], "free": [], "elsewhere": []}
        for sample, name in zip(job.samples, job.names(), strict=True):
            kinds["mine" if self.leases.is_mine(name) else
                  "free" if self.leases.is_free(name) else "elsewhere"].append(sample)
        parts = {kind: [replace(job, samples=part) for part in consecutive(samples,
                                                                           len(job.samples))]
                 for kind, samples in kinds.items()}
        self.elsewhere.extend(parts["elsewhere"])
        return parts["mine"], parts["free"]

    def _affordable(self, wanted: Mapping[str, float]) -> dict[str, float]:
        """The first of `wanted` whose dollars the budget of all still allows."""
        self._count_others()
        held = sum(lease.usd for name, lease in self.leases.held.items()
                   if self.leases.is_mine(name))
        found = {}
        for name, usd in wanted.items():
            if (more := usd - self._reserved(name)) > 0:
                if not self.budget.allows(held := held + more):
                    break
                found[name] = usd
        return found

    def _reserved(self, name: str) -> float:
        return self.leases.held[name].usd if self.leases.is_mine(name) else 0.0

    def _count_others(self) -> None:
        """Set what the budget knows of other processes that ask for the same."""
        ended = self.leases.ended
        self._settled += sum(end.usd for name, end in islice(ended.items(), self._counted, None)
                             if name in self._names)
        self._counted = len(ended)
        held = sum(lease.usd for name, lease in self.leases.held.items()
                   if name in self._names and not self.leases.is_mine(name))
        self.others_hold = held > 0
        self.budget.others = held + self._settled + sum(
            usd for name, usd in self.leases.forfeited.items() if name in self._names)
