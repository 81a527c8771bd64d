"""Runs a server in an actor of Ray, for a model that lies on the GPUs of several nodes.

vLLM takes the placement group of its workers from the actor that it runs in (0.24:
vllm/engine/arg_utils.py, create_engine_config; vllm/v1/executor/ray_utils.py,
initialize_ray_cluster); in a child of an actor it would make a group of its own, on GPUs that this
one holds already. So the command, a Python script, runs in the actor's process itself.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


class ServerActor:
    """An actor whose main thread becomes the server."""

    def serve(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        """Run the Python script `command` with its output in `log`; returns when it ends."""
        script = shutil.which(command[0])
        if script is None:
            raise UserError(f"{command[0]} is not installed on a node of the cluster; install the "
                            "same limbeck with the extra vllm on every node")
        with log.open("ab", buffering=0) as sink:
            for stream in (1, 2):
                os.dup2(sink.fileno(), stream)
        os.environ |= environment
        sys.argv = [script, *command[1:]]
        runpy.run_path(script, run_name="__main__")


class ActorProcess:
    """What the starter of a server asks of a process (subprocess.Popen), for an actor."""

    def __init__(self, ray: Any, call: Any) -> None:
        self._ray, self._call = ray, call
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return 1 if the actor has ended."""
        return self._after(0)

    def wait(self) -> int | None:
        """Return 1 once it has ended."""
        return self._after(None)

    def _after(self, seconds: float | None) -> int | None:
        if self._ray.wait([self._call], timeout=seconds)[0]:
            self.returncode = 1
        return self.returncode


@contextmanager
def in_actor(command: list[str], environment: Mapping[str, str],
             log: Path) -> Iterator[ActorProcess]:
    """Run `command` on the first GPU's node of the placement group that this actor is in.

    It ends with the block, with this actor and with the placement group.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group: Any = ray.util.get_current_placement_group()
    # The GPUs are for the workers that vLLM starts in the same group.
    options = {"num_cpus": 0, "scheduling_strategy": PlacementGroupSchedulingStrategy(
        group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True)}
    actor: Any = ray.remote(ServerActor).options(**options).remote()
    try:
        yield ActorProcess(ray, actor.serve.remote(command, dict(environment), log.absolute()))
    finally:
        ray.kill(actor)
