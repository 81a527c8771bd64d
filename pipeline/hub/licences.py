"""What licences and terms ask of whoever publishes a model or its training data.

A list of what is known, not legal advice; what is not listed is named as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.problems.benchmarks import BENCHMARKS


@dataclass(frozen=True)
class Terms:
    """The licence of a model or a data set; `forbids` is what needs a decision, "" if nothing."""

    licence: str
    forbids: str = ""


MODELS: tuple[tuple[str, Terms], ...] = (
    (r"tiny|solver", Terms("apache-2.0")),
    (r"(.*/)?(gpt-(?!oss)|o[134](-|$)|chatgpt|claude|gemini|grok).*", Terms(
        "terms of the API", "the provider's terms forbid training competing models on its "
                            "answers")),
    (r"(.*/)?Qwen2\.5-(Coder-|Math-)?3B.*", Terms(
        "qwen-research", "the Qwen Research licence allows no commercial use")),
    (r"(.*/)?Qwen2\.5-(Math-)?72B.*", Terms("qwen")),
    (r"(.*/)?(Qwen(2\.5|3|2)|QwQ|qwen).*", Terms("apache-2.0")),
    (r"(.*/)?(DeepSeek-R1|deepseek-r).*", Terms("mit")),
    (r"(.*/)?(Meta-)?Llama-?[0-9].*", Terms(
        "llama", "the Llama licence asks that the model's name begin with Llama and that the "
                 "licence go with it")),
    (r"(.*/)?gemma.*", Terms("gemma", "Gemma's terms must be passed on with the model")),
    (r"(.*/)?(SmolLM|OLMo|Mistral|Mixtral|gpt-oss|granite).*", Terms("apache-2.0")),
)
DATA: tuple[tuple[str, Terms], ...] = (
    (r"countdown|reasoning-gym/.*", Terms("apache-2.0")),
    (r"(?i)(.*/)?gsm8k.*|.*grade-school-math.*", Terms("mit")),
    (r"(?i).*(hendrycks|math_train|MATH-500|train_math).*", Terms("mit")),
    (r"(?i).*(aime|amc).*", Terms("© MAA", "the problems of AIME and AMC belong to the MAA: their "
                                      "texts may not be published")),
    (r"(?i).*(OpenR1|open-r1|NuminaMath).*", Terms("apache-2.0")),
    (r"(?i).*DeepScaleR.*", Terms("mit")),
)
WITH_TRAINING_SPLIT = ("gsm8k", "mbpp")
UNKNOWN = Terms("unknown")


def terms_of(name: str, known: Iterable[tuple[str, Terms]]) -> Terms:
    """The terms of the model or data set `name`; UNKNOWN if it is not listed."""
    return next((terms for pattern, terms in known if re.fullmatch(pattern, name)), UNKNOWN)


def data_terms(source: str) -> Terms:
    """The terms of problems from `source`; those of a benchmark forbid training on them."""
    for name, one in BENCHMARKS.items():
        if source == one.hub and name not in WITH_TRAINING_SPLIT:
            rule = one.rules or "training data made from it spoils it for others."
            return Terms(one.licence, f"{name} is a benchmark: {rule.rstrip('.')}")
    return terms_of(source, DATA)


def restrictions(teacher: str, base: str, sources: Iterable[str], with_texts: bool) -> list[str]:
    """What forbids a push, a sentence each; `with_texts` if problems' texts are published."""
    found = [f"{role} {name}: {terms.forbids}" for role, name in (("teacher", teacher),
                                                                  ("base model", base))
             if (terms := terms_of(name, MODELS)).forbids]
    return found + [f"problems of {source}: {terms.forbids}" for source in sorted(set(sources))
                    if with_texts and (terms := data_terms(source)).forbids]
