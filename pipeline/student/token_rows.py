"""Feeds token rows to a model: labels, names, held-out problems, batches, order.

A row is one trace, or a block of several samples with `seq_lengths` (or `position_ids` that restart
at 0 with every sample).
"""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, fields
from heapq import heappop, heappush
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.errors import UserError
from pipeline.serving.processes import is_first

IGNORED = -100
"""Label of a token without loss."""


@dataclass(frozen=True)
class Rows:
    """Token rows: ids, labels, sample lengths, trace names, and the problem of each sample."""

    ids: list[np.ndarray]
    labels: list[np.ndarray]
    lengths: list[list[int]]
    names: list[str]
    problems: list[list[str]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def packed(self) -> bool:
        """Whether any row holds more than one sample."""
        return any(len(lengths) > 1 for lengths in self.lengths)

    def part(self, chosen: range) -> Rows:
        """Return the rows with numbers in `chosen`."""
        return Rows(*(getattr(self, one.name)[chosen.start:chosen.stop] for one in fields(self)))


def read_rows(path: Path, chosen: range | None = None) -> Rows:
    """Read a Parquet file of rows, those in `chosen` alone or all.

    Raises UserError if a row has no token to train on.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        table = file.read() if chosen is None else _groups(file, chosen)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete its folder to remake it") \
            from None
    columns = set(table.column_names)
    if not {"input_ids", "completion_mask"} <= columns:
        raise UserError(f"{path} has no input_ids and completion_mask columns; run `limbeck pack`")
    ids, masks = _arrays(table, "input_ids"), _arrays(table, "completion_mask")
    lengths = _sample_lengths(table, ids)
    problems, samples = table["problem_id"].to_pylist(), table["sample"].to_pylist()
    names = [_name(problem, sample) for problem, sample in zip(problems, samples, strict=True)]
    labels = [_labels(*row) for row in zip(ids, masks, lengths, names, strict=True)]
    sample_problems = [problem if isinstance(problem, list) else [str(problem)] * len(row)
                       for problem, row in zip(problems, lengths, strict=True)]
    return Rows(ids, labels, lengths, names, sample_problems)


def _groups(file: pq.ParquetFile, chosen: range) -> pa.Table:
    """Read the rows in `chosen`, and no row group without any of them."""
    ends = np.cumsum([0, *(file.metadata.row_group(i).num_rows
                           for i in range(file.num_row_groups))])
    groups = [i for i, (start, end) in enumerate(pairwise(ends))
              if start < chosen.stop and end > chosen.start]
    return file.read_row_groups(groups).slice(chosen.start - int(ends[groups[0]]), len(chosen))


def _arrays(table: pa.Table, column: str) -> list[np.ndarray]:
    """Return a list column as one numpy view for each row."""
    lists = table[column].combine_chunks()
    values = lists.values.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    ends = lists.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(ends)]


def _sample_lengths(table: pa.Table, ids: list[np.ndarray]) -> list[list[int]]:
    if "seq_lengths" in table.column_names:
        return table["seq_lengths"].to_pylist()
    if "position_ids" in table.column_names:
        starts = [np.append(np.flatnonzero(row == 0), len(row))
                  for row in _arrays(table, "position_ids")]
        return [np.diff(row).tolist() for row in starts]
    return [[len(row)] for row in ids]


def _name(problem: Any, sample: Any) -> str:
    if isinstance(problem, list):
        return ", ".join(f"{p}#{s}" for p, s in zip(problem, sample, strict=True))
    return f"{problem}#{sample}"


def _labels(ids: np.ndarray, mask: np.ndarray, lengths: list[int], name: str) -> np.ndarray:
    """Return ids where loss counts, else IGNORED; raises UserError if no loss counts anywhere."""
    if len(ids) != len(mask) or sum(lengths) != len(ids):
        raise UserError(f"token row {name} has {len(ids)} ids, {len(mask)} mask values and samples "
                        f"of {sum(lengths)} tokens; run `limbeck pack` again")
    labels = np.where(mask == 1, ids, IGNORED)
    labels[np.cumsum([0, *lengths[:-1]])] = IGNORED     # nothing predicts a sample's first token
    if (labels == IGNORED).all():
        raise UserError(f"token row {name} has no token to train on (its loss mask is all zero); "
                        "run `limbeck doctor` and look at the chat template")
    return labels


def held_out_problems(rows: Rows, max_samples: int) -> set[str]:
    """Choose problems with together at most `max_samples` samples and 2 % of all."""
    samples = Counter(problem for row in rows.problems for problem in row)
    free = limit = min(max_samples, samples.total() // 50)
    chosen: set[str] = set()
    # By hash: blocks are sorted by length, so a tail split would hold out only short samples.
    for problem in sorted(samples, key=lambda name: zlib.crc32(name.encode())):
        if samples[problem] <= free:
            chosen.add(problem)
            free -= samples[problem]
    if max_samples and not chosen and is_first():
        print(f"sft: no problem is held out: each has more than {limit} of the "
              f"{samples.total():,} rows (sft.held_out, at most 2 % of them)", file=sys.stderr)
    return chosen


@dataclass(frozen=True)
class Collator:
    """Collates rows by index: right-padded, or end to end with restarting positions.

    `targets(indices)` adds the teacher's distributions of those rows' trained tokens. Held-out
    problems are masked in training batches; in eval batches only they count.
    """

    rows: Rows
    pad_id: int
    padding_free: bool
    targets: Callable[[Sequence[int]], dict[str, torch.Tensor]] | None = None
    held_out_problems: Set[str] = frozenset()

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        indices = [example["row"] for example in examples]
        labels = [self._labels(**example) for example in examples]
        inputs = (self._end_to_end if self.padding_free else self._padded)(indices, labels)
        targets = self.targets(indices) if self.targets else {}
        if targets and self.held_out_problems:
            has_loss = torch.from_numpy(np.concatenate(
                [masked[self.rows.labels[i] != IGNORED] != IGNORED
                 for i, masked in zip(indices, labels, strict=True)]))
            targets = {name: column[has_loss] for name, column in targets.items()}
        return {**inputs, **targets, "rows": indices}

    def _labels(self, row: int, is_eval: bool = False) -> np.ndarray:
        labels = self.rows.labels[row]
        if not self.held_out_problems:
            return labels
        held_out = [problem in self.held_out_problems for problem in self.rows.problems[row]]
        return np.where(np.repeat(held_out, self.rows.lengths[row]) == is_eval, labels, IGNORED)

    def _padded(self, indices: Sequence[int],
                row_labels: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        longest = max(len(self.rows.ids[i]) for i in indices)
        shape = (len(indices), longest)
        ids, mask = torch.full(shape, self.pad_id), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        for k, i in enumerate(indices):
            length = len(self.rows.ids[i])
            ids[k, :length] = torch.tensor(self.rows.ids[i])
            labels[k, :length] = torch.tensor(row_labels[k])
            mask[k, :length] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _end_to_end(self, indices: Sequence[int],
                    row_labels: Sequence[np.ndarray]) -> dict[str, Any]:
        lengths = [length for i in indices for length in self.rows.lengths[i]]
        ids = np.concatenate([self.rows.ids[i] for i in indices])
        return {"input_ids": torch.tensor(ids)[None],
                "labels": torch.tensor(np.concatenate(row_labels))[None],
                **sample_bounds(lengths)}


def sample_bounds(lengths: Sequence[int], device: Any = None) -> dict[str, Any]:
    """Return the model inputs that separate samples of these lengths, end to end in one row.

    Without an attention mask: models read the bounds from the positions, variable-length kernels
    from the cumulative lengths.
    """
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    positions = torch.from_numpy(position_ids(lengths))[None].to(device)
    return {"position_ids": positions, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends,
            "max_length_q": max(lengths), "max_length_k": max(lengths)}


def position_ids(lengths: Sequence[int]) -> np.ndarray:
    """Return 0, 1, … for each of the samples of these lengths: int64 [sum of lengths]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """Batches rows of similar length in an order that depends only on seed and epoch."""

    # The library's own draws from the global generator: a resumed second epoch would differ.

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.batch, self.seed, self.epoch = list(lengths), batch, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        from transformers.trainer_pt_utils import get_length_grouped_indices

        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


class EvenSampler(torch.utils.data.Sampler[int]):
    """Reorders each block of groups * size rows of `sampler` into groups of about equal tokens.

    A block is an optimizer step's, a group a micro-batch of one process. The last, smaller block
    stays as it is.
    """

    # Without padding a process takes as long as its tokens, and a step as long as its slowest.

    def __init__(self, sampler: Any, lengths: Sequence[int], groups: int, size: int):
        self.sampler, self.lengths, self.groups, self.size = sampler, lengths, groups, size

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        order, step = list(self.sampler), self.groups * self.size
        for start in range(0, len(order), step):
            block = order[start:start + step]
            yield from self._evened(block) if len(block) == step else block

    def _evened(self, block: Sequence[int]) -> Iterator[int]:
        open_groups: list[tuple[int, int, list[int]]] = [(0, k, []) for k in range(self.groups)]
        full: dict[int, list[int]] = {}
        for row in sorted(block, key=lambda row: -self.lengths[row]):
            tokens, k, rows = heappop(open_groups)
            rows.append(row)
            if len(rows) == self.size:
                full[k] = rows
            else:
                heappush(open_groups, (tokens + self.lengths[row], k, rows))
        return chain.from_iterable(full[k] for k in range(self.groups))
