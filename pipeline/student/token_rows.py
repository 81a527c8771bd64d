"""Token rows on their way into a model: labels, names, held-out rows, batches, order.

A row is one trace, or a block of several with `seq_lengths` (or `position_ids` that start at 0
with every sample); its names say which traces it holds.
"""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.errors import UserError
from pipeline.serving.processes import is_first

IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """Token rows: ids, labels (`IGNORED` where no loss counts), sample lengths, trace names.

    `problems` has those of every sample of a row.
    """

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


def read_rows(path: Path) -> Rows:
    """The rows of a Parquet file; a UserError names a row without a token to train on."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
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
    of_samples = [problem if isinstance(problem, list) else [str(problem)] * len(row)
                  for problem, row in zip(problems, lengths, strict=True)]
    return Rows(ids, labels, lengths, names, of_samples)


def _arrays(table: pa.Table, column: str) -> list[np.ndarray]:
    """A list column as one numpy view a row."""
    lists = table[column].combine_chunks()
    values = lists.values.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    ends = lists.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(ends)]


def _sample_lengths(table: pa.Table, ids: list[np.ndarray]) -> list[list[int]]:
    """Tokens of each sample of each row."""
    if "seq_lengths" in table.column_names:
        return table["seq_lengths"].to_pylist()
    if "position_ids" in table.column_names:
        starts = [np.append(np.flatnonzero(row == 0), len(row))
                  for row in _arrays(table, "position_ids")]
        return [np.diff(row).tolist() for row in starts]
    return [[len(row)] for row in ids]


def _name(problem: Any, sample: Any) -> str:
    """`problem#sample`, or all of a block's."""
    if isinstance(problem, list):
        return ", ".join(f"{p}#{s}" for p, s in zip(problem, sample, strict=True))
    return f"{problem}#{sample}"


def _labels(ids: np.ndarray, mask: np.ndarray, lengths: list[int], name: str) -> np.ndarray:
    """Ids where the loss counts, else IGNORED; a sample's first token is predicted by nothing."""
    if len(ids) != len(mask) or sum(lengths) != len(ids):
        raise UserError(f"token row {name} has {len(ids)} ids, {len(mask)} mask values and samples "
                        f"of {sum(lengths)} tokens; run `limbeck pack` again")
    labels = np.where(mask == 1, ids, IGNORED)
    labels[np.cumsum([0, *lengths[:-1]])] = IGNORED
    if (labels == IGNORED).all():
        raise UserError(f"token row {name} has no token to train on (its loss mask is all zero); "
                        "run `limbeck doctor` and look at the chat template")
    return labels


def held_out(rows: Rows, wanted: int) -> set[str]:
    """Problems with at most `wanted` samples together and no more than 2 % of all.

    Taken by hash: in blocks the samples stand by length, so the last ones would be the short ones.
    """
    samples = Counter(problem for row in rows.problems for problem in row)
    room = limit = min(wanted, samples.total() // 50)
    taken: set[str] = set()
    for problem in sorted(samples, key=lambda name: zlib.crc32(name.encode())):
        if samples[problem] <= room:
            taken.add(problem)
            room -= samples[problem]
    if wanted and not taken and is_first():
        print(f"sft: no problem is held out to watch the loss on: each has more than {limit} of "
              f"the {samples.total():,} rows (sft.held_out, at most 2 % of them)", file=sys.stderr)
    return taken


@dataclass(frozen=True)
class Collator:
    """Rows by index to a batch: right-padded, or laid end to end with restarting positions.

    `targets(indices)` adds the teacher's distributions of those rows' trained tokens. Samples of
    the problems `away` bear no loss, but where an example says that it is `watched`; there they
    alone do.
    """

    rows: Rows
    pad_id: int
    flat: bool
    targets: Callable[[Sequence[int]], dict[str, torch.Tensor]] | None = None
    away: Set[str] = frozenset()

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        indices = [example["row"] for example in examples]
        labels = [self._labels(**example) for example in examples]
        lay = self._end_to_end if self.flat else self._padded
        extra = self.targets(indices) if self.targets else {}
        if extra and self.away:
            bearing = torch.from_numpy(np.concatenate(
                [part[self.rows.labels[i] != IGNORED] != IGNORED
                 for i, part in zip(indices, labels, strict=True)]))
            extra = {name: column[bearing] for name, column in extra.items()}
        return {**lay(indices, labels), **extra, "rows": indices}

    def _labels(self, row: int, watched: bool = False) -> np.ndarray:
        labels = self.rows.labels[row]
        if not self.away:
            return labels
        out = [problem in self.away for problem in self.rows.problems[row]]
        return np.where(np.repeat(out, self.rows.lengths[row]) == watched, labels, IGNORED)

    def _padded(self, indices: Sequence[int],
                given: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        longest = max(len(self.rows.ids[i]) for i in indices)
        shape = (len(indices), longest)
        ids, mask = torch.full(shape, self.pad_id), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        for place, i in enumerate(indices):
            length = len(self.rows.ids[i])
            ids[place, :length] = torch.tensor(self.rows.ids[i])
            labels[place, :length] = torch.tensor(given[place])
            mask[place, :length] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _end_to_end(self, indices: Sequence[int], given: Sequence[np.ndarray]) -> dict[str, Any]:
        lengths = [length for i in indices for length in self.rows.lengths[i]]
        ids = np.concatenate([self.rows.ids[i] for i in indices])
        return {"input_ids": torch.tensor(ids)[None],
                "labels": torch.tensor(np.concatenate(given))[None], **bounds(lengths)}


def bounds(lengths: Sequence[int], device: Any = None) -> dict[str, Any]:
    """What tells a model where samples of these lengths, laid end to end in one row, begin.

    There is no attention mask: the model reads the bounds from the positions, and the
    variable-length kernels from the cumulative lengths.
    """
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"position_ids": positions.to(device), "cu_seq_lens_q": ends, "cu_seq_lens_k": ends,
            "max_length_q": max(lengths), "max_length_k": max(lengths)}


class ByLength(torch.utils.data.Sampler[int]):
    """Rows in batches of like length, in an order that depends on seed and epoch alone.

    The library's own sampler draws from the global generator, so a resumed second epoch would
    see other batches than an uninterrupted one.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.batch, self.seed, self.epoch = list(lengths), batch, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        from transformers.trainer_pt_utils import get_length_grouped_indices

        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))
