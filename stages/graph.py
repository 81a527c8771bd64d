"""The stages in order and the Experiment config: the only list of either."""

from __future__ import annotations

from functools import cache

from pipeline.config.experiment import Experiment
from pipeline.stage import Plan, Stage, make_plan
from stages import evaluate, filter, generate, logits, pack, prepare, report, rl, sft, student

STAGES: dict[str, Stage] = {module.STAGE.name: module.STAGE for module in (
    prepare, generate, filter, student, pack, logits, sft, rl, evaluate, report)}


def plans(experiment: Experiment, target: str) -> dict[str, Plan]:
    """The plan of every stage that `target` stands on, in order, `target` last."""
    made: dict[str, Plan] = {}
    for name in _order(experiment, target):
        stage = STAGES[name]
        inputs = {need: made[need] for need in stage.needs(experiment)}
        made[name] = make_plan(stage, experiment, inputs, experiment.runtime.artifacts)
    return made


def _order(experiment: Experiment, target: str) -> tuple[str, ...]:
    """Depth-first order of `target` and what it needs."""
    @cache
    def visit(name: str) -> tuple[str, ...]:
        before = [step for need in STAGES[name].needs(experiment) for step in visit(need)]
        return (*before, name)

    return tuple(dict.fromkeys(visit(target)))
