"""Turns kept traces into token rows, and rows into blocks; nothing is cut without being counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from pipeline import tables
from pipeline.completion import Messages
from pipeline.errors import UserError
from pipeline.prompts import asking_length
from pipeline.student.template import TrainingRow, training_rows

ENCODED_CHARACTERS = 1 << 22
"""Characters that are encoded together: work for every core, and bounded memory."""
WINDOW_TOKENS = 1 << 25
"""Tokens that are packed together: bounds memory, with enough rows to fill the blocks."""
FRAME_TOKENS = 1 << 22
"""Tokens of a frame of blocks: small enough that the allocator reuses its memory."""
Row = tuple[str, int, list[int], list[int]]
"""(problem id, sample, token ids, loss mask)."""


def table(rows: Iterable[Row]) -> pl.DataFrame:
    """Return rows as a tables.TokenRow frame."""
    names = ("problem_id", "sample", "input_ids", "completion_mask")
    return tables.table_of(tables.TokenRow, [dict(zip(names, row, strict=True)) for row in rows])


class Packer:
    """Makes token rows and counts what became of every trace; lengths in tokens."""

    def __init__(self, max_tokens: int, name_length: bool = False):
        self.max_tokens, self.name_length = max_tokens, name_length
        self.counter: Counter[str] = Counter()
        self.longest = 0

    def rows_of(self, traces: Iterable[Mapping[str, Any]], chats: Mapping[str, Messages],
                tokenizer: Any, too_long: str, advance: Any) -> Iterator[Row]:
        """Yield the rows of `traces`: of each one, none, or several if it is split."""
        for some in _runs(traces, lambda trace: sum(len(trace[part] or "") for part in (
                "thinking", "answer")), ENCODED_CHARACTERS):
            advance(len(some))
            answered = [trace for trace in some if (trace["answer"] or "").strip()]
            self.counter["without_answer"] += len(some) - len(answered)
            said = [(chats[trace["problem_id"]], trace["thinking"], trace["answer"])
                    for trace in answered]
            made = training_rows(tokenizer, said)
            named = [i for i, trace in enumerate(answered)
                     if self.name_length and trace["sample"] % 2]
            again = training_rows(tokenizer, [(asking_length(said[i][0], sum(made[i][1])),
                                               *said[i][1:]) for i in named])
            for i, row in zip(named, again, strict=True):
                made[i] = row
            for trace, (ids, mask) in zip(answered, made, strict=True):
                name = trace["problem_id"], trace["sample"]
                check_mask(ids, mask, tokenizer.eos_token_id, f"{name[0]}#{name[1]}")
                for piece in self._pieces(ids, mask, too_long):
                    yield *name, *piece

    def _pieces(self, ids: list[int], mask: list[int], too_long: str) -> list[TrainingRow]:
        """The rows that a trace's row gives, counted."""
        pieces = [(ids, mask)]
        if len(ids) > self.max_tokens:
            self.counter["too_long"] += 1
            pieces = list(split(ids, mask, self.max_tokens)) if too_long == "split" else []
            self.counter["pieces"] += len(pieces)
        for piece, piece_mask in pieces:
            self.counter.update(rows=1, tokens=len(piece), loss_tokens=sum(piece_mask))
            self.longest = max(self.longest, len(piece))
        return pieces

    def counts(self) -> dict[str, Any]:
        """Return counts of rows, tokens and dropped traces; raises UserError if no row was made."""
        if not self.counter["rows"]:
            raise UserError(
                f"no row is left to train on: {self.counter['too_long']} kept traces are longer "
                f"than pack.max_tokens={self.max_tokens} and {self.counter['without_answer']} have "
                "no answer; raise pack.max_tokens or set pack.too_long=split")
        names = ("rows", "tokens", "loss_tokens", "too_long", "pieces", "without_answer")
        return {**{name: self.counter[name] for name in names}, "longest": self.longest}


def _runs(items: Iterable[Any], size_of: Callable[[Any], int], limit: int) -> Iterator[list]:
    """Yield runs of `items` whose sizes first reach `limit` together, and the rest."""
    run, size = [], 0
    for item in items:
        run.append(item)
        size += size_of(item)
        if size >= limit:
            yield run
            run, size = [], 0
    if run:
        yield run


