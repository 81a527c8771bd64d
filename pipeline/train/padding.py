"""Selects the rows and micro-batches of an update, and removes their padding."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.student.token_rows import IGNORED, sample_bounds


def flatten(ids: torch.Tensor, mask: torch.Tensor, logits_to_keep: int) -> dict[str, Any]:
    """Lay the tokens of `ids` [rows, columns] under `mask` end to end as one row of model inputs.

    The last `logits_to_keep` columns, the completions, are its labels.
    """
    labels = ids.clone()
    labels[:, :-logits_to_keep] = IGNORED   # no label follows another row's token: prompts do
    return {"input_ids": ids[mask][None], "labels": labels[mask][None],
            **sample_bounds(mask.sum(1).tolist(), ids.device)}


def unflatten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Put the values [1, tokens - 1] of all tokens but the first under `mask` [rows, columns]."""
    padded = torch.nn.functional.pad(values[0], (1, 0))
    return padded.new_zeros(mask.shape).masked_scatter(mask, padded)


def equal_reward_rows(rewards: torch.Tensor, group: int | None) -> torch.Tensor:
    """Whether each row's group got equal rewards from every function [rows].

    `rewards` [rows, functions] are NaN if undecided.
    """
    # TRL compares the standard deviation with 0; with scale_rewards=batch that of all groups.
    grouped = rewards.view(-1, group or 1, rewards.shape[1])
    spread = grouped.nan_to_num(-torch.inf).amax(1) > grouped.nan_to_num(torch.inf).amin(1)
    return ~spread.any(1).repeat_interleave(group or 1)


def drop_zero_advantage(batches: list[dict[str, Any]], rows: int,
                        mean_over_rows: bool) -> list[dict[str, Any]]:
    """Drop rows of advantage 0, which have no gradient, from the micro-batches.

    The shortest of them stay to make up `rows` and equal micro-batches. `row_scale` corrects a loss
    that is a mean over rows.
    """
    if any(isinstance(value, list) for value in batches[0].values()):
        return batches
    joined, shared = _joined(batches)
    zero = joined["advantages"] == 0
    kept = max(1, -(-rows // len(batches))) * len(batches)
    lengths = joined["completion_mask"].sum(1)
    order = (lengths + zero * (lengths.max() + 1)).argsort(stable=True)[:kept]
    if mean_over_rows:
        shared["row_scale"] = shared["row_scale"] * (kept / len(zero))
    return [{**shared, **{name: value[rows] for name, value in joined.items()}}
            for rows in order.view(len(batches), -1)]


def rebalance(batches: list[dict[str, Any]], padding_free: bool) -> list[dict[str, Any]]:
    """Redistribute the rows over equally many micro-batches: in order of length for little padding.

    Without padding in snake order, so that micro-batches have similar token counts (lower peak
    memory). Batches with anything but tensors (images) stay as they are.
    """
    if any(isinstance(value, list) for value in batches[0].values()):
        return batches
    joined, shared = _joined(batches)
    lengths = joined["completion_mask"].sum(1) + padding_free * joined["prompt_mask"].sum(1)
    order = lengths.argsort(stable=True).view(len(batches), -1)
    if padding_free:
        order = order.view(-1, len(batches))
        order[1::2] = order[1::2].flip(1)
        order = order.T
    return [{**shared, **{name: value[rows] for name, value in joined.items()}} for rows in order]


def _joined(batches: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the rows of all micro-batches, and the values they share (numbers, None)."""
    first = batches[0]
    shared = {name: value for name, value in first.items() if value is None or value.ndim == 0}
    return {name: torch.cat([batch[name] for batch in batches])
            for name in first if name not in shared}, shared


def trim_padding(inputs: dict[str, Any]) -> dict[str, Any]:
    """Cut the last columns of a micro-batch, in which no completion has loss; prompts stay."""
    mask = inputs["completion_mask"]
    used = mask.any(0).nonzero()
    width = int(used.max()) + 1 if len(used) else 1
    return {name: value[:, :width] if _is_per_token(name, value, mask) else value
            for name, value in inputs.items()}


def _is_per_token(name: str, value: Any, mask: torch.Tensor) -> bool:
    return (isinstance(value, torch.Tensor) and value.ndim == 2 and value.shape == mask.shape
            and not name.startswith("prompt"))
