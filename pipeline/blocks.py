"""Best-fit packing: rows into blocks of fixed length, so that hardly a token is padding.

Each block keeps the lengths of its rows; position ids that start again at 0 with every row, and
attention that follows them, keep a row from seeing its neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def best_fit(lengths: Sequence[int] | np.ndarray, block: int) -> list[list[int]]:
    """Indices of the rows of each block: best-fit decreasing (arXiv 2404.10830), no row cut.

    `block` and `lengths` are in tokens. Free space is looked up in one integer whose bit s is set
    where a block with s free tokens is open: the lowest bit from a row's length on is the best fit.
    Raises ValueError where a row is longer than a block or empty.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= block:
        raise ValueError(f"row lengths must lie between 1 and {block}")
    blocks: list[list[int]] = []
    open_with: list[list[int]] = [[] for _ in range(block + 1)]
    spaces = 0
    order = np.argsort(-lengths, kind="stable")
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        room = spaces >> length
        if room:
            space = length + (room & -room).bit_length() - 1
            number = open_with[space].pop()
            if not open_with[space]:
                spaces ^= 1 << space
        else:
            space, number = block, len(blocks)
            blocks.append([])
        blocks[number].append(index)
        left = space - length
        if left:
            open_with[left].append(number)
            spaces |= 1 << left
    return blocks


def position_ids(lengths: Sequence[int]) -> np.ndarray:
    """0, 1, … for each row of a block of rows with these lengths: int64 [sum of lengths]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def balance(lengths: Sequence[Sequence[int]]) -> float:
    """Attention work of the mean block over that of the heaviest, as sums of squared lengths."""
    work = [sum(length * length for length in block) for block in lengths]
    return sum(work) / len(work) / max(work) if work else 1.0