def check_mask(ids: list[int], mask: list[int], eos_token_id: int, name: str) -> None:
    """Raise UserError unless the mask is 0 over a prompt, then 1 to the end-of-turn token."""
    first = mask.index(1) if 1 in mask else len(mask)
    if not 0 < first < len(ids) == len(mask) or 0 in mask[first:] or ids[-1] != eos_token_id:
        raise UserError(f"trace {name} would be trained without its end of turn, on its prompt or "
                        "on nothing; check student.chat_template")


def split(ids: list[int], mask: list[int], longest: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield consecutive pieces of at most `longest` tokens; pieces without loss are dropped."""
    # A row's first token is predicted by nothing, so a piece begins with the last token of the
    # piece before, where that token was trained.
    for start in range(0, len(ids) - 1, longest - 1):
        piece_mask = [0, *mask[start + 1:start + longest]]
        if any(piece_mask):
            yield ids[start:start + longest], piece_mask


def block_tables(rows: Iterable[Row], block: int,
                 shape: dict[str, Any]) -> Iterator[pl.DataFrame]:
    """Yield tables.Block frames of the packed rows; adds their counts to `shape`.

    Rows are packed WINDOW_TOKENS at a time, so any number of them fits in memory.
    """
    lengths: list[list[int]] = []
    arrays = ((name, sample, np.asarray(ids, np.int32), np.asarray(mask, np.int8))
              for name, sample, ids, mask in rows)
    for window in _runs(arrays, lambda row: len(row[2]), WINDOW_TOKENS):
        sizes = [len(ids) for _, _, ids, _ in window]
        blocks = best_fit(sizes, block)
        lengths += [[sizes[index] for index in members] for members in blocks]
        step = max(1, FRAME_TOKENS // block)
        for start in range(0, len(blocks), step):
            yield _frame(window, blocks[start:start + step])
    filled = sum(map(sum, lengths))
    shape.update(blocks=len(lengths), block_tokens=block,
                 fill=round(filled / max(1, len(lengths) * block), 5),
                 attention_balance=round(attention_balance(lengths), 4))


def _frame(window: list[tuple[str, int, np.ndarray, np.ndarray]],
           blocks: list[list[int]]) -> pl.DataFrame:
    import pyarrow as pa

    order = [index for members in blocks for index in members]
    sizes = np.array([len(window[index][2]) for index in order])
    row_bounds = np.cumsum([0] + [len(members) for members in blocks])
    token_bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))[row_bounds]

    def lists(bounds: np.ndarray, values: Any) -> Any:
        return pa.LargeListArray.from_arrays(pa.array(bounds), pa.array(values))

    ids, masks = (np.concatenate([window[index][column] for index in order]) for column in (2, 3))
    frame: Any = pl.from_arrow(pa.table({
        "problem_id": lists(row_bounds, [window[index][0] for index in order]),
        "sample": lists(row_bounds, [window[index][1] for index in order]),
        "input_ids": lists(token_bounds, ids), "completion_mask": lists(token_bounds, masks),
        "seq_lengths": lists(row_bounds, sizes)}))
    return frame


def best_fit(lengths: Sequence[int] | np.ndarray, block: int) -> list[list[int]]:
    """Return the row indices of each block by best-fit decreasing (arXiv 2404.10830).

    `block` and `lengths` are in tokens. Raises ValueError if a row is empty or longer than a block.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= block:
        raise ValueError(f"row lengths must lie between 1 and {block}")
    blocks: list[list[int]] = []
    open_with: list[list[int]] = [[] for _ in range(block + 1)]
    # Bit s is set if a block with s free tokens is open: the lowest bit from a row's length on is
    # the best fit.
    spaces = 0
    order = np.argsort(-lengths, kind="stable")
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        candidates = spaces >> length
        if candidates:
            space = length + (candidates & -candidates).bit_length() - 1
            number = open_with[space].pop()
            if not open_with[space]:
                spaces ^= 1 << space
        else:
            space, number = block, len(blocks)
            blocks.append([])
        blocks[number].append(index)
        free = space - length
        if free:
            open_with[free].append(number)
            spaces |= 1 << free
    return blocks


def attention_balance(lengths: Sequence[Sequence[int]]) -> float:
    """Return the mean block's attention work (sum of squared lengths) over the largest."""
    work = [sum(length * length for length in block) for block in lengths]
    return sum(work) / len(work) / max(work) if work else 1.0
