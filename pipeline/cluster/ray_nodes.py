"""A Ray cluster: connection, its nodes, and whether they run the same limbeck as this machine."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.config.experiment import RayCluster, Runtime
from pipeline.errors import LackingError, UserError
from pipeline.serving.processes import STOP_SIGNALS

CONNECT_SECONDS, POLL_SECONDS = 5.0, 1.0
"""To reach the head, and between two looks at what is waited for."""
PACKAGE = Path(__file__).parents[1]


def check_cluster(runtime: Runtime) -> None:
    """Raise LackingError if `runtime` names a Ray cluster, and Ray is not installed."""
    if runtime.cluster is not None and find_spec("ray") is None:
        raise LackingError("runtime.cluster needs Ray, which is not installed; run pip install "
                           "'.[ray]' in limbeck's checkout, or unset runtime.cluster")


@contextmanager
def connected(cluster: RayCluster) -> Iterator[Any]:
    """Yield the module ray, connected to `cluster` within the block, and the blocks inside it.

    Raises UserError if no cluster is there, or it runs another version of Ray or Python.
    """
    # Ray prints the logs of raylets on standard output when a worker dies; ours is for results.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "(?s).*")
    import ray

    if ray.is_initialized():
        yield ray
        return
    _reach(cluster.address)
    # Ray takes SIGTERM for itself; limbeck's handler saves what there is.
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"runtime.cluster.address={cluster.address}: {_reason(error)}; give the "
                        "address that `ray start --head` printed, run limbeck on a node of that "
                        "cluster, with the versions that it runs") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise UserError if nothing listens at `address`; Ray itself would try for 80 seconds."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at runtime.cluster.address={address} ({error}); "
                        "start one by `ray start --head`, which prints its address, and `ray start "
                        "--address=HOST:PORT` on each further node") from None


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of Ray says, at most 200 characters."""
    return str(error).strip().partition("\n")[0][:200]


def raised_by(error: Any) -> Exception:
    """Return what to raise for a RayTaskError: the UserError of the work, or of missing code."""
    if isinstance(error.cause, UserError):
        return error.cause
    return lacks_code(error) or error


def no_node(seconds: float) -> str:
    """Say that no node could work for so long."""
    return (f"no node of the cluster could work for {seconds:,.0f} s; add nodes and run the same "
            "command again")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0][:300].rstrip(".")


def living_nodes(ray: Any) -> dict[str, dict[str, Any]]:
    """Nodes that are up and have a processor for work, by id."""
    return {node["NodeID"]: node for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU", 0) > 0}


def node_gpus(ray: Any) -> dict[str, int]:
    """GPUs of each node that is up."""
    return {node: int(one["Resources"].get("GPU", 0)) for node, one in living_nodes(ray).items()}


class Patience:
    """What is left of `seconds` to wait for nodes that train."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began, self.said = seconds, time.monotonic(), ""

    def spend(self, sentence: str) -> None:
        """Say once what is waited for. Raises UserError with it when no time is left."""
        if time.monotonic() - self.began >= self.seconds:
            raise UserError(f"{sentence}, after {self.seconds:,.0f} s (runtime.cluster.patience); "
                            "add nodes by `ray start --address=HOST:PORT`, and the same command "
                            "goes on")
        if sentence != self.said:
            print(f"training: {sentence}; waiting for them", file=sys.stderr)
        self.said = sentence


def pinned(ray: Any, node: str, **options: Any) -> dict[str, Any]:
    """Options of a task or actor that shall run on `node` and nowhere else."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
            **options}


@lru_cache
def code_digest() -> str:
    """A digest of limbeck's code, which a version alone does not tell apart."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def check_same_code(digest: str) -> None:
    """Raise UserError if this node has another limbeck than the machine with code `digest`."""
    if digest != code_digest():
        raise UserError(f"node {socket.gethostname()} of the cluster has another limbeck (code "
                        f"{code_digest()}) than this machine ({digest}); install the same on every "
                        "node")


def check_sees(path: Path) -> None:
    """Raise UserError if this node does not see `path`."""
    if not path.exists():
        raise UserError(f"node {socket.gethostname()} of the cluster does not see {path}; put it "
                        "on a file system that every node has at the same path")


def lacks_code(error: BaseException) -> UserError | None:
    """The UserError of a node without limbeck, if `error` of Ray says that."""
    text = str(error)
    if "No module named 'pipeline" not in text:
        return None
    return UserError("a node of the cluster has no limbeck; install it there, in the environment "
                     "in which `ray start` is called")
