"""Processes that share requests by leases: none is left idle while another has many waiting."""

import asyncio
from contextlib import ExitStack

from pipeline.config.teacher import OpenAITeacher, Sampling
from pipeline.leases import Leases
from pipeline.teacher.budget import Budget
from pipeline.teacher.request import Job
from pipeline.teacher.share import SharedQueue

COUNT, PROCESSES = 120, 3


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
        queues = [SharedQueue([Job(f"{i:032x}", [], range(1)) for i in range(COUNT)],
                              stack.enter_context(Leases(tmp_path)), budget)
                  for _ in range(PROCESSES)]
        taken = asyncio.run(dealt(queues))
    assert sum(taken) == COUNT and max(taken) - min(taken) <= 6, taken
