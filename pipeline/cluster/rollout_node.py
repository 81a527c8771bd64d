"""The server that samples for training on a cluster: in an actor, on GPUs that training leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pipeline.cluster.ray_nodes import (
    POLL_SECONDS,
    Patience,
    check_same_code,
    check_sees,
    code_digest,
    node_gpus,
)
from pipeline.config.job import Job
from pipeline.errors import LackingError, UserError
from pipeline.serving.in_actor import in_actor
from pipeline.serving.processes import free_port
from pipeline.serving.vllm_server import gpus_of, tail, trl_server

END_SECONDS = 60.0
"""For the server to end by itself."""
OVER_NODES = ""
"""In the place of a node: the GPUs of several."""


@dataclass(frozen=True)
class RolloutServer:
    """What serves in each attempt at a training."""

    model: str
    options: Mapping[str, Any]
    """Of `vllm serve`."""
    job_at: Callable[[str], Job]
    """The training that samples from the server at an address."""

    @property
    def gpus(self) -> int:
        return gpus_of(self.options)


class RolloutNode:
    """An actor of two threads: one waits for the server's end, the other starts and ends it."""

    def __init__(self) -> None:
        self._server, self._codes = ExitStack(), SimpleQueue[int]()

    def start(self, model: str, options: Mapping[str, Any], environment: Mapping[str, str],
              folder: Path, log: Path, digest: str, over_nodes: bool) -> str:
        """Serve `model` in `folder`; returns its address once it answers.

        Raises UserError if this node has other code than `digest` or does not see the folders, and
        as vllm_servers.
        """
        import ray

        check_same_code(digest)
        for path in (folder, log.parent):
            check_sees(path)
        os.chdir(folder)
        self._log = log
        address = ray.util.get_node_ip_address()
        executor = {"distributed_executor_backend": "ray"} if over_nodes else {}
        return self._server.enter_context(trl_server(
            model, {"host": address, "port": free_port(address), **executor, **options}, log,
            environment, on_exit=self._codes.put, start=in_actor if over_nodes else None))

    def wait(self) -> tuple[int, list[str]]:
        """Return the code of the server and its last lines, once it has ended."""
        return self._codes.get(), tail(self._log).splitlines()

    def end(self) -> None:
        """End the server."""
        self._server.close()


def left_to_train(gpus: Mapping[str, int], server: int, count: int) -> dict[str, int]:
    """By node that may hold the server: the GPUs that each of `count` nodes has left then.

    `gpus` are those of each node. A server that no node holds is OVER_NODES.
    """
    places = {node: {**gpus, node: own - server} for node, own in gpus.items() if own >= server}
    if not places and sum(gpus.values()) >= server:
        # Ray packs it on as few nodes as can be.
        left, wanted = dict(gpus), server
        for node in sorted(gpus, key=lambda one: -gpus[one]):
            left[node] -= (taken := min(wanted, left[node]))
            wanted -= taken
        places = {OVER_NODES: left}
    return {place: min(sorted(left.values(), reverse=True)[:count]) if len(left) >= count else 0
            for place, left in places.items()}


def gpus_to_train(gpus: Mapping[str, int], server: RolloutServer, count: int,
                  each: int | None) -> int:
    """Return the GPUs of each of `count` nodes: `each`, or all that the server leaves.

    Raises LackingError if it leaves too few.
    """
    left = max(left_to_train(gpus, server.gpus, count).values(), default=0)
    if left < (each or 1):
        there = ", ".join(str(own) for own in sorted(gpus.values(), reverse=True) if own) or "none"
        raise LackingError(
            f"rl.server needs {server.gpus} GPU(s) beside {each or 1} on each of {count} machines "
            f"that train, and the nodes of the cluster have {there}; add nodes with GPUs, or lower "
            "rl.server.tensor_parallel_size, runtime.launch.num_processes or num_machines")
    if OVER_NODES in left_to_train(gpus, server.gpus, count) and \
            int(server.options.get("data_parallel_size", 1)) > 1:
        raise UserError(f"rl.server needs {server.gpus} GPUs, more than a node of the cluster has, "
                        "and only one copy of the model spreads over nodes; remove "
                        "rl.server.data_parallel_size")
    return each or left


@dataclass
class Serving:
    """The server of one attempt."""

    ray: Any
    server: RolloutServer
    actor: Any
    over_nodes: bool

    def __str__(self) -> str:
        return "the server of rl.server"

    def start(self, environment: Mapping[str, str], job: str, asked: Callable[[], bool]) -> bool:
        """Start it and write its address into the file `job`; False if a stop was `asked` for."""
        call = self.actor.start.remote(
            self.server.model, dict(self.server.options), environment, Path.cwd(),
            Path(job).with_name("vllm.log"), code_digest(), self.over_nodes)
        while not self.ray.wait([call], timeout=POLL_SECONDS)[0]:
            if asked():
                return False
        self.server.job_at(self.ray.get(call)).save(Path(job))
        return True


@contextmanager
def serving_node(ray: Any, server: RolloutServer | None, count: int, each: int, patience: float,
                 asked: Callable[[], bool]) -> Iterator[Serving | None]:
    """Yield an actor on GPUs for the server, within the block.

    None if there is no server or a stop was `asked` for. The GPUs leave `each` on each of `count`
    nodes. Raises UserError if they are not there within `patience` seconds.
    """
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if server is None:
        yield None
        return
    with _reserved(ray, server, count, each, Patience(patience), asked) as (group, over_nodes):
        if group is None:
            yield None
            return
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        actor = ray.remote(max_concurrency=2, max_restarts=0)(RolloutNode).options(
            num_cpus=0, num_gpus=0 if over_nodes else server.gpus,
            scheduling_strategy=place).remote()
        try:
            yield Serving(ray, server, actor, over_nodes)
        finally:
            ray.wait([actor.end.remote()], timeout=END_SECONDS)


@contextmanager
def _reserved(ray: Any, server: RolloutServer, count: int, each: int, patience: Patience,
              asked: Callable[[], bool]) -> Iterator[tuple[Any, bool]]:
    """Yield (a placement group with the server's GPUs or None, whether it lies on several nodes).
    """
    from ray.util import remove_placement_group

    group, before = None, list[str]()
    try:
        while not asked():
            gpus = node_gpus(ray)
            places = [place for place, left in left_to_train(gpus, server.gpus, count).items()
                      if left >= each]
            if places != before and group is not None:      # a node was lost, or came
                remove_placement_group(group)
                group = None
            if places and group is None:
                group = _group(server.gpus, places)
            before = places
            if group is not None and group.wait(POLL_SECONDS):
                yield group, places == [OVER_NODES]
                return
            busy = ", not all of them free" if places else ""
            patience.spend(f"rl.server wants {server.gpus} GPU(s) beside {each} on each of {count} "
                           f"machines, and the cluster has {sum(gpus.values())}{busy}")
            if group is None:
                time.sleep(POLL_SECONDS)
        yield None, False
    finally:
        if group is not None:
            remove_placement_group(group)


def _group(gpus: int, places: Sequence[str]) -> Any:
    """A placement group of `gpus` on one of the nodes `places`, or on several nodes."""
    from ray.util import placement_group

    if list(places) == [OVER_NODES]:
        return placement_group([{"GPU": 1}] * gpus, strategy="PACK")
    chosen = {"ray.io/node-id": f"in({','.join(places)})"}
    return placement_group([{"GPU": gpus}], bundle_label_selector=[chosen])
