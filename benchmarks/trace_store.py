"""What the trace store costs: one writer's figures beside another checkout's, and 1,000,000 traces.

    python -m benchmarks.trace_store [OTHER_CHECKOUT]
    python -m benchmarks.trace_store --generate OTHER_CHECKOUT

Each figure of one writer is the median, in seconds of the processor, of runs that alternate between
the two checkouts, as processes of their own, so that what else the machine does falls on both.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.config.teacher import OpenAITeacher, Sampling, TeacherRuntime
from pipeline.teacher import generate
from pipeline.teacher.request import Keys, Request
from pipeline.teacher.store import TraceStore

ROUNDS, ROWS, TRACES, SEGMENTS, WRITERS = 7, 20_000, 1_000_000, 300, 3
TEACHER, SAMPLING = OpenAITeacher(model="m"), Sampling(temperature=0.6)
ROW = {"thinking": "so " * 200, "answer": "42", "finish_reason": "stop", "complete": True,
       "prompt_tokens": 3, "completion_tokens": 4, "cost_usd": 0.5, "seconds": 1.0, "model": "m",
       "max_tokens": None, "failure": None, "origin": "", "messages": "[]"}


def wanted(problems, samples):
    chats = [[{"role": "user", "content": f"question {i}"}] for i in range(problems)]
    return [Request(f"p{i}", s, chat) for i, chat in enumerate(chats) for s in range(samples)]


def rows(requests):
    keys = Keys(TEACHER, SAMPLING)
    return [ROW | {"key": keys.of(one.messages), "sample": one.sample} for one in requests]


def one_writer():
    """Seconds of the processor for one writer to append, fold, plan and collect."""
    requests, out = wanted(ROWS // 16, 16), {}
    stored = rows(requests)
    with tempfile.TemporaryDirectory() as folder, TraceStore(Path(folder)) as store:
        began = time.process_time()
        with store.writing():
            for row in stored[:-1]:
                store.append(row)
            out["append"] = time.process_time() - began
            began = time.process_time()
        out["fold"] = time.process_time() - began
        for name, act in (("missing", store.missing), ("collect", store.collect)):
            began = time.process_time()
            act(requests, TEACHER, SAMPLING)
            out[name] = time.process_time() - began
    return out


def whole():
    """Seconds of the processor to ask and store ROWS / 4 traces; the endpoint is another process.

    Taken from the first request on, so that imports are not counted.
    """
    asked = wanted(ROWS // 4, 1)
    server = subprocess.Popen([sys.executable, Path(__file__).resolve(), "--serve"],
                              stdout=subprocess.PIPE, text=True)
    runtime = TeacherRuntime(base_url=server.stdout.readline().strip(), concurrency=64)
    try:
        with tempfile.TemporaryDirectory() as folder, TraceStore(Path(folder)) as store:
            for part in (asked[:200], asked):
                began = time.process_time()
                generate(part, teacher=TEACHER, sampling=SAMPLING, runtime=runtime, store=store)
            assert not store.missing(asked, TEACHER, SAMPLING)
            return {"generate": time.process_time() - began}
    finally:
        server.kill()


def serve():
    from tests.fault_server import Answer, FaultServer, completion

    with FaultServer(lambda call: Answer(completion("42" * 200))).running() as url:
        print(url, flush=True)
        time.sleep(3600)


def compare(other, act="--one"):
    """Print each figure of this checkout over the other's."""
    found = {folder: [] for folder in (".", other)}
    for _ in range(ROUNDS):
        for folder, figures in found.items():
            done = subprocess.run(
                [sys.executable, Path(__file__).resolve(), act], cwd=folder, check=True,
                capture_output=True, text=True, env={"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"})
            figures.append(json.loads(done.stdout))
    for name in found["."][0]:
        here, there = (statistics.median(run[name] for run in found[folder]) for folder in found)
        least = [min(run[name] for run in found[folder]) for folder in found]
        print(f"{name}: {here:.3f} s here, {there:.3f} s there, ratio {here / there:.3f}, of the "
              f"least {least[0] / least[1]:.3f}")


def many_segments():
    """Print seconds and memory to know 1,000,000 traces in 300 segments of three writers."""
    per_writer, size = SEGMENTS // WRITERS, -(-TRACES // SEGMENTS)
    requests = wanted(TRACES // 16, 16)
    with tempfile.TemporaryDirectory() as folder:
        stores = [TraceStore(Path(folder)) for _ in range(WRITERS)]
        parts = [requests[start:start + size] for start in range(0, TRACES, size)]
        for part in range(per_writer):
            for writer, store in enumerate(stores):
                with store.writing():
                    stored = rows(parts[part * WRITERS + writer])
                    store._write_segment(Path(folder) / f"{store._new_stem()}.journal", stored)
        command = [sys.executable, Path(__file__).resolve(), "--know", folder]
        print(subprocess.run(command, check=True, capture_output=True, text=True,
                             env={"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}).stdout.strip())


def know(folder):
    requests, before = wanted(TRACES // 16, 17), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    left = TraceStore(Path(folder)).missing(requests, TEACHER, SAMPLING)
    took, most = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    segments = len(list(Path(folder).glob("*.parquet")))
    print(f"{TRACES:,} traces in {segments} segments: {len(left):,} missing known in {took:.2f} s "
          f"(processor {time.process_time():.1f} s with the requests), {most / 1024:,.0f} MB in "
          f"all, {(most - before) / 1024:,.0f} MB of them for that")


if __name__ == "__main__":
    if sys.argv[1:] == ["--one"]:
        print(json.dumps(one_writer()))
    elif sys.argv[1:] == ["--whole"]:
        print(json.dumps(whole()))
    elif sys.argv[1:] == ["--serve"]:
        serve()
    elif sys.argv[1:2] == ["--generate"]:
        compare(sys.argv[2], "--whole")
    elif sys.argv[1:2] == ["--know"]:
        know(sys.argv[2])
    else:
        many_segments()
        if sys.argv[1:]:
            compare(sys.argv[1])
