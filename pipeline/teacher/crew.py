"""The processes that ask on a cluster: one on each node, or one for each vLLM server's GPUs.

One that dies is replaced; what it had been given is looked up in the store, and the rest is asked
by others.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from pipeline.cluster.ray_nodes import code_digest, living_nodes, pinned
from pipeline.completion import Messages
from pipeline.config.cluster import RayCluster
from pipeline.config.teacher import Teacher
from pipeline.errors import UserError
from pipeline.teacher.node_asker import NodeAsker, Report

LOOK_SECONDS = 1.0
"""Between two looks at which nodes are there."""
MAX_DEATHS = 5
"""Deaths in a row, without a trace between them, after which a place is left alone."""
RETRY_SECONDS = 60.0
"""Until a node that could not reach the teacher tries again, while others can."""
END_SECONDS = 60.0
GPUS = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


@dataclass
class Member:
    """One process, what it was given and not yet reported, and its last report."""

    place: str
    actor: Any
    node: str | None = None
    given: dict[tuple[str, int], tuple[Messages, float]] = field(default_factory=dict)
    """Chat and highest price of each (key, sample)."""
    promised: float = 0.0
    """Dollars that these may cost."""
    report: Report = field(default_factory=Report)
    allowance: float = 0.0
    """Dollars that it may spend in all."""
    affords: bool = True
    """Whether these are enough for what it was given, also after attempts without an answer."""
    call: Any = None
    began: bool = False

    def give(self, key: str, sample: int, messages: Messages, usd: float) -> None:
        self.given[key, sample] = messages, usd
        self.promised += usd

    def take_back(self, report: Report) -> None:
        """Cross out what `report` says is stored."""
        for one in report.done:
            if one in self.given:
                self.promised -= self.given.pop(one)[1]
        if not self.given:
            self.promised = 0.0
        self.report = report


class Crew:
    """Members at every place of the cluster."""

    def __init__(self, ray: Any, cluster: RayCluster, teacher: Teacher,
                 arguments: tuple[Any, ...], key: str) -> None:
        self.ray, self.cluster, self.teacher, self.key = ray, cluster, teacher, key
        self.actor, self.arguments = ray.remote(NodeAsker), arguments
        self.members: dict[str, Member] = {}
        self.deaths: dict[str, int] = {}
        self.out: dict[str, tuple[float, str]] = {}
        """Until when a place is left alone, and why."""
        self.seen = self._looked = time.monotonic()
        self.gpus = gpus_of(teacher)
        self.places: list[str] = []
        self._look()

    def staff(self) -> None:
        """Start a member at each place that lacks one."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
        for place in self.places:
            until, _ = self.out.get(place, (0.0, ""))
            if place not in self.members and time.monotonic() >= until:
                self._start(place)

    def calls(self) -> dict[Any, Member]:
        return {one.call: one for one in self.members.values() if one.call is not None}

    def lose(self, member: Member, reason: str, stopped: bool = False) -> None:
        """Take a member away that died, or `stopped` since its requests fail, or without a
        `reason` to leave its place alone."""
        place = member.place
        self.ray.kill(member.actor)
        self.members.pop(place, None)
        if not reason:
            return
        self.deaths[place] = self.deaths.get(place, 0) + 1
        wait = RETRY_SECONDS if stopped else min(0.1 * 4 ** (self.deaths[place] - 1), 30.0)
        if self.deaths[place] >= MAX_DEATHS:
            wait = float("inf")
        self.out[place] = time.monotonic() + wait, reason if stopped or wait > 60 else ""

    def heard(self, member: Member) -> None:
        """Forget the earlier deaths at a place where traces are stored again."""
        self.deaths.pop(member.place, None)
        self.out.pop(member.place, None)

    def hopeless(self) -> str | None:
        """Why no member is left and none can be started; None while one may."""
        if self.members:
            return None
        if not self.places:
            waited = time.monotonic() - self.seen
            return None if waited < self.cluster.patience else (
                f"no node of the cluster could work for {waited:,.0f} s; add nodes and run the "
                "same command again")
        reasons = [self.out.get(place, (0.0, ""))[1] for place in self.places]
        return reasons[0] if all(reasons) else None

    def end(self) -> None:
        """Let every member leave the store in order, then end their processes."""
        calls = [one.actor.end.remote() for one in self.members.values() if one.began]
        if calls:
            self.ray.wait(calls, num_returns=len(calls), timeout=END_SECONDS)
        for one in self.members.values():
            self.ray.kill(one.actor)
        self.members.clear()

    def _look(self) -> None:
        """See which nodes are there."""
        self._looked = time.monotonic()
        nodes = living_nodes(self.ray)
        self.places = list(nodes) if not self.gpus else self._gpu_places(nodes)
        if self.places:
            self.seen = self._looked

    def _gpu_places(self, nodes: dict[str, dict[str, Any]]) -> list[str]:
        """A place for each server. Raises UserError if no GPU is there and none is to come."""
        each = [int(node["Resources"].get("GPU", 0)) for node in nodes.values()]
        self.over_nodes = self.gpus > max(each, default=0)
        count = self.cluster.servers or (
            sum(each) // self.gpus if self.over_nodes else sum(one // self.gpus for one in each))
        if not count and not self.members and not self.places:
            raise UserError(f"the teacher {self.teacher.model} needs {self.gpus} GPU(s) and the "
                            f"cluster has {sum(each)}; add nodes with GPUs, or set "
                            "runtime.cluster.servers if an autoscaler brings them")
        return [f"server {number + 1}" for number in range(count)]

    def _start(self, place: str) -> None:
        if not self.gpus:
            options = pinned(self.ray, place)
        else:
            # vLLM itself asks Ray for GPUs that lie on several nodes.
            options = {"num_cpus": 0, "num_gpus": 0 if self.over_nodes else self.gpus}
        actor = self.actor.options(**options).remote(*self.arguments)
        self.members[place] = Member(place, actor, call=actor.begin.remote(self.key, code_digest()))


def gpus_of(teacher: Teacher) -> int:
    """GPUs that one server of the teacher needs; 0 if none is started for it."""
    if teacher.type != "vllm":
        return 0
    count = 1
    for name in GPUS:
        count *= int(teacher.vllm.get(name, 1))
    return count
