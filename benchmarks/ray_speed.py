"""Three nodes of a Ray cluster against one: time to ask, memory of the driver, verdicts a second.

The endpoint answers after a fixed delay, so that not the processor is measured. Prints one JSON
object: `python -m benchmarks.ray_speed`.
"""

import argparse
import json
import resource
import tempfile
import time

from pipeline.cluster.judging import ClusterPool
from pipeline.config.experiment import RayCluster
from pipeline.judge import JudgePool, Problem
from tests.cluster import ray_run
from tests.cluster.ray_nodes_here import ray_cluster
from tests.fault_server import Answer, FaultServer, completion

DELAY, CONCURRENCY = 2.0, 16


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


def programs(count, seconds):
    """Completions that hold a program each, and their problems; a program sleeps so long."""
    problems = [Problem(f"p{i}", "q", "", "code", meta={"test_list": [f"assert total({i}) == {i}"]})
                for i in range(count)]
    texts = [f"</think>```python\nimport time\ntime.sleep({seconds})\n"
             f"def total(x): return x + {i % 3 == 0:d}\n```" for i in range(count)]
    return texts, problems


def judging(nodes, texts, problems):
    """(seconds, verdicts) of judging on so many nodes of one processor."""
    with ray_cluster(nodes) as cluster, ClusterPool(RayCluster(address=cluster.address), 1) as pool:
        pool.judge_many(texts[:8 * nodes], problems[:8 * nodes])      # imports, worker processes
        began = time.monotonic()
        found = pool.judge_many(texts, problems)
        return time.monotonic() - began, found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--verdicts", type=int, default=20_000)
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--only", choices=("asking", "judging"))
    given = parser.parse_args()
    out = {}
    if given.only != "judging":
        three, one = (asking(nodes, given.requests) for nodes in (3, 1))
        out |= {"requests": given.requests, "seconds_three": three[0], "seconds_one": one[0],
                "of_a_third": 3 * three[0] / one[0],
                "of_a_third_in_the_middle": 3 * three[1] / one[1], "driver_mb": [three[2], one[2]]}
    if given.only != "asking":
        texts, problems = programs(given.verdicts, given.sleep)
        two, one = (judging(nodes, texts, problems) for nodes in (2, 1))
        with JudgePool(2) as pool:
            here = pool.judge_many(texts, problems)
        out |= {"verdicts": given.verdicts, "seconds_two_nodes": two[0], "seconds_one_node": one[0],
                "of_a_half": 2 * two[0] / one[0], "same": two[1] == one[1] == here}
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
