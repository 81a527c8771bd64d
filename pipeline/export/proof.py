"""The proof that goes with an export: what runs it, held against the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.completion import Messages
from pipeline.errors import UserError
from pipeline.export.compressed import CompressedFolder
from pipeline.export.llama_cpp import LlamaCpp
from pipeline.progress import progress
from pipeline.student.decode import decode
from pipeline.student.template import prompt_ids

Runner = LlamaCpp | CompressedFolder
MOST_KL = {"f32": 0.01, "f16": 0.01, "bf16": 0.01, "q8_0": 0.03, "q6_k": 0.1, "q5_k_m": 0.3,
           "q4_k_m": 0.6, "fp8": 0.3, "w4a16": 0.6, "gptq": 0.6, "awq": 0.6}
"""Nats a token from which a file of the format no longer answers as its checkpoint."""
MOST_GAP = 1.0
"""Difference of two logits that rounding to 16 bits explains at most."""
LIKELIEST = 1024
"""Tokens of the file's distribution that are compared one by one; the rest counts as one."""


@dataclass
class Reference:
    """The checkpoint in float32, and its greedy answer to each chat."""

    model: Any
    tokenizer: Any
    chats: Sequence[Messages]
    prompts: list[list[int]]
    answers: list[list[int]]

    @classmethod
    def of(cls, model: Any, tokenizer: Any, ends: list[int], chats: Sequence[Messages],
           tokens: int) -> Reference:
        """Answer `chats` greedily, at most `tokens` long."""
        model = model.float().eval()
        prompts = [prompt_ids(tokenizer, chat) for chat in chats]
        answers = [decode(model, [prompt], max_tokens=tokens, temperature=0, eos_token_ids=ends)[0]
                   for prompt in prompts]
        return cls(model, tokenizer, chats, prompts, answers)

    @torch.no_grad()
    def logprobs(self, index: int) -> torch.Tensor:
        """Log-probabilities [answer, vocabulary] at each token of answer `index`."""
        ids = torch.tensor([self.prompts[index] + self.answers[index]], device=self.model.device)
        logits = self.model(input_ids=ids[:, :-1], logits_to_keep=len(self.answers[index])).logits
        return logits[0].float().log_softmax(-1).cpu()


def prove(server: Runner, reference: Reference, form: str, name: str,
          most_kl: float | None = None) -> dict[str, Any]:
    """Compare the file that `server` runs with its checkpoint; returns the figures.

    Raises UserError if the prompts differ or the answers differ more than the format explains.
    """
    for chat, ids in zip(reference.chats, reference.prompts, strict=True):
        _check_prompt(server.prompt_ids(chat), ids, reference.tokenizer, name)
    found = {"prompts": len(reference.prompts), **_compared(server, reference, name),
             "tokens_a_second": _speed(server, reference)}
    limit = MOST_KL[form] if most_kl is None else most_kl
    if not found["kl"] <= limit:
        raise UserError(f"{name} is {found['kl']:.3g} nats a token from its checkpoint, more than "
                        f"{form} may be ({limit:g}); it is not handed on: take a format with more "
                        "bits, or raise export.max_kl")
    exact = form in ("f32", "f16", "bf16") and most_kl is None
    if exact and found["largest_gap"] > MOST_GAP:
        raise UserError(f"{name} parts from its checkpoint at a token that is not close "
                        f"({found['largest_gap']:.2f} in logits); it is not handed on: export the "
                        "format that the checkpoint is stored in")
    return found


def _check_prompt(got: list[int], ids: list[int], tokenizer: Any, name: str) -> None:
    if got == ids:
        return
    place = next((i for i, (a, b) in enumerate(zip(got, ids, strict=False)) if a != b),
                 min(len(got), len(ids)))
    shown = [tokenizer.decode(some[place:place + 4]) for some in (got, ids)]
    raise UserError(f"{name} reads a prompt otherwise than its checkpoint (token {place}: "
                    f"{shown[0]!r}, not {shown[1]!r}); it is not handed on: its tokenizer or chat "
                    "template has no exact form in llama.cpp, use a student with another")


def _compared(server: Runner, reference: Reference, name: str) -> dict[str, Any]:
    """Hold the file's distribution against the checkpoint's along the checkpoint's greedy answers.

    Counts answers that the file would give too; where one parts, how far apart the logits are.
    Beyond the file's LIKELIEST tokens the rest is one event of the KL: a lower bound, exact if
    they are all.
    """
    values: list[float] = []
    gaps: list[dict[str, Any]] = []
    same = parted = compared = 0
    with progress(f"comparing {name}", len(reference.prompts)) as advance:
        for index, (prompt, answer) in enumerate(
                zip(reference.prompts, reference.answers, strict=True)):
            scores = reference.logprobs(index)
            steps = server.follow(prompt, answer, min(LIKELIEST, scores.shape[1]))
            choices = [step.choice for step in steps]
            values += [kl(ours, step.top) for ours, step in zip(scores, steps, strict=True)
                       if step.top]
            same += sum(map(int.__eq__, choices, answer))
            compared += len(answer)
            apart = [{"prompt": index, "token": place,
                      "gap": float(scores[place, answer[place]] - scores[place, token])}
                     for place, token in enumerate(choices) if token != answer[place]]
            gaps += apart[:1]
            parted += bool(apart)
            advance(1)
    return {"greedy_equal": len(reference.prompts) - parted,
            "first_difference": gaps[0] if gaps else None,
            "largest_gap": max((one["gap"] for one in gaps), default=0.0),
            "kl": math.fsum(values) / len(values), "kl_max": max(values),
            "kl_tokens": len(values), "same_top": same / compared}


def _speed(server: Runner, reference: Reference) -> float:
    """Tokens a second of one answer at a time: the fastest of three."""
    tokens = max(map(len, reference.answers))
    done = [server.complete(prompt, tokens)["timings"] for prompt in reference.prompts[:3]]
    return max(one["predicted_per_second"] for one in done)


def kl(scores: torch.Tensor, there: Mapping[int, float]) -> float:
    """KL in nats of the distribution `scores` [vocabulary] from that whose top is `there`."""
    ids = list(there)
    ours, theirs = scores[ids].double(), torch.tensor(list(there.values())).double()
    rest, their_rest = (max(1e-9, 1.0 - float(some.exp().sum())) for some in (ours, theirs))
    tail = rest * math.log(rest / their_rest) if len(ids) < len(scores) else 0.0
    return max(0.0, float((ours.exp() * (ours - theirs)).sum()) + tail)
