"""Kills random nodes, servers and drivers of a Ray cluster while it asks, and counts what was lost.

Three nodes on this machine, a stand-in for a vLLM server on each.
`python -m benchmarks.ray_kills --requests 5000 --kills 50` prints one JSON object.

With `--ceiling` the nodes ask one endpoint whose answers cost 0.08 dollars, of at most 0.1, and not
servers but the processes that ask are killed. max_usd is 0.9 of what all answers cost, so that the
run stops there, after nine in ten of the kills; the same command with three times as much then ends
it. The endpoint counts what it billed.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.record import Record
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
from tests.fault_server import Answer, FaultServer, completion

DELAY, CONCURRENCY = 1.0, 8
TOKENS, USD = 80, 0.08
"""Of an answer, and what it costs."""


class Endpoint(FaultServer):
    """Knows of each request when it was answered, and when its connection ended."""

    def __init__(self, *given):
        super().__init__(*given)
        self.answered, self.writers, self.last, self.ended = {}, {}, {}, {}

    async def _answer(self, writer, call):
        self.writers[call.number], self.last[writer] = writer, call.number
        goes_on = await super()._answer(writer, call)
        self.answered[call.number] = time.monotonic()
        return goes_on

    async def _serve(self, reader, writer):
        await super()._serve(reader, writer)
        self.ended[writer] = time.monotonic(), reader.exception() is not None

    def asked_again(self):
        """How many requests were asked again, and of how many of these who had asked was killed:
        before the answer, or before it was read, or so many seconds after it."""
        before, again = {}, []
        for call in self.calls:
            if call.question in before:
                again.append(before[call.question])
            before[call.question] = call.number
        found = {"asked_again": len(again), "in_flight": 0, "unread": 0, "seconds_after": []}
        for number in again:
            writer = self.writers[number]
            when, unread = self.ended.get(writer, (time.monotonic(), False))
            answered = self.answered.get(number, when)
            if when <= answered:
                found["in_flight"] += 1
            elif unread and number == self.last[writer]:     # reset, since an answer lay there
                found["unread"] += 1
            else:
                found["seconds_after"].append(round(when - answered, 3))
        return found

    def idle(self):
        return not self.calls or time.monotonic() - self.calls[-1].time > DELAY


class Killer:
    """Kills one thing at a time."""

    def __init__(self, cluster, folder, count, seed, more=()):
        self.cluster, self.folder, self.count, self.more = cluster, folder, count, list(more)
        self.random, self.kills = random.Random(seed), []
        self.driver, self.server = None, None

    def start(self):
        self.driver = subprocess.Popen([
            sys.executable, "-m", "tests.cluster.ray_run", self.cluster.address,
            str(self.folder / "store"), str(self.count), str(CONCURRENCY), *self.more],
            stdout=(self.folder / "driver.log").open("ab"), stderr=subprocess.STDOUT)

    def alive(self):
        """Processes of stand-ins that were asked in the last second, or all that ask then."""
        if self.more:
            if self.server.idle():
                return []
            raylets = [node.all_processes["raylet"][0].process.pid
                       for node in self.cluster.list_all_nodes()]
            listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True,
                                    check=True).stdout.splitlines()
            return [int(line.split()[0]) for line in listed
                    if "ray::NodeAsker" in line and int(line.split()[1]) in raylets]
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
    parser.add_argument("--ceiling", action="store_true")
    parser.add_argument("--into", help="the part of results/ray.json to write")
    given = parser.parse_args()
    record = Record("ray.json", given.into)
    folder = Path(tempfile.mkdtemp(prefix="ray-kills-"))
    began = time.time()
    with ray_cluster(3, vllm_stand_in(folder, DELAY), num_gpus=1) as cluster:
        killer = Killer(cluster, folder, given.requests, given.seed)
        found = below_a_ceiling(killer, given) if given.ceiling else {
            "exit_code": until_the_end(killer, given.kills), **counts(folder, given.requests)}
        record.write({"requests": given.requests, "kills": len(killer.kills),
                      **{what: killer.kills.count(what) for what in sorted(set(killer.kills))},
                      **found, "seconds": round(time.time() - began)})


def until_the_end(killer, kills):
    """Run a driver while there are kills left to do, and to its end; returns its code."""
    killer.start()
    while len(killer.kills) < kills and killer.driver.poll() is None:
        time.sleep(killer.random.uniform(0.5, 3))
        killer.kill()
    return killer.driver.wait()


def below_a_ceiling(killer, given):
    """What was billed under each of two ceilings, and what is stored in the end."""
    (store := killer.folder / "store").mkdir()
    (store / "prices.yaml").write_text("m: {input: 0, output: 1000}\n")
    server = Endpoint(lambda call: Answer(completion("42", usage=(10, TOKENS)), delay=DELAY))
    killer.server, out = server, {"codes": [], "max_usd": [], "billed_usd": []}
    with server.running() as url:
        for part, kills in ((0.9, given.kills * 9 // 10), (3, given.kills)):
            killer.more = [url, str(round(part * given.requests * USD))]
            out["codes"].append(until_the_end(killer, kills))
            out["max_usd"].append(float(killer.more[1]))
            out["billed_usd"].append(round(USD * len(server.calls), 2))
    rows = TraceStore(store)
    requests = ray_run.requests(given.requests)
    found = len(rows.collect(requests, ray_run.REMOTE, ray_run.SAMPLING))
    passed = any(b > m for b, m in zip(out["billed_usd"], out["max_usd"], strict=True))
    return {**out, "lost": given.requests - found, "stored_twice": len(rows._index("key")) - found,
            **server.asked_again(), "passed": passed}


def counts(folder, count):
    """What is in the store, and what was asked more than once."""
    store = TraceStore(folder / "store")
    requests = ray_run.requests(count)
    found = len(store.collect(requests, ray_run.VLLM, ray_run.SAMPLING))
    asks = len(asked(folder / "bin"))
    rows = len(store._index("key"))
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
