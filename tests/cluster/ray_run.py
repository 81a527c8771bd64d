"""One run of asking on a Ray cluster as a process of its own, for tests that kill it.

Arguments: the cluster's address, store folder, number of problems, concurrency of a node; then the
endpoint's address, or none for vLLM servers, and max_usd.
"""

import sys
from pathlib import Path

import polars as pl

from pipeline.config.experiment import RayCluster
from pipeline.config.teacher import OpenAITeacher, Sampling, TeacherRuntime, VllmTeacher
from pipeline.errors import UserError
from pipeline.teacher import TraceStore
from pipeline.teacher.on_cluster import generate
from pipeline.teacher.request_table import RequestTable

SAMPLING = Sampling(max_tokens=100)
VLLM = VllmTeacher(model="m")
REMOTE = OpenAITeacher(model="m")


def requests(count):
    ids = pl.Series([f"p{i}" for i in range(count)], dtype=pl.String)
    return RequestTable(ids, lambda i: [{"role": "user", "content": f"question {i}"}], 1)


def run(address, folder, count, concurrency, url=None, max_usd=None, **cluster):
    """The outcome of asking `count` questions on the cluster."""
    runtime = TeacherRuntime(
        base_url=url, concurrency=int(concurrency), max_attempts=4, max_wait=0.5, timeout=20,
        max_usd=max_usd and float(max_usd), prices=max_usd and Path(folder) / "prices.yaml")
    with TraceStore(Path(folder)) as store:
        return generate(requests(int(count)), teacher=REMOTE if url else VLLM, sampling=SAMPLING,
                        runtime=runtime, store=store,
                        cluster=RayCluster(address=address, **cluster))


if __name__ == "__main__":
    try:
        print(run(*sys.argv[1:]), flush=True)
    except UserError as error:
        sys.exit(f"limbeck: {error}")
