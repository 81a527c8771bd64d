"""Trains on several nodes of a Ray cluster: accelerate on each, anew where a node is lost.

Every attempt goes on from the last whole checkpoint, with as many nodes as the first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.nodes import ACCELERATE, accelerate_flags, over_nodes
from pipeline.cluster.ray_nodes import (
    POLL_SECONDS,
    Patience,
    check_cluster,
    code_digest,
    connected,
    first_line,
    lacks_code,
    living_nodes,
    node_gpus,
    raised_by,
)
from pipeline.cluster.rollout_node import RolloutServer, Serving, gpus_to_train, serving_node
from pipeline.cluster.train_node import TrainNode
from pipeline.config.experiment import RayCluster, Runtime
from pipeline.errors import LackingError, UserError
from pipeline.serving.disk import WHOLE_FILES

END_SECONDS = 60.0
"""For the nodes to end an attempt."""
PASSED = ("NCCL_", "GLOO_", "TORCH", "PYTORCH_", "OMP_", "HF_", "LIMBECK_", "WANDB_", "TRACKIO_")
"""Beginnings of the environment variables that training on each node takes from this machine."""


def machines(options: Mapping[str, Any]) -> int:
    """Machines that accelerate's `options` name, 1 by default."""
    return _number(options, "num_machines") or 1


def _number(options: Mapping[str, Any], name: str) -> int | None:
    try:
        return None if (given := options.get(name)) is None else int(given)
    except (TypeError, ValueError):
        raise UserError(f"runtime.launch.{name}={given!r} is no number; give one such as 2") \
            from None


def spans_cluster(cluster: RayCluster | None, options: Mapping[str, Any]) -> bool:
    """Whether `cluster` starts accelerate on several nodes; a rank given by hand says no."""
    return cluster is not None and machines(options) > 1 and "machine_rank" not in options


def check_launch(runtime: Runtime) -> None:
    """Raise UserError if nodes of a cluster shall train, and could not by these settings."""
    options = runtime.launch
    if not spans_cluster(runtime.cluster, options):
        return
    check_cluster(runtime)
    nodes, processes = machines(options), _number(options, "num_processes")
    if processes is not None and (processes % nodes or processes < nodes):
        raise UserError(f"runtime.launch.num_processes={processes} counts those of all "
                        f"{nodes} machines, and each machine gets the same number; give a multiple "
                        f"of {nodes}")


@dataclass(frozen=True)
class Training:
    """What every attempt starts."""

    options: Mapping[str, Any]
    """Of accelerate, with the processes of all nodes."""
    gpus: int
    """GPUs that a node gives."""
    arguments: list[str]
    """-m MODULE JOB.json"""
    environment: dict[str, str]
    out: Path
    patience: float
    """Seconds to wait for nodes."""
    asked: Callable[[], bool]
    """Whether a stop was asked for."""

    @property
    def nodes(self) -> int:
        return machines(self.options)


@dataclass
class Node:
    """A node of an attempt."""

    actor: Any
    address: str
    rank: int

    def __str__(self) -> str:
        return f"machine {self.rank} ({self.address})"


def train_on_nodes(cluster: RayCluster, options: Mapping[str, Any], arguments: list[str],
                   environment: Mapping[str, str], out: Path, asked: Callable[[], bool],
                   server: RolloutServer | None = None) -> int:
    """Run `arguments` by accelerate on the nodes that `options` count; returns an exit code.

    Each attempt has a `server` of its own. It all ends when counts.json or failure.txt is in `out`,
    or a stop was `asked` for. An attempt that ends otherwise is followed by another. Raises
    UserError if a second one comes no further, or if the nodes are not there for
    `cluster.patience` seconds.
    """
    keys = {name: value for name, value in os.environ.items() if name.endswith("_API_KEY")}
    with connected(cluster) as ray:
        processes, gpus = layout(options, node_gpus(ray), server)
        training = Training({**options, "num_processes": processes}, gpus, arguments,
                            {**_passed(os.environ), **keys, **environment}, out.resolve(),
                            cluster.patience, asked)
        before: list[str] | None = None
        while True:
            with serving_node(ray, server, training.nodes, gpus, cluster.patience, asked) \
                    as serving, reserved(ray, training) as nodes:
                ready = nodes and (serving or not server)
                lost = Attempt(ray, training, nodes, serving).main() if ready else None
            if lost is None or asked() or (out / "failure.txt").is_file():
                return int(lost is not None)
            reached = whole_checkpoints(out)
            if reached == before:
                raise UserError(f"training came no further than {_last(reached)} in two attempts, "
                                f"the second ended as {lost}; its output is in {out}/node-*.log")
            before = reached
            print(f"training: {lost}; going on from {_last(reached)}", file=sys.stderr)


def _passed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(PASSED)}


