"""Kills random nodes, servers and drivers of a Ray cluster while it asks, and counts what was lost.

Three nodes on this machine, a stand-in for a vLLM server on each.
`python -m benchmarks.ray_kills --requests 5000 --kills 50` prints one JSON object.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from pipeline.teacher.store import TraceStore
from tests.cluster import ray_run
from tests.cluster.ray_nodes_here import (
    NODE,
    asked,
    environment,
    of_nodes,
    ray_cluster,
    vllm_stand_in,
)

DELAY, CONCURRENCY = 1.0, 8


class Killer:
    """Kills one thing at a time."""

    def __init__(self, cluster, folder, count, seed):
        self.cluster, self.folder, self.count = cluster, folder, count
        self.random, self.kills = random.Random(seed), []
        self.driver = None

    def start(self):
        self.driver = subprocess.Popen([
            sys.executable, "-m", "tests.cluster.ray_run", self.cluster.address,
            str(self.folder / "store"), str(self.count), str(CONCURRENCY)],
            stdout=(self.folder / "driver.log").open("ab"), stderr=subprocess.STDOUT)

    def alive(self):
        """Processes of stand-ins that were asked in the last second."""
        now = time.time()
        return sorted({pid for when, _, pid in asked(self.folder / "bin") if now - when < 1})

    def kill(self):
        what = self.random.choice(("node", "server", "driver"))
        pids = self.alive()
        if not pids or (what == "node" and not self.cluster.worker_nodes):
            return
        if what == "driver":
            self.driver.kill()
            self.driver.wait()
            self.start()
        elif what == "server":
            os.kill(self.random.choice(pids), signal.SIGKILL)
        else:
            node = self.random.choice(list(self.cluster.worker_nodes))
            self.cluster.remove_node(node, allow_graceful=False)
            with environment(**of_nodes(self.folder / "bin")):
                self.cluster.add_node(**NODE, num_gpus=1)
        self.kills.append(what)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ray-kills-"))
    began = time.time()
    with ray_cluster(3, vllm_stand_in(folder, DELAY), num_gpus=1) as cluster:
        killer = Killer(cluster, folder, given.requests, given.seed)
        killer.start()
        while len(killer.kills) < given.kills and killer.driver.poll() is None:
            time.sleep(killer.random.uniform(0.5, 3))
            killer.kill()
        code = killer.driver.wait()
        print(json.dumps({"requests": given.requests, "kills": len(killer.kills),
                          **{what: killer.kills.count(what) for what in set(killer.kills)},
                          **counts(folder, given.requests),
                          "exit_code": code, "seconds": round(time.time() - began)}, indent=1))


def counts(folder, count):
    """What is in the store, and what was asked more than once."""
    store = TraceStore(folder / "store")
    requests = ray_run.requests(count)
    found = len(store.collect(requests, ray_run.VLLM, ray_run.SAMPLING))
    asks = len(asked(folder / "bin"))
    rows = len(store._index())
    return {"lost": count - found, "stored_twice": rows - found, "asked_again": asks - count,
            "in_flight_at_deaths": in_flight(folder)}


def in_flight(folder):
    """Requests that servers had in flight when they ended before the last one: sent within DELAY
    of the last that each got."""
    by_pid = defaultdict(list)
    for when, _, pid in asked(folder / "bin"):
        by_pid[pid].append(when)
    end = max(map(max, by_pid.values()))
    return sum(when > max(times) - DELAY
               for times in by_pid.values() if max(times) < end - 3 * DELAY
               for when in times)


if __name__ == "__main__":
    main()
