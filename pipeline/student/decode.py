"""Batched sampling from a causal language model in which finished rows leave the batch.

transformers' generate carries every row to the end of the longest. Reasoning lengths are
heavy-tailed, so most of that work is wasted; here the cache is compacted as rows end. Used without
vLLM: on a CPU, for small models.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch

COMPACT_EVERY = 8
"""Steps between two compactions; each copies the cache, so not every step."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names in malloc.h


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks; does nothing with other C libraries."""
    # A growing cache otherwise faults its pages in at every step: about a third of the decoding
    # speed on a CPU (measured with the tiny student).
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 1 << 28)):
            libc.mallopt(option, value)


@torch.no_grad()
def decode(model: Any, prompts: list[list[int]], *, max_tokens: int | list[int],
           temperature: float, eos_token_ids: list[int], top_p: float = 1.0,
           draws: torch.Tensor | None = None) -> list[list[int]]:
    """Sample one completion (token ids, with its end-of-turn token if sampled) for each prompt.

    `max_tokens` is a limit for all, or one for each. Temperature 0 is greedy. Prompts may differ
    in length. With `draws` [prompts, max_tokens], uniform numbers, a completion does not depend on
    the others of its batch.
    """
    from transformers import DynamicCache

    ids, mask = _left_padded(prompts, model.device)
    padding_mask = None if bool(mask.all()) else mask
    ends = torch.tensor(eos_token_ids, device=model.device)
    rows = torch.arange(len(prompts), device=model.device)
    finished = torch.zeros_like(rows, dtype=torch.bool)
    limits = torch.tensor([max_tokens] * len(prompts) if isinstance(max_tokens, int)
                          else max_tokens, device=model.device)
    longest = int(limits.max())
    out = torch.full((len(prompts), longest), -1, device=model.device)
    cache, position = DynamicCache(), mask.sum(1)
    logits = model(input_ids=ids, attention_mask=padding_mask, past_key_values=cache,
                   use_cache=True, position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                   logits_to_keep=1).logits
    for step in range(longest):
        token = pick(logits[:, -1].float(), temperature, top_p,
                     None if draws is None else draws[rows, step])
        out[rows, step] = torch.where(finished, -1, token)
        finished |= torch.isin(token, ends) | (limits[rows] <= step + 1)
        if (step + 1) % COMPACT_EVERY == 0 and finished.any():
            keep = (~finished).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, finished, token, position = (x[keep] for x in (rows, finished, token, position))
            padding_mask = None if padding_mask is None else padding_mask[keep]
        if len(rows) == 0 or step + 1 == longest or bool(finished.all()):
            break
        if padding_mask is not None:
            ones = padding_mask.new_ones(len(padding_mask), 1)
            padding_mask = torch.cat([padding_mask, ones], 1)
        logits = model(input_ids=token[:, None], attention_mask=padding_mask,
                       past_key_values=cache, use_cache=True,
                       position_ids=position[:, None]).logits
        position = position + 1
    return [[token for token in row if token >= 0] for row in out.tolist()]


def _left_padded(prompts: list[list[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ids, mask) [prompts, longest], padded with 0."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def pick(logits: torch.Tensor, temperature: float, top_p: float,
         draws: torch.Tensor | None = None) -> torch.Tensor:
    """Sample one token a row from `logits` [rows, vocabulary] by nucleus sampling (1904.09751).

    `draws` [rows] in [0, 1) are where in the distribution the tokens lie.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / temperature, -1)
    if top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    if draws is None:
        return torch.multinomial(probabilities, 1)[:, 0]
    mass = probabilities.cumsum(-1)
    at = torch.searchsorted(mass, draws[:, None] * mass[:, -1:], right=True)
    return at[:, 0].clamp(max=mass.shape[-1] - 1)
