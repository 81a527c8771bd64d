"""Processes that share requests by leases: evenly, and below one ceiling."""

import asyncio
import os
import time
from contextlib import ExitStack

from pipeline.config.teacher import OpenAITeacher, Sampling
from pipeline.leases import Leases
from pipeline.teacher.budget import Budget, Price
from pipeline.teacher.request import Job, Keys, Request
from pipeline.teacher.share import SharedQueue

COUNT, PROCESSES = 120, 3


def jobs_of(count):
    return [Job(f"{i:032x}", [], range(1)) for i in range(count)]


async def dealt(queues):
    """How many jobs each queue gives until it has none, if all are asked in turn."""
    taken, left = dict.fromkeys(queues, 0), list(queues)
    while left:
        for queue in list(left):
            if (job := await queue.take_leased(())) is None:
                left.remove(queue)
                continue
            taken[queue] += 1
            queue.end(job, job.samples)
    return list(taken.values())


def test_the_last_requests_are_divided_evenly(tmp_path):
    budget = Budget(None, None, OpenAITeacher(model="m"), Sampling())
    with ExitStack() as stack:
        queues = [SharedQueue(jobs_of(COUNT), stack.enter_context(Leases(tmp_path)), budget)
                  for _ in range(PROCESSES)]
        taken = asyncio.run(dealt(queues))
    assert sum(taken) == COUNT and max(taken) - min(taken) <= 6, taken


def test_what_the_dead_may_have_cost_counts_though_another_stored_it_since(tmp_path):
    teacher, sampling = OpenAITeacher(model="m"), Sampling(max_tokens=10)
    keys, one = Keys(teacher, sampling), Request("p", 0, [{"role": "user", "content": "1 + 1"}])
    name = f"{keys.of(one.messages)}:0"
    if (child := os.fork()) == 0:
        Leases(tmp_path).take({name: 0.5})
        os._exit(0)
    os.waitpid(child, 0)
    with Leases(tmp_path) as other:
        assert other.take({name: 0.5}) == {name}
        other.end(name, stored=True, usd=0.25)
    budget = Budget(Price(output=1.0), 2.0, teacher, sampling)
    with Leases(tmp_path) as leases:     # its log stays, though nobody was left
        queue = SharedQueue([], leases, budget)
        queue.count_lost([Request("q", 0, []), one], keys)
        asyncio.run(queue.count_others())
    assert budget.others == 0.5 and not budget.allows(1.75) and budget.allows(1.5)
    assert budget.stop_reason().endswith("when they were killed $0.50)")


PRICED = OpenAITeacher(model="m"), Sampling(max_tokens=1_000_000)


def priced(leases, count, max_usd=1000.0):
    return SharedQueue(jobs_of(count), leases, Budget(Price(output=1.0), max_usd, *PRICED))


async def reserved(queue, count):
    """How many of `count` jobs the budget allows."""
    found = 0
    for _ in range(count):
        job = await queue.take_leased(())
        assert all(map(queue.leases.is_mine, job.names()))
        found += await queue.reserve(job)
    return found


def test_a_killed_process_may_have_spent_what_it_was_about_to_send_and_no_more(tmp_path):
    if (child := os.fork()) == 0:
        leases = Leases(tmp_path)
        asyncio.run(reserved(priced(leases, 40), 3))
        os._exit(0 if len(leases.held) > 3 else 1)
    assert os.waitpid(child, 0)[1] == 0             # it had leased more than it sent
    with Leases(tmp_path) as leases:
        queue = priced(leases, 40)
        asyncio.run(reserved(queue, 40))
        assert len(leases.forfeited) <= 4 and 3.0 <= queue.budget.others <= 4.0


def test_what_the_budget_does_not_allow_is_not_reserved(tmp_path):
    with Leases(tmp_path) as leases:
        assert asyncio.run(reserved(priced(leases, 20, max_usd=7.5), 20)) == 7


def test_several_requests_are_reserved_at_once_where_a_lease_takes_long(tmp_path):
    with Leases(tmp_path) as leases:
        queue, take, takes = priced(leases, 200), leases.take, []

        def slow(*given):
            takes.append(given)
            time.sleep(0.2)
            return take(*given)

        leases.take = slow
        assert asyncio.run(reserved(queue, 200)) == 200
    assert len(takes) < 60, len(takes)
