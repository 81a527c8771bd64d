"""The registry of judges beyond a gold: a new one is a function and a line in JUDGES."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.completion import CLOSE, OPEN, Completion
from pipeline.config.judges import Judge, RewardModel
from pipeline.config.teacher import JudgeRuntime
from pipeline.errors import UserError
from pipeline.judge.llm import Ask
from pipeline.judge.models.opinion import Item, Score
from pipeline.judge.models.pairwise import pairwise
from pipeline.judge.models.reward_model import check_reward_model, reward_model
from pipeline.judge.models.rubric import rubric

JUDGES: dict[str, Callable[[Any, Any], Score]] = {
    "reward_model": lambda config, ask: reward_model(config),
    "rubric": rubric,
    "pairwise": pairwise,
}


def scorer(name: str, config: Judge, ask: Ask | None) -> Score:
    """What scores items by the judge `name`; `ask` reaches its model, None if none is asked."""
    score = JUDGES[config.type](config, ask)

    def named(items: list[Item]) -> list[float | None]:
        try:
            return score(items)
        except UserError as error:
            raise UserError(f"judges.{name}: {error}") from None

    return named


def part_read(config: Judge, completion: Completion) -> str:
    """The part of `completion` that the judge reads; "" if it has no answer to read."""
    if config.reads == "answer" or not completion.thinking:
        return completion.answer.strip()
    return f"{OPEN}\n{completion.thinking}\n{CLOSE}\n{completion.answer}".strip()


def check_judges(judges: Mapping[str, Judge], runtimes: Mapping[str, JudgeRuntime],
                 serves: bool = True) -> None:
    """Raise UserError if a judge has no model to load or no address, before any work.

    `serves` says whether a model of this machine is served while the judges are asked.
    """
    for name, config in judges.items():
        if isinstance(config, RewardModel):
            check_reward_model(f"judges.{name}", config)
        elif not runtimes[name].base_url and config.client().is_local():
            if not serves:
                raise UserError(f"judges.{name}: vLLM would serve {config.model} on the GPUs "
                                "that rl trains on; serve it elsewhere (vllm serve) and set "
                                f"runtime.judges.{name}.base_url")
        elif not runtimes[name].base_url:
            raise UserError(f"no address for judges.{name}: set runtime.judges.{name}.base_url or "
                            "runtime.llm_judge.base_url, e.g. https://api.deepseek.com/v1")
        else:
            runtimes[name].api_key()
