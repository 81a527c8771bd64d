"""Turns a reply into rows of the trace store: usage shared out, log-probabilities packed."""

from __future__ import annotations

import re
from typing import Any

from pipeline.config.teacher import Sampling, Teacher
from pipeline.teacher.answer import Choice, Reply, Usage
from pipeline.teacher.budget import Price
from pipeline.teacher.request import Job, canonical_json, prompt_bound

TOKEN_ID = re.compile(r"token_id:(\d{1,9})")


def asked_row(job: Job, sample: int, origin: str, sampling: Sampling) -> dict[str, Any]:
    """The columns that say what was asked."""
    return {"key": job.key, "sample": sample, "max_tokens": sampling.max_tokens, "failure": None,
            "origin": origin, "messages": canonical_json(job.messages)}


def trace_rows(job: Job, reply: Reply, price: Price, seconds: float,
               teacher: Teacher, sampling: Sampling) -> list[dict[str, Any]]:
    """One row for each complete choice that was asked for.

    Tokens and dollars add up to the reply's usage: the prompt counts for the first choice, the
    completion is shared out by length of text. Without usage a token is four characters.
    """
    choices = dict(sorted(reply.choices.items()))
    if not choices.keys() <= set(range(len(job.samples))):
        choices = dict(enumerate(choices.values()))      # an endpoint that counts from one, say
    answered = [(job.samples[index], choice) for index, choice in choices.items()
                if index < len(job.samples)]
    lengths = [len(choice.thinking or "") + len(choice.answer) for _, choice in answered]
    usage = reply.usage or Usage(prompt_bound(job) // 4, completion=sum(lengths) // 4)
    tokens = _shares(usage.completion, lengths)
    cost = price.cost(usage)
    rows = []
    for position, (sample, choice) in enumerate(answered):
        rows.append({
            "sample": sample, "thinking": choice.thinking, "answer": choice.answer,
            "finish_reason": choice.finish_reason, "complete": choice.complete,
            "prompt_tokens": 0 if position else usage.prompt, "completion_tokens": tokens[position],
            "cost_usd": cost * lengths[position] / max(sum(lengths), 1), "seconds": seconds,
            "model": reply.model or teacher.model,
            **pack_logprobs(choice, sampling.top_logprobs)})
    return rows


def _shares(total: int, weights: list[int]) -> list[int]:
    """Integers in proportion to `weights` that add up to `total`."""
    weight_sum, cumulative = max(sum(weights), 1), 0
    shares: list[int] = []
    for weight in weights:
        cumulative += weight
        shares.append(total * cumulative // weight_sum - sum(shares))
    return shares


def pack_logprobs(choice: Choice, k: int | None) -> dict[str, list]:
    """The store's LOGPROBS columns of one choice, {} if none were asked for or came.

    Token columns have length T, top columns T·k, padded with None. Token ids if the endpoint gives
    them (vLLM's return_tokens_as_token_ids), else texts.
    """
    if k is None or not choice.logprobs:
        return {}
    empty: dict[str, Any] = {}
    tops = [((entry.get("top_logprobs") or [])[:k] + [empty] * k)[:k] for entry in choice.logprobs]
    flat = [top for row in tops for top in row]
    kind, take = "texts", lambda entry: entry.get("token")
    if all(TOKEN_ID.fullmatch(str(entry.get("token"))) for entry in choice.logprobs):
        kind, take = "ids", _token_id
    return {f"token_{kind}": [take(entry) for entry in choice.logprobs],
            "token_logprobs": [float(entry["logprob"]) for entry in choice.logprobs],
            f"top_{kind}": [take(top) for top in flat],
            "top_logprobs": [float(top["logprob"]) if top else None for top in flat]}


def _token_id(entry: dict) -> int | None:
    found = TOKEN_ID.fullmatch(str(entry.get("token")))
    return int(found[1]) if found else None
