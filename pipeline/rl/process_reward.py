"""Process reward: a process reward model (PRM) scores every step of a completion.

Lightman et al., Let's Verify Step by Step (arXiv 2305.20050), who take the product or the minimum
of the steps' probabilities. Steps are paragraphs, of thinking and answer alike, as in the training
of Qwen2.5-Math-PRM (arXiv 2501.07301).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.completion import CLOSE, OPEN, completion_text
from pipeline.config.rl import HttpPrm, LocalPrm, Prm
from pipeline.errors import UserError
from pipeline.judge.models.reward_model import FAILURE_LIMIT, FAILURES, check_key, post_json
from pipeline.rl.user_reward import Reward

Scorer = Callable[[str, list[str]], list[float]]
"""The probability of each step, from a problem and the steps of a completion."""
AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "min": min, "product": math.prod, "mean": lambda s: sum(s) / len(s), "last": lambda s: s[-1]}


def steps_of(text: str) -> list[str]:
    """Split a completion into its paragraphs, without the thinking tags."""
    parts = re.split(r"\n\s*\n", text.replace(OPEN, "").replace(CLOSE, "\n\n"))
    return [part.strip() for part in parts if part.strip()]


def process_reward(config: Prm) -> Reward:
    """TRL reward: the aggregated step scores in [0, 1]; None if the server failed.

    Raises UserError once more than 1 % of all completions so far (and more than one) have failed.
    """
    scorer = _http_scorer(config) if isinstance(config, HttpPrm) else _local_scorer(config)
    workers = config.concurrency if isinstance(config, HttpPrm) else 1
    aggregate = AGGREGATES[config.aggregate]
    seen = failed = 0

    def score(question: str, completion: Any) -> float | Exception:
        steps = steps_of(completion_text(completion))
        try:
            return aggregate(scorer(question, steps)) if steps else 0.0
        except FAILURES as failure:
            return failure

    def process(prompts: Sequence[Any], completions: Sequence[Any], problem: Sequence[str],
                **columns: Any) -> list[float | None]:
        nonlocal seen, failed
        with ThreadPoolExecutor(workers) as threads:
            scores = list(threads.map(score, problem, completions))
        failures = [value for value in scores if isinstance(value, Exception)]
        seen, failed = seen + len(scores), failed + len(failures)
        if failed > max(1, FAILURE_LIMIT * seen):
            raise UserError(f"rl.process: {failed} of {seen} completions got no score from "
                            f"{config.model} (limit {FAILURE_LIMIT:.0%}); the last error: "
                            f"{failures[-1]!r}")
        return [None if isinstance(value, Exception) else value for value in scores]

    return process


def _http_scorer(config: HttpPrm) -> Scorer:
    check_key(config.key_env, "rl.process.key_env")

    def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        return post_json(config.url, {"model": config.model, **body}, config.key_env,
                         config.seconds)["data"]

    def pooling(question: str, steps: list[str]) -> list[float]:
        mark = config.separator     # written by the student it would look like the end of a step
        answer = "".join(step.replace(mark, "") + mark for step in steps)
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return _probabilities(ask({"messages": chat})[0]["data"], steps)

    def classify(question: str, steps: list[str]) -> list[float]:
        texts = ["\n\n".join([question, *steps[:end]]) for end in range(1, len(steps) + 1)]
        rows = sorted(ask({"input": texts}), key=lambda row: row["index"])
        return _probabilities([row["probs"] for row in rows], steps)

    return pooling if config.url.endswith("/pooling") else classify


def _probabilities(scores: list[Any], steps: list[str]) -> list[float]:
    """The probability of each step; ValueError if one is missing or outside [0, 1]."""
    values = [float(score[-1] if isinstance(score, list) else score) for score in scores]
    if len(values) != len(steps) or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"{len(values)} scores for {len(steps)} steps, or some outside 0 to 1")
    return values


def _local_scorer(config: LocalPrm) -> Scorer:
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )

    kind = (AutoConfig.from_pretrained(config.model).architectures or [""])[0]
    tokens = kind.endswith("ForTokenClassification")
    if not tokens and not kind.endswith("ForSequenceClassification"):
        raise UserError(f"rl.process.model {config.model!r} is no classifier (architecture: "
                        f"{kind or 'none'}); give a token or sequence classifier, or serve it and "
                        "set type: http")
    auto = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = auto.from_pretrained(config.model).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(config.model)

    def encode(text: str) -> list[int]:
        return tokenizer(text + config.separator, add_special_tokens=False)["input_ids"]

    def score(question: str, steps: list[str]) -> list[float]:
        ids = [index for index in [tokenizer.bos_token_id] if index is not None] + encode(question)
        ends = []
        for step in steps:
            ids += encode(step)
            ends.append(len(ids))
        row = torch.tensor([ids], device=device)
        with torch.inference_mode():
            logits = model(row).logits[0, [end - 1 for end in ends]] if tokens else \
                torch.cat([model(row[:, :end]).logits for end in ends])
        right = logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)
        return right[:, -1].tolist()

    return score
