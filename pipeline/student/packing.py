"""Kept traces to token rows, and rows to blocks; nothing is cut without being counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from pipeline import tables
from pipeline.completion import Messages
from pipeline.errors import UserError
from pipeline.student.template import training_row

WINDOW = 1 << 25
"""Tokens that are packed together, to bound memory; enough rows for blocks to fill."""
FRAME = 1 << 22
"""Tokens of a frame of blocks: small enough that the allocator takes the same memory again."""
Row = tuple[str, int, list[int], list[int]]


def table(rows: Iterable[Row]) -> pl.DataFrame:
    """Rows as a records.TokenRow frame."""
    names = ("problem_id", "sample", "input_ids", "completion_mask")
    return tables.table_of(tables.TokenRow, [dict(zip(names, row, strict=True)) for row in rows])


class Packer:
    """Makes rows and counts what became of every trace; lengths in tokens."""

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens
        self.seen: Counter[str] = Counter()
        self.longest = 0

    def rows_of(self, trace: Mapping[str, Any], chats: Mapping[str, Messages], tokenizer: Any,
                too_long: str, advance: Any) -> Iterator[Row]:
        """The rows of one trace: one, none, or several where it is split."""
        advance(1)
        if not (trace["answer"] or "").strip():
            self.seen["without_answer"] += 1
            return
        name = trace["problem_id"], trace["sample"]
        ids, mask = training_row(tokenizer, chats[name[0]], trace["thinking"], trace["answer"])
        refuse_wrong_mask(ids, mask, tokenizer.eos_token_id, f"{name[0]}#{name[1]}")
        self.seen["too_long"] += len(ids) > self.max_tokens
        pieces = [(ids, mask)] if len(ids) <= self.max_tokens else []
        if len(ids) > self.max_tokens and too_long == "split":
            pieces = list(split(ids, mask, self.max_tokens))
            self.seen["pieces"] += len(pieces)
        for piece, trained in pieces:
            self.seen.update(rows=1, tokens=len(piece), loss_tokens=sum(trained))
            self.longest = max(self.longest, len(piece))
            yield *name, piece, trained

    def counts(self) -> dict[str, Any]:
        """Counts of rows, tokens and what was left out; a UserError where no row was made."""
        if not self.seen["rows"]:
            raise UserError(
                f"no row is left to train on: {self.seen['too_long']} kept traces are longer than "
                f"pack.max_tokens={self.max_tokens} and {self.seen['without_answer']} have no "
                "answer; raise pack.max_tokens or set pack.too_long=split")
        names = ("rows", "tokens", "loss_tokens", "too_long", "pieces", "without_answer")
        return {**{name: self.seen[name] for name in names}, "longest": self.longest}


def refuse_wrong_mask(ids: list[int], mask: list[int], end: int, name: str) -> None:
    """UserError unless the mask is 0 over a prompt, then 1 to the end-of-turn token."""
    first = mask.index(1) if 1 in mask else len(mask)
    if not 0 < first < len(ids) == len(mask) or 0 in mask[first:] or ids[-1] != end:
        raise UserError(f"trace {name} would train on no end of turn, on nothing or on its "
                        "prompt; check student.chat_template")


def split(ids: list[int], mask: list[int], longest: int) -> Iterator[tuple[list[int], list[int]]]:
    """Stretches of at most `longest` tokens that follow each other; those untrained are left out.

    All but the first begin within the trace, without its problem, at the last token of the one
    before: a row's first token is predicted by nothing, so it is trained where it came last.
    """
    for start in range(0, len(ids) - 1, longest - 1):
        trained = [0, *mask[start + 1:start + longest]]
        if any(trained):
            yield ids[start:start + longest], trained


def block_tables(rows: Iterable[Row], block: int,
                 shape: dict[str, Any]) -> Iterator[pl.DataFrame]:
    """records.Block frames of the packed rows; fills `shape` with what came of it.

    Rows are packed a WINDOW of tokens at a time, so any number of them fits in memory.
    """
    lengths: list[list[int]] = []
    for window in _windows(rows):
        sizes = [len(ids) for _, _, ids, _ in window]
        blocks = best_fit(sizes, block)
        lengths += [[sizes[index] for index in members] for members in blocks]
        step = max(1, FRAME // block)
        for start in range(0, len(blocks), step):
            yield _blocks(window, blocks[start:start + step])
    filled = sum(map(sum, lengths))
    shape.update(blocks=len(lengths), block_tokens=block,
                 fill=round(filled / max(1, len(lengths) * block), 5),
                 attention_balance=round(balance(lengths), 4))


def _windows(rows: Iterable[Row]) -> Iterator[list[tuple[str, int, np.ndarray, np.ndarray]]]:
    held, size = [], 0
    for name, sample, ids, mask in rows:
        held.append((name, sample, np.asarray(ids, np.int32), np.asarray(mask, np.int8)))
        size += len(ids)
        if size >= WINDOW:
            yield held
            held, size = [], 0
    if held:
        yield held


def _blocks(window: list[tuple[str, int, np.ndarray, np.ndarray]],
            blocks: list[list[int]]) -> pl.DataFrame:
    import pyarrow as pa

    order = [index for members in blocks for index in members]
    sizes = np.array([len(window[index][2]) for index in order])
    rows = np.cumsum([0] + [len(members) for members in blocks])
    tokens = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))[rows]

    def lists(bounds: np.ndarray, values: Any) -> Any:
        return pa.LargeListArray.from_arrays(pa.array(bounds), pa.array(values))

    frame: Any = pl.from_arrow(pa.table({
        "problem_id": lists(rows, [window[index][0] for index in order]),
        "sample": lists(rows, [window[index][1] for index in order]),
        "input_ids": lists(tokens, np.concatenate([window[index][2] for index in order])),
        "completion_mask": lists(tokens, np.concatenate([window[index][3] for index in order])),
        "seq_lengths": lists(rows, sizes)}))
    return frame


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
