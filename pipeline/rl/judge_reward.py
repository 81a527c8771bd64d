"""Models of `judges` as rewards, and rewards that each source of problems has for itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.completion import completion_text, split_completion
from pipeline.config.judges import Judge
from pipeline.config.rl import RlConfig
from pipeline.judge import has_gold
from pipeline.judge.models.opinion import Item, Score
from pipeline.judge.models.scoring import part_read
from pipeline.rl.user_reward import Reward

NEEDS_GOLD = ("accuracy",)
"""Rewards of nothing but a gold: rows without one are not theirs."""


def judge_reward(config: Judge, score: Score, *, prompt_opens_thinking: bool = False) -> Reward:
    """TRL reward: the judge's score.

    A completion without the part that it reads gets 0, and of a reward model, whose scores have no
    lower end, one less than the worst of its call: an answer that is not there must never pay.
    None (skipped by TRL) if the judge's model gave no score that can be read.
    """
    def reward(prompts: Sequence[Any], completions: Sequence[Any],
               **columns: Sequence[Any]) -> list[float | None]:
        texts = [part_read(config, split_completion(completion_text(one),
                                                    opened=prompt_opens_thinking))
                 for one in completions]
        items = [Item(str(columns["problem_id"][place]), columns["problem"][place], text)
                 for place, text in enumerate(texts) if text]
        found = score(items) if items else []
        known = [value for value in found if value is not None]
        least = 0.0 if config.type != "reward_model" else min(known) - 1 if known else None
        scores = iter(found)
        return [next(scores) if text else least for text in texts]

    return reward


def weights_of(config: RlConfig, source: str) -> Mapping[str, float]:
    """The rewards of the problems of `source`, with their weights."""
    return config.source_rewards.get(source, config.rewards)


def all_weights(config: RlConfig) -> dict[str, float]:
    """Every reward of any source, with its weight: the common one, else the first source's."""
    own = {name: weight for rewards in config.source_rewards.values()
           for name, weight in rewards.items()}
    return {**own, **config.rewards}


def is_rewarded(config: RlConfig, row: Mapping[str, Any]) -> bool:
    """Whether some reward says anything of a problem: by its gold, or by a model without one."""
    return has_gold(dict(row)) or any(name in config.judges
                                      for name in weights_of(config, row["source"]))


def of_its_sources(key: str, reward: Reward, config: RlConfig) -> Reward:
    """`reward`, the one that rl.rewards names `key`, asked of the problems that it is for.

    A source's own weight is applied to the value, and of other problems it is 0: a None would
    leave their rows out. If no source has rewards of its own and no judge is named, it is `reward`.
    """
    if not (config.source_rewards or config.judges):
        return reward
    common = all_weights(config)[key]

    def share(source: str, answer: str, kind: str) -> float | None:
        weight = weights_of(config, source).get(key)
        bare = key in NEEDS_GOLD and not has_gold({"answer": answer, "kind": kind})
        return None if weight is None or bare else weight / common if common else 1.0

    def sifted(prompts: Sequence[Any], completions: Sequence[Any],
               **columns: Any) -> list[float | None]:
        shares = [share(*row) for row in zip(columns["source"], columns["answer"], columns["kind"],
                                             strict=True)]
        places = [place for place, factor in enumerate(shares) if factor is not None]
        values = iter(reward(prompts=_at(prompts, places), completions=_at(completions, places),
                             **{name: _at(column, places) if _is_column(column, len(shares))
                                else column for name, column in columns.items()})
                      if places else [])
        return [0.0 if factor is None else _times(next(values), factor) for factor in shares]

    return sifted


def _is_column(value: Any, length: int) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == length


def _at(values: Sequence[Any], places: Iterable[int]) -> list[Any]:
    return [values[place] for place in places]


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
