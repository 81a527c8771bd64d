"""What a model's tokens cost, and a budget that is never exceeded."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any

import yaml
from pydantic import Field, ValidationError

from pipeline.config.load import Config
from pipeline.config.teacher import Sampling, Teacher, TeacherRuntime
from pipeline.errors import UserError
from pipeline.prompts import ROOT
from pipeline.teacher.answer import Reply, Usage
from pipeline.teacher.request import Job, prompt_bound

PRICES = ROOT / "configs" / "prices.yaml"


class Price(Config):
    """US dollars for a million tokens of one model."""

    input: float = Field(default=0.0, ge=0)
    """Prompt tokens."""
    cached_input: float | None = Field(default=None, ge=0)
    """Prompt tokens read from the endpoint's cache; unset: as input."""
    output: float = Field(default=0.0, ge=0)
    """Completion tokens."""
    reasoning: float | None = Field(default=None, ge=0)
    """Completion tokens spent thinking; unset: as output."""
    batch: float = Field(default=0.5, ge=0, le=1)
    """Share of the price that the batch API asks."""

    def cost(self, usage: Usage) -> float:
        """Dollars for one request: what the endpoint says it charged, else tokens times price."""
        if usage.usd is not None:
            return usage.usd
        cached = self.input if self.cached_input is None else self.cached_input
        reasoning = self.output if self.reasoning is None else self.reasoning
        return (max(usage.prompt - usage.cached, 0) * self.input + usage.cached * cached
                + max(usage.completion - usage.reasoning, 0) * self.output
                + usage.reasoning * reasoning) / 1e6

    def batched(self) -> Price:
        return self.model_copy(update={name: value * self.batch for name, value in self
                                       if value is not None and name != "batch"})

    def worst(self, prompt: int, completion: int | None) -> float:
        """Upper bound in dollars for so many tokens; `completion` None: without a limit."""
        dearest = max(self.output, self.reasoning or 0.0)
        if completion is None:
            return math.inf if dearest else self.worst(prompt, 0)
        return (prompt * max(self.input, self.cached_input or 0.0) + completion * dearest) / 1e6


def price_of(teacher: Teacher, runtime: TeacherRuntime) -> Price | None:
    """The teacher's price, None if the price file lacks it; local teachers cost nothing."""
    if teacher.type != "openai":
        return Price()
    path = runtime.prices or PRICES
    if runtime.prices is None and not path.is_file():
        return None
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        known = {str(name): Price.model_validate(price) for name, price in table.items()}
    except (OSError, yaml.YAMLError, ValidationError, AttributeError) as error:
        raise UserError(f"price file {path} cannot be used ({error}); it maps model names to "
                        "dollars a million tokens, as configs/prices.yaml does") from None
    return next((price for name, price in known.items() if fnmatchcase(teacher.model, name)), None)


def check_budget(teacher: Teacher, runtime: TeacherRuntime, sampling: Sampling) -> None:
    """Raise UserError if max_usd is set, and the price of `teacher` or a limit is unknown."""
    Budget(price_of(teacher, runtime), runtime.max_usd, teacher, sampling, runtime.where)


class Budget:
    """Keeps dollars spent, possibly spent (`unsure`), reserved for requests, and both of `others`
    that ask for the same below max_usd."""

    def __init__(self, price: Price | None, max_usd: float | None, teacher: Teacher,
                 sampling: Sampling, where: str = "runtime.teacher") -> None:
        self.price, self.max_usd, self.sampling = price or Price(), max_usd, sampling
        self.spent = self.before = self.unsure = self.reserved = self.others = 0.0
        unknown = f"the price file does not know model {teacher.model!r}"
        self.notes = [f"{unknown}: costs are given as 0"] if price is None else []
        if max_usd is not None and price is None:
            raise UserError(f"{where}.max_usd is set, but {unknown}; add its prices there")
        if max_usd is not None and sampling.max_tokens is None:
            raise UserError(f"{where}.max_usd needs sampling.max_tokens of the model: without a "
                            "limit a request may cost any amount")

    def resume(self, spent: float) -> None:
        """Count what earlier runs spent on the same requests."""
        self.spent = self.before = spent

    def bill(self, job: Job, reply: Reply, rows: list[dict[str, Any]]) -> float:
        """Count an answer; without usage it may have cost as much as the longest possible one.

        Returns the dollars counted.
        """
        cost = sum(row["cost_usd"] for row in rows)
        self.spent += cost
        unsure = max(self.worst(job) - cost, 0.0) if reply.usage is None else 0.0
        self.unsure += unsure
        return cost + unsure

    def unsure_usd(self) -> float | None:
        """Upper bound of what answers without usage cost; None without max_tokens."""
        return self.unsure if self.unsure < math.inf else None

    def stop_reason(self) -> str:
        """Why the next request is not sent."""
        counted = {"earlier runs spent": self.before, "others have spent, may still spend, or may "
                   "have spent when they were killed": self.others}
        said = "; ".join(f"{what} ${usd:,.2f}" for what, usd in counted.items() if usd)
        return f"the next request might exceed max_usd {self.max_usd:g}" + (
            f" ({said})" if said else "")

    def worst(self, job: Job) -> float:
        """Upper bound in dollars of one attempt at `job`; infinite without max_tokens."""
        limit = self.sampling.max_tokens
        return self.price.worst(prompt_bound(job), limit and limit * len(job.samples))

    def fits(self, worst: float) -> bool:
        """Whether a request that may cost `worst` may be sent beside those in flight."""
        return self.allows(self.reserved + worst)

    def allows(self, reserved: float) -> bool:
        """Whether so many dollars may be reserved in all by this process."""
        return (self.max_usd is None
                or self.spent + self.unsure + self.others + reserved <= self.max_usd)
