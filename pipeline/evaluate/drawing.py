"""Draws the samples that a model lacks of each benchmark, here or in parts on a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cluster.parts import workers
from pipeline.cluster.ray_nodes import check_sees
from pipeline.config.evaluate import StudentSampling
from pipeline.config.experiment import RayCluster
from pipeline.config.trainer_keys import has_vllm
from pipeline.evaluate.sample_store import Chats, Sample, SampleStore
from pipeline.progress import progress
from pipeline.serving.vllm_server import gpus_of
from pipeline.student.sample import sample_sets
from pipeline.student.thinking_budget import Budget
from pipeline.student.tiny import resolve


@dataclass(frozen=True)
class Drawing:
    """The chats of some benchmarks, `samples` of each chat, and where one model's answers are kept.

    `folder` is the model's artifact, `tokenizer` its student's; `store` is the folder of samples.
    """

    folder: Path
    tokenizer: Path
    store: Path
    sampling: StudentSampling
    seed: int
    sets: Mapping[str, Chats]
    samples: Mapping[str, int]
    budgets: Mapping[str, Budget]

    def kept(self, name: str) -> SampleStore:
        """Return the store of what the model answers to benchmark `name`."""
        facts = {"model": self.folder.name, "tokenizer": self.tokenizer.parent.name,
                 "sampling": self.sampling.model_dump(mode="json"), "seed": self.seed}
        budget = self.budgets.get(name)
        return SampleStore(self.store, {**facts, "budget": asdict(budget)} if budget else facts)

    def missing(self) -> Drawing:
        """Return this without the benchmarks that are answered."""
        return replace(self, sets={name: chats for name, chats in self.sets.items()
                                   if not self.kept(name).has(chats, self.samples[name])})

    def draw(self, engine: Mapping[str, Any]) -> int:
        """Sample and keep what is missing; returns the number of answers. `engine` starts once."""
        left = self.missing()
        for name, groups in sample_sets(
                resolve(left.folder), str(left.tokenizer),
                {name: list(chats.values()) for name, chats in left.sets.items()},
                left.samples, left.sampling, left.seed, engine,
                left.budgets) if left.sets else ():
            left.kept(name).put(left.sets[name], groups)
        return self.answers()

    def answers(self) -> int:
        """Count the answers of all benchmarks."""
        return sum(len(chats) * self.samples[name] for name, chats in self.sets.items())

    def get(self) -> Iterator[tuple[str, list[Sample]]]:
        """Yield each benchmark and its samples, which must be kept."""
        for name, chats in self.sets.items():
            yield name, self.kept(name).get(chats, self.samples[name])

    def pieces(self, count: int) -> list[Drawing]:
        """Divide every benchmark's problems among `count` drawings."""
        names = {name: list(chats) for name, chats in self.sets.items()}
        each = [{name: {one: self.sets[name][one] for one in names[name][start::count]}
                 for name in names} for start in range(count)]
        return [replace(self, sets={name: chats for name, chats in sets.items() if chats})
                for sets in each]

    def join(self, pieces: Iterable[Drawing]) -> None:
        """Keep what `pieces` drew as what each benchmark's file would hold."""
        pieces = list(pieces)
        for name, chats in self.sets.items():
            self.kept(name).join(chats, [one.sets[name] for one in pieces if name in one.sets],
                                 self.samples[name])


class Drawer:
    """Draws in a process of a cluster."""

    def __init__(self, engine: Mapping[str, Any]) -> None:
        self.engine = dict(engine)

    def __call__(self, drawing: Drawing) -> int:
        """Draw what is missing; returns the number of answers."""
        check_sees(drawing.folder)
        return drawing.draw(self.engine)


def draw_on_cluster(cluster: RayCluster, drawings: Iterable[Drawing],
                    engine: Mapping[str, Any]) -> None:
    """Draw what is missing of all `drawings` on `cluster`, which sees their folders.

    By vLLM each GPU answers a share of every benchmark of a model. Without, a part is a whole
    benchmark, since what transformers sample depends on what is sampled together.
    """
    left = [one for one in (drawing.missing() for drawing in drawings) if one.sets]
    if not left:
        return
    gpus = gpus_of(engine)
    with workers(cluster, gpus, or_none=True) as crew:
        whole = crew.gpus == 0 or not has_vllm()
        divided = [[replace(one, sets={name: chats}) for name, chats in one.sets.items()]
                   if whole else one.pieces(max(1, crew.slots())) for one in left]
        parts = [part for parts in divided for part in parts]
        with progress("sampling", sum(one.answers() for one in parts)) as advance:
            for _, answers in crew.run(Drawer(engine), parts):
                advance(answers)
    for drawing, parts in zip(left, divided, strict=True) if not whole else ():
        drawing.join(parts)