def layout(options: Mapping[str, Any], node_gpus: Mapping[str, int],
           server: RolloutServer | None = None) -> tuple[int, int]:
    """Return (processes of all nodes, GPUs of each) for a cluster with the GPUs `node_gpus`.

    Raises LackingError if FSDP needs GPUs that no node has, or the `server` leaves too few.
    """
    count, given = machines(options), _number(options, "num_processes")
    gpus = sorted(node_gpus.values(), reverse=True)
    if options.get("use_fsdp") and not any(gpus):
        raise LackingError("runtime.launch.use_fsdp shards over GPUs and no node of the cluster "
                           "has one; add nodes with GPUs, or set runtime.launch.use_fsdp=false")
    if server is not None:
        each = gpus_to_train(node_gpus, server, count, given // count if given else None)
        return each * count, each
    # Of unequal nodes all of the smaller ones' GPUs, as each node starts as many processes.
    each = given // count if given else max([1, *gpus[count - 1:count]])
    return each * count, each if any(gpus) else 0


def whole_checkpoints(out: Path) -> list[str]:
    """Name the finished checkpoints under `out`, of all phases."""
    return sorted(str(path.parent.relative_to(out))
                  for path in out.glob(f"**/checkpoint-*/{WHOLE_FILES}"))


def _last(checkpoints: Sequence[str]) -> str:
    """The name of the newest of `checkpoints`."""
    newest = sorted((path.rpartition("/")[0], int(path.rpartition("-")[2]), path)
                    for path in checkpoints)
    return newest[-1][2].rpartition("/")[2] if newest else "its beginning"


@contextmanager
def reserved(ray: Any, training: Training) -> Iterator[list[Node]]:
    """Yield a node of its own for each rank, within the block; none if a stop was asked for.

    Raises UserError if they are not there within the training's patience.
    """
    from ray.util import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    needs = {"CPU": 1, **({"GPU": training.gpus} if training.gpus else {})}
    group = placement_group([needs] * training.nodes, strategy="STRICT_SPREAD")
    try:
        patience = Patience(training.patience)
        while not group.wait(POLL_SECONDS):
            if training.asked():
                yield []
                return
            patience.spend(_lacking(ray, training))
        table = ray.util.placement_group_table(group)["bundles_to_node_id"]
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        make = ray.remote(max_concurrency=2, max_restarts=0)(TrainNode)
        places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
                  for rank in range(training.nodes)]
        yield [Node(make.options(num_cpus=1, num_gpus=training.gpus, scheduling_strategy=place)
                    .remote(), addresses[table[rank]], rank) for rank, place in enumerate(places)]
    finally:
        remove_placement_group(group)


def _lacking(ray: Any, training: Training) -> str:
    """Say how many nodes are wanted and there."""
    fit = [node for node in living_nodes(ray).values()
           if node["Resources"].get("GPU", 0) >= training.gpus]
    kind = f" with {training.gpus} GPU(s) each" if training.gpus else ""
    busy = ", not all of them free" if len(fit) >= training.nodes else ""
    return (f"runtime.launch.num_machines={training.nodes} wants so many nodes{kind}, and the "
            f"cluster has {len(fit)}{busy}")


class Attempt:
    """One start of accelerate on `nodes`, after that of the server that they sample from."""

    def __init__(self, ray: Any, training: Training, nodes: list[Node],
                 serving: Serving | None = None) -> None:
        self.ray, self.training, self.nodes, self.serving = ray, training, nodes, serving
        self.log = self.log_of(nodes[0])
        self.shown = self.log.stat().st_size if self.log.is_file() else 0
        """Bytes of the first node's output that the user has seen."""

    def main(self) -> str | None:
        """Train; returns None if it is done, else how it ended. Every node has ended then.

        Raises UserError if a node cannot train.
        """
        stopped, counts = (self.training.out / name for name in ("stopped.txt", "counts.json"))
        stopped.unlink(missing_ok=True)     # of nodes that were told to end, though nobody asked
        errors = self.ray.exceptions
        try:
            lost = self._run(self._prepare())
        except errors.RayTaskError as error:
            raise raised_by(error) from None
        except errors.RayError as error:
            if lacking := lacks_code(error):
                raise lacking from None
            lost = f"a node was lost ({first_line(error)})"
        finally:
            ends = [node.actor.end.remote() for node in self.nodes]
            self.ray.wait(ends, num_returns=len(ends), timeout=END_SECONDS)
            self._show()
        # Opening a folder asks a network file system anew for what it said was not there.
        with os.scandir(self.training.out):
            return None if counts.is_file() else lost or "all nodes ended without a result"

    def log_of(self, node: Node) -> Path:
        """The file of a node's output."""
        return self.training.out / f"node-{node.rank}.log"

    def _prepare(self) -> dict[Any, Node | Serving]:
        """Start server and training; returns the calls that wait for them, none after a stop.

        Raises UserError if a node has other code, or not the folders, or the server cannot start.
        """
        training, first = self.training, self.nodes[0]
        seen = [Path.cwd(), Path(training.arguments[-1])]
        port = self.ray.get([node.actor.prepare.remote(node.address, code_digest(), seen,
                                                       training.arguments)
                             for node in self.nodes])[0]
        calls: dict[Any, Node | Serving] = {}
        if self.serving is not None:
            if not self.serving.start(_passed(training.environment), training.arguments[-1],
                                      training.asked):
                return {}
            calls[self.serving.actor.wait.remote()] = self.serving
        options = over_nodes(training.options, training.nodes, training.gpus, first.address, port)
        return calls | {node.actor.run.remote(
            [*ACCELERATE, "--machine_rank", str(node.rank), *accelerate_flags(options),
             *training.arguments], node.address,
            training.environment, Path.cwd(), self.log_of(node)): node for node in self.nodes}

    def _run(self, calls: dict[Any, Node | Serving]) -> str | None:
        """Wait for the nodes' `calls`; returns how the first one ended that did not succeed."""
        while any(one is not self.serving for one in calls.values()):
            done, _ = self.ray.wait(list(calls), timeout=POLL_SECONDS)
            self._show()
            for call in done:
                one = calls.pop(call)
                try:
                    code, lines = self.ray.get(call)
                except self.ray.exceptions.RayActorError:
                    return f"{one} was lost"
                if code or one is self.serving:
                    if one is not self.nodes[0]:
                        print("\n".join(lines), file=sys.stderr)
                    return f"{one} ended with code {code}"
        return None

    def _show(self) -> None:
        """Copy what the first node has said since to standard error."""
        if self.log.is_file():
            with self.log.open("rb") as file:
                file.seek(self.shown)
                sys.stderr.write(file.read().decode("utf-8", errors="replace"))
                self.shown = file.tell()
