"""Models that judge where there is no gold: reward models, rubrics, comparisons.

`judges` names them once; filter.keep, rl.rewards and evaluate.judges use the names. Each section
holds those that it uses, so that they are part of its key and of no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.load import REFERENCE, Config
from pipeline.config.teacher import LLMJudgeConfig, Sampling
from pipeline.errors import UserError
from pipeline.expression import names_in

Part = Literal["answer", "whole"]


class RewardModel(Config):
    """A sequence classifier with one label, as TRL's RewardTrainer makes; its logit is the score.
    """

    type: Literal["reward_model"] = "reward_model"
    """A trained reward model."""
    model: Annotated[str, REFERENCE]
    """A checkpoint folder, STEP.student or hub id, with a chat template; its name on the server if
    `url` is set."""
    url: str | None = Field(default=None, pattern=r"^https?://.+/pooling$")
    """Address of `vllm serve MODEL --runner pooling`, e.g. http://127.0.0.1:8000/pooling; unset: in
    this process."""
    key_env: str | None = None
    """Environment variable that holds the server's key."""
    reads: Part = "answer"
    """What it sees beside the problem: the answer after the thinking (helpfulness, as DeepSeek-R1,
    arXiv 2501.12948, 2.3.4) or the whole completion (harmlessness)."""
    batch: int = Field(default=8, ge=1)
    """Texts scored together, or requests in flight."""


class _Asked(Config):
    model: Annotated[str, REFERENCE]
    """Model name as the endpoint knows it, whose address runtime.judges or runtime.llm_judge has;
    or a folder or STEP.STAGE, which vLLM serves here."""
    reads: Part = "answer"
    """What it sees beside the problem: the answer after the thinking, or the whole completion."""
    sampling: Sampling = Sampling(temperature=0.0, max_tokens=4096)
    """Sampling parameters, as generate.sampling."""

    def client(self) -> LLMJudgeConfig:
        """The model as the client asks it."""
        return LLMJudgeConfig(model=self.model, sampling=self.sampling)


class Rubric(_Asked):
    """A model that says of each criterion whether the answer meets it; the score is in [0, 1].

    Asked with the criteria in both orders; only what it says in both counts.
    """

    type: Literal["rubric"] = "rubric"
    """Criteria, each met or not."""
    criteria: dict[str, float] = Field(min_length=1)
    """{criterion: weight}, e.g. {"The answer is polite.": 1}."""


class Pairwise(_Asked):
    """A model that says which of two answers to one problem is better; the score is the share won.

    Asked in both orders; a verdict that turns with the order is a draw.
    """

    type: Literal["pairwise"] = "pairwise"
    """Comparisons."""
    question: str = "Which answer is more helpful to the one who asked?"
    """What decides."""
    opponents: int = Field(default=2, ge=1)
    """Other answers to the same problem that each is compared with: a problem's other traces in
    filter, the group in rl, the first model's answer in evaluate."""


Judge = Annotated[RewardModel | Rubric | Pairwise, Field(discriminator="type")]
Judges = dict[str, Judge]


def give_judges(tree: Any) -> Any:
    """`tree` of an experiment whose sections hold those of `judges` that they name."""
    judges = tree.get("judges") if isinstance(tree, Mapping) else None
    if not isinstance(judges, Mapping):
        return tree
    tree = dict(tree)
    for section, names in (("filter", _in_filter), ("rl", _in_rl), ("evaluate", _in_evaluate)):
        found = tree.get(section) or {}
        if isinstance(found, Mapping) and (used := names(found)):
            own = found.get("judges")
            tree[section] = {**found, "judges": {
                **{name: judge for name, judge in judges.items() if name in used},
                **(own if isinstance(own, Mapping) else {})}}
            if missing := [name for name in own if name not in judges] \
                    if isinstance(own, list) else []:
                raise UserError(f"{section}.judges names {missing[0]!r}; judges has "
                                f"{', '.join(judges)}")
    return tree


def _in_filter(section: Mapping[str, Any]) -> set[str]:
    rules = [rule for rule in (section.get("sources") or {}).values() if isinstance(rule, Mapping)]
    return {name for text in (section.get("keep"), *(rule.get("keep") for rule in rules))
            if isinstance(text, str) for name in names_in(text)}


def _in_rl(section: Mapping[str, Any]) -> set[str]:
    return {name for rewards in (section.get("rewards"),
                                 *(section.get("source_rewards") or {}).values())
            for name in rewards or {}}


def _in_evaluate(section: Mapping[str, Any]) -> set[str]:
    return set(section.get("judges") or ())
