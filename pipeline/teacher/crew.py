"""The processes that ask on a cluster: one on each node, or one for each vLLM server's GPUs.

One that dies is replaced; what it had in flight others take over by the store's leases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.cluster.ray_nodes import living_nodes, no_node, pinned
from pipeline.config.experiment import RayCluster
from pipeline.config.teacher import Teacher
from pipeline.errors import UserError
from pipeline.serving.vllm_server import gpus_of
from pipeline.teacher.node_asker import NodeAsker

LOOK_SECONDS = 1.0
"""Between two looks at which nodes are there."""
MAX_DEATHS = 5
"""Deaths in a row, without a trace between them, after which a place is left alone."""
RETRY_SECONDS = 60.0
"""Until a node that could not reach the teacher tries again, while others can."""


@dataclass
class Member:
    """One process, and its calls that have not returned yet."""

    place: str
    actor: Any
    asking: Any
    counting: Any
    group: Any = None
    """The placement group of its server, if that lies on several nodes."""
    up: bool = False
    """Whether its process runs; one may wait for a node."""


class Crew:
    """Members at every place of the cluster; `begin(actor)` makes one ask."""

    def __init__(self, ray: Any, cluster: RayCluster, teacher: Teacher, arguments: tuple[Any, ...],
                 begin: Callable[[Any], Any]) -> None:
        self.ray, self.cluster, self.teacher = ray, cluster, teacher
        self.actor = ray.remote(max_concurrency=2, max_restarts=0)(NodeAsker)
        self.arguments, self.begin = arguments, begin
        self.members: dict[str, Member] = {}
        self.losses = 0
        self.deaths: dict[str, int] = {}
        self.out: dict[str, tuple[float, str]] = {}
        """Until when a place is left alone, and why if that is more than a moment."""
        self.gpus = gpus_of(teacher.vllm) if teacher.type == "vllm" else 0
        self.over_nodes = False
        self.places: list[str] = []
        self.seen, self._looked = time.monotonic(), 0.0
        """When a process last ran."""
        self.staff()

    def staff(self) -> None:
        """Start a member at each place that lacks one. Raises UserError if there is no GPU."""
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._look(now)
        for place in self.places:
            if place not in self.members and now >= self.out.get(place, (0.0, ""))[0]:
                self._start(place)

    def calls(self) -> dict[Any, Member]:
        """The member of each call that has not returned."""
        return {call: one for one in self.members.values() for call in (one.asking, one.counting)}

    def lose(self, member: Member, reason: str, stopped: bool = False) -> None:
        """Take a member away that died, or `stopped` since its requests fail."""
        place = member.place
        self.dismiss(member)
        self.losses += 1
        self.deaths[place] = self.deaths.get(place, 0) + 1
        wait = RETRY_SECONDS if stopped else min(0.1 * 4 ** (self.deaths[place] - 1), 30.0)
        if self.deaths[place] >= MAX_DEATHS:
            wait, stopped = math.inf, True
        self.out[place] = time.monotonic() + wait, reason if stopped else ""

    def dismiss(self, member: Member) -> None:
        """End a member's process and free its GPUs."""
        self.ray.kill(member.actor)
        if member.group is not None:
            self.ray.util.remove_placement_group(member.group)
        del self.members[member.place]

    def heard(self, member: Member) -> None:
        """Forget the earlier deaths at a place that stores traces again."""
        self.deaths.pop(member.place, None)
        self.out.pop(member.place, None)

    def hopeless(self) -> str | None:
        """Why no member is left and none can be started; None while one may."""
        now = time.monotonic()
        if any(one.up for one in self.members.values()):
            self.seen = now
        reasons = [self.out.get(place, (0.0, ""))[1] for place in self.places]
        if reasons and all(reasons) and not self.members:
            return reasons[0]
        if now - self.seen < self.cluster.patience:
            return None
        return no_node(now - self.seen)

    def end(self) -> None:
        """End the processes. What they have not stored others may ask for at once."""
        for one in list(self.members.values()):
            self.dismiss(one)

    def _look(self, now: float) -> None:
        nodes = living_nodes(self.ray)
        self.places = self._gpu_places(nodes) if self.gpus else list(nodes)
        self._looked = now

    def _gpu_places(self, nodes: dict[str, dict[str, Any]]) -> list[str]:
        """A place for each server. Raises UserError if no GPU is there and none is to come."""
        each = [int(node["Resources"].get("GPU", 0)) for node in nodes.values()]
        self.over_nodes = self.gpus > max([1, *each])
        count = self.cluster.servers or (
            sum(each) // self.gpus if self.over_nodes else sum(one // self.gpus for one in each))
        if not count and not self._looked:
            raise UserError(f"the teacher {self.teacher.model} needs {self.gpus} GPU(s) and the "
                            f"cluster has {sum(each)}; add nodes with GPUs, or set "
                            "runtime.cluster.servers if an autoscaler brings them")
        return [f"server {number + 1}" for number in range(count)]

    def _start(self, place: str) -> None:
        group = self._placement_group() if self.over_nodes else None
        if group is not None:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            options = {"num_cpus": 0, "scheduling_strategy": PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=0)}
        elif self.gpus:
            options = {"num_cpus": 0, "num_gpus": self.gpus}
        else:
            options = pinned(self.ray, place)
        actor = self.actor.options(**options).remote(*self.arguments, self.over_nodes)
        self.members[place] = Member(place, actor, self.begin(actor), actor.counts.remote(0.0),
                                     group)

    def _placement_group(self) -> Any:
        """Reserve the GPUs of one server on as few nodes as can be: one a bundle, as vLLM wants.

        Raises UserError if the teacher has what one server over nodes cannot do.
        """
        for name, value in (("generate.teacher.servers", getattr(self.teacher, "servers", 1)), (
                "generate.teacher.vllm.data_parallel_size",
                getattr(self.teacher, "vllm", {}).get("data_parallel_size", 1))):
            if value > 1:
                raise UserError(f"{name}={value} is not possible if one server needs the GPUs of "
                                "several nodes; remove it: the cluster starts as many servers as "
                                "its GPUs hold")
        return self.ray.util.placement_group([{"GPU": 1}] * self.gpus, strategy="PACK")
