"""Kept traces to token rows; nothing is cut, what does not fit is counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from pipeline import records
from pipeline.chat import Messages, training_row
from pipeline.errors import UserError
from pipeline.progress import progress


def token_rows(kept: pl.DataFrame, chats: Mapping[str, Messages], tokenizer: Any,
               max_tokens: int) -> tuple[pl.DataFrame, dict[str, int]]:
    """(records.TokenRow frame, counts) of the kept traces; lengths in tokens.

    Raises a UserError where no row fits or a row would train on nothing.
    """
    rows, too_long = [], 0
    with progress("packing", len(kept)) as advance:
        for trace in kept.iter_rows(named=True):
            ids, mask = training_row(tokenizer, chats[trace["problem_id"]], trace["thinking"],
                                     trace["answer"])
            if not any(mask) or ids[-1] != tokenizer.eos_token_id or not mask[-1]:
                raise UserError(f"trace {trace['problem_id']}#{trace['sample']} would train on "
                                "no end of turn; check student.chat_template")
            if len(ids) > max_tokens:
                too_long += 1
            else:
                rows.append({"problem_id": trace["problem_id"], "sample": trace["sample"],
                             "input_ids": ids, "completion_mask": mask})
            advance(1)
    if not rows:
        raise UserError(f"all {too_long} kept traces are longer than pack.max_tokens={max_tokens}; "
                        "raise it")
    lengths = [len(row["input_ids"]) for row in rows]
    return records.table_of(records.TokenRow, rows), {
        "rows": len(rows), "tokens": sum(lengths), "longest": max(lengths), "too_long": too_long,
        "loss_tokens": sum(sum(row["completion_mask"]) for row in rows)}
