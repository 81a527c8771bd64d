"""Three nodes of a Ray cluster against one: time to ask, memory of the driver, verdicts a second.

The endpoint answers after a fixed delay, so that not the processor is measured. Prints one JSON
object: `python -m benchmarks.ray_speed [--into PART]`.
"""

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.record import Record
from benchmarks.trace_store import ROW
from pipeline.cluster.judging import ClusterPool
from pipeline.config.experiment import RayCluster
from pipeline.judge import JudgePool, Problem
from pipeline.teacher import TraceStore
from pipeline.teacher.request import Keys
from tests.cluster import ray_run
from tests.cluster.ray_nodes_here import ray_cluster
from tests.fault_server import Answer, FaultServer, completion

DELAY, CONCURRENCY, SEGMENT = 2.0, 16, 10_000
# Not ru_maxrss, which a process begins with that of the one it was forked from.
DRIVER = """
import sys
from tests.cluster import ray_run
print(ray_run.run(*sys.argv[1:]))
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def asking(nodes, count):
    """(seconds, seconds of the middle half, MB) of asking `count` questions on so many nodes.

    Seconds from the first question to the last answer, as the endpoint saw them: the first holds
    the start of the other nodes' processes. MB are the peak of this process, the driver.
    """
    server = FaultServer(lambda call: Answer(completion("42" * 2000), delay=DELAY))
    with server.running() as url, ray_cluster(nodes) as cluster, \
            tempfile.TemporaryDirectory() as folder:
        ray_run.run(cluster.address, folder, count, CONCURRENCY, url)
        times = sorted(call.time for call in server.calls)
    assert len(times) == count
    middle = times[3 * count // 4] - times[count // 4]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return times[-1] - times[0] + DELAY, middle, peak


def memory(known, fresh=3000):
    """MB of the driver that asks `fresh` questions beside `known` ones that are stored."""
    requests = ray_run.requests(known + fresh)
    keys = Keys(ray_run.REMOTE, ray_run.SAMPLING)
    server = FaultServer(lambda call: Answer(completion("42" * 2000), delay=0.05))
    with server.running() as url, ray_cluster(2) as cluster, \
            tempfile.TemporaryDirectory() as folder:
        store = TraceStore(Path(folder))
        for start in range(0, known, SEGMENT):
            rows = [ROW | {"key": keys.of(one.messages), "sample": 0}
                    for one in requests[start:min(start + SEGMENT, known)]]
            with store.writing():
                store._write_segment(Path(folder) / f"{store._new_stem()}.journal", rows)
        line = [sys.executable, "-c", DRIVER, cluster.address, folder, str(known + fresh), "32",
                url]
        said = subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert len(server.calls) == fresh
    return {"known": known, "asked": fresh, "driver_mb": int(said.split()[-2]) / 1024}


def programs(numbers, seconds):
    """Completions that hold a program each, and their problems; a program sleeps so long."""
    problems = [Problem(f"p{i}", "q", "", "code", meta={"test_list": [f"assert total({i}) == {i}"]})
                for i in numbers]
    texts = [f"</think>```python\nimport time\ntime.sleep({seconds})\n"
             f"def total(x): return x + {i % 3 == 0:d}\n```" for i in numbers]
    return texts, problems


def judge_slices(pipe, nodes, seconds):
    """Answer each range of programs with (seconds, verdicts), by `nodes` of one processor or alone.

    A process of its own for each number of nodes, so that all can judge the same slice in turn.
    """
    with ExitStack() as stack:
        if nodes:
            address = stack.enter_context(ray_cluster(nodes)).address
            pool = stack.enter_context(ClusterPool(RayCluster(address=address), 1))
        else:
            pool = stack.enter_context(JudgePool(2))
        pool.judge_many(*programs(range(16), seconds))              # imports, worker processes
        pipe.send("ready")
        for numbers in iter(pipe.recv, None):
            texts, problems = programs(numbers, seconds)
            began = time.monotonic()
            found = [one.verdict for one in pool.judge_many(texts, problems)]
            pipe.send((time.monotonic() - began, found))


def judging(count, seconds, size, every):
    """What two workers and, on one slice in `every`, one worker and this machine alone took."""
    context, pipes = multiprocessing.get_context("spawn"), {}
    for nodes in (2, 1, 0):
        pipes[nodes], other = context.Pipe()
        context.Process(target=judge_slices, args=(other, nodes, seconds), daemon=True).start()
        assert pipes[nodes].recv() == "ready"
    took, same = {nodes: [] for nodes in pipes}, True
    for turn, start in enumerate(range(0, count, size)):
        numbers = range(start, min(start + size, count))
        wanted = ["wrong" if i % 3 == 0 else "correct" for i in numbers]
        paired = turn % every == 0
        for nodes in ((1, 0, 2) if turn % 2 else (2, 1, 0)) if paired else (2,):
            pipes[nodes].send(numbers)
            spent, found = pipes[nodes].recv()
            same &= found == wanted
            took[nodes].append((paired, spent))
            print(f"{start + len(numbers)} by {nodes}: {spent:.1f} s, same {same}", file=sys.stderr)
    for pipe in pipes.values():
        pipe.send(None)
    two, one = ([spent for paired, spent in took[nodes] if paired] for nodes in (2, 1))
    return {"verdicts": count, "paired_verdicts": len(one) * size, "same": same,
            "seconds_two_workers": sum(spent for _, spent in took[2]),
            "paired_seconds": {"two workers": sum(two), "one worker": sum(one),
                               "alone, two processes": sum(spent for _, spent in took[0])},
            "of_a_half": 2 * sum(two) / sum(one),
            "of_a_half_by_slice": sorted(2 * a / b for a, b in zip(two, one, strict=True))}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--verdicts", type=int, default=20_000)
    parser.add_argument("--sleep", type=float, default=0.05)
    parser.add_argument("--slice", type=int, default=1000)
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--known", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--only", choices=("asking", "judging", "memory"))
    parser.add_argument("--into", help="the part of results/ray.json to write")
    given = parser.parse_args()
    record, out = Record("ray.json", given.into), {}
    if given.only in (None, "asking"):
        three, one = (asking(nodes, given.requests) for nodes in (3, 1))
        out |= {"requests": given.requests, "seconds_three": three[0], "seconds_one": one[0],
                "of_a_third": 3 * three[0] / one[0],
                "of_a_third_in_the_middle": 3 * three[1] / one[1], "driver_mb": [three[2], one[2]]}
    if given.only in (None, "judging"):
        out |= {"sleep": given.sleep, "load": os.getloadavg()[1],
                **judging(given.verdicts, given.sleep, given.slice, given.every)}
    if given.only in (None, "memory"):
        out["memory"] = [memory(known) for known in given.known]
    record.write(out)


if __name__ == "__main__":
    main()
