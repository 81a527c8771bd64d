"""What a GRPO update computes, as tensors: which rows, in which micro-batches, without padding."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.student.token_rows import IGNORED, bounds


def flatten(ids: torch.Tensor, mask: torch.Tensor, kept: int) -> dict[str, Any]:
    """A model's inputs for `ids` [rows, columns] without what `mask` leaves out, as one row.

    The last `kept` columns, the completions, are its labels; every row starts with its prompt, so
    no label belongs to a token that follows another row's.
    """
    labels = ids.clone()
    labels[:, :-kept] = IGNORED
    return {"input_ids": ids[mask][None], "labels": labels[mask][None],
            **bounds(mask.sum(1).tolist(), ids.device)}


def unflatten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[rows, columns] of `mask`, 0 where it is, from the values [1, tokens - 1] of all tokens but
    the first."""
    whole = torch.nn.functional.pad(values[0], (1, 0))
    return whole.new_zeros(mask.shape).masked_scatter(mask, whole)


def equal_reward_rows(rewards: torch.Tensor, group: int | None) -> torch.Tensor:
    """Whether a row's `group` earned the same by every function that decided [rows], from `rewards`
    [rows, functions], NaN where none did.

    TRL asks whether the spread is 0, with scale_rewards=batch that of all groups together.
    """
    grouped = rewards.view(-1, group or 1, rewards.shape[1])
    spread = grouped.nan_to_num(-torch.inf).amax(1) > grouped.nan_to_num(torch.inf).amin(1)
    return ~spread.any(1).repeat_interleave(group or 1)


def drop_zero_advantage(batches: list[dict[str, Any]], rows: int,
                        means: bool) -> list[dict[str, Any]]:
    """The micro-batches without rows of advantage 0, which have no gradient.

    The shortest of these stay where the others do not make up `rows` and fill every micro-batch
    alike. `means`, where the loss is a mean over rows: `row_scale` makes up for those left out.
    """
    if any(isinstance(value, list) for value in batches[0].values()):
        return batches
    joined, shared = _joined(batches)
    idle = joined["advantages"] == 0
    kept = max(1, -(-rows // len(batches))) * len(batches)
    share = kept / len(idle)
    lengths = joined["completion_mask"].sum(1)
    order = (lengths + idle * (lengths.max() + 1)).argsort(stable=True)[:kept]
    if means:
        shared["row_scale"] = shared["row_scale"] * share
    return [{**shared, **{name: value[places] for name, value in joined.items()}}
            for places in order.view(len(batches), -1)]


def rebalance(batches: list[dict[str, Any]], mixed: bool) -> list[dict[str, Any]]:
    """The micro-batches' rows dealt out again, as many to each as before.

    In the order of their completions' lengths, so that little is padded; `mixed`, where nothing is
    padded: to and fro, so that each gets about as many tokens and the largest needs least memory.
    Left as they are where anything but tensors is among them (images).
    """
    if any(isinstance(value, list) for value in batches[0].values()):
        return batches
    joined, shared = _joined(batches)
    lengths = joined["completion_mask"].sum(1) + mixed * joined["prompt_mask"].sum(1)
    order = lengths.argsort(stable=True).view(len(batches), -1)
    if mixed:
        order = order.view(-1, len(batches))
        order[1::2] = order[1::2].flip(1)
        order = order.T
    return [{**shared, **{name: value[rows] for name, value in joined.items()}} for rows in order]


def _joined(batches: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The rows of all micro-batches, and what all of them share (numbers, None)."""
    first = batches[0]
    shared = {name: value for name, value in first.items() if value is None or value.ndim == 0}
    return {name: torch.cat([batch[name] for batch in batches])
            for name in first if name not in shared}, shared


def trim_padding(inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs` without the last columns, in which no completion of the micro-batch has loss.

    Tensors as wide as `completion_mask` [rows, columns] are cut, prompts are left alone.
    """
    mask = inputs["completion_mask"]
    used = mask.any(0).nonzero()
    width = int(used.max()) + 1 if len(used) else 1
    return {name: value[:, :width] if _is_wide(name, value, mask) else value
            for name, value in inputs.items()}


def _is_wide(name: str, value: Any, mask: torch.Tensor) -> bool:
    return (isinstance(value, torch.Tensor) and value.ndim == 2 and value.shape == mask.shape
            and not name.startswith("prompt"))
