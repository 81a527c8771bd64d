"""Imports traces that exist already: from a published data set or another tool.

A trace is matched to its problem by the problem's text, compared as in `prepare`. Its number of
tokens is unknown, so it is estimated as a quarter of its bytes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config.teacher import FileTeacher
from pipeline.errors import UserError
from pipeline.problems.columns import (
    NoColumnError,
    answer_in,
    column,
    is_conversation,
    question_in,
)
from pipeline.stage import is_artifact

BYTES_PER_TOKEN, BATCH_ROWS = 4, 2048


def import_traces(teacher: FileTeacher, problems: pl.DataFrame, samples: int,
                  write_batch: Callable[[pl.DataFrame], None]) -> dict[str, Any]:
    """Import the traces of `teacher.traces`, at most `samples` a problem; returns their counts.

    `write_batch` gets tables.Trace frames of some thousand rows; `problems` is a tables.Problem
    frame. Raises UserError if no trace belongs to any of them.
    """
    from pipeline.curate.normalise import same_text_key
    from pipeline.problems.sources import raw_rows

    if is_artifact(Path(teacher.traces).name):
        return import_step(Path(teacher.traces), problems, samples, write_batch)
    known = {same_text_key(row["problem"]): row["problem_id"]
             for row in problems.iter_rows(named=True)}
    left_out: Counter[str] = Counter()
    found: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    unmatched, batch = "", []
    for row in raw_rows(teacher.traces, teacher.subset, teacher.split):
        text = _problem_text(row, teacher)
        if (problem_id := known.get(same_text_key(text))) is None:
            left_out["of no prepared problem"] += 1
            unmatched = unmatched or " ".join(text.split())[:60]
            continue
        for trace in traces_of_row(row, text, teacher, left_out):
            if found[problem_id] == samples:
                left_out["beyond generate.samples"] += 1
            else:
                batch.append({"problem_id": problem_id, "sample": found[problem_id], **trace})
                found[problem_id] += 1
        if len(batch) >= BATCH_ROWS:
            _write(batch, write_batch, sums)
            batch = []
    if not found and (left_out["empty"] or not unmatched):
        raise UserError(f"no trace of {teacher.traces} has any text ({left_out['empty']:,} are "
                        "empty); set generate.teacher.completion_column")
    if not found:
        raise UserError(f"no trace of {teacher.traces} belongs to a prepared problem (the first "
                        f"is of {unmatched!r}); the problems' texts must be equal: set "
                        "prepare.problems and generate.teacher.problem_column")
    _report(teacher, left_out, len(known) - len(found), unmatched)
    _write(batch, write_batch, sums)
    return {"traces": sums["traces"], "asked": 0, "reused": sums["traces"], "failed": 0,
            "left_out": dict(left_out), "retries": 0, "stopped": None, "cut_off": sums["cut_off"],
            "prompt_tokens": 0, "completion_tokens": sums["completion_tokens"], "cost_usd": 0.0}


def import_step(folder: Path, problems: pl.DataFrame, samples: int,
                write_batch: Callable[[pl.DataFrame], None]) -> dict[str, Any]:
    """Take over another step's traces, or those that its filter kept; returns their counts.

    At most `samples` a problem, under their teacher's name. Raises UserError if none is of a
    prepared problem.
    """
    from pipeline import tables

    judged = folder / "judged.parquet"
    table = pl.scan_parquet(judged).filter("kept") if judged.is_file() \
        else pl.scan_parquet(folder / "traces.parquet")
    known = problems["problem_id"].implode()
    found = table.filter(pl.col("problem_id").is_in(known)).with_columns(
        sample=pl.int_range(pl.len()).over("problem_id").cast(pl.Int64)).filter(
        pl.col("sample") < samples).select(list(tables.Trace.columns())).collect()
    if found.is_empty():
        raise UserError(f"no trace of {folder.name} belongs to a prepared problem; the steps must "
                        "have the same prepare section")
    write_batch(found)
    return {"traces": len(found), "asked": 0, "reused": len(found), "failed": 0, "left_out": {},
            "retries": 0, "stopped": None, "prompt_tokens": 0, "cost_usd": 0.0,
            "cut_off": int((found["finish_reason"] == "length").sum()),
            "completion_tokens": int(found["completion_tokens"].sum())}


def check_columns(teacher: FileTeacher) -> None:
    """Raise UserError if the first row of `teacher.traces` lacks a column that the config names."""
    if is_artifact(Path(teacher.traces).name):
        return
    from pipeline.problems.sources import raw_rows

    for row in raw_rows(teacher.traces, teacher.subset, teacher.split):
        _problem_text(row, teacher)
        _thoughts(row, teacher, len(_several(_column(row, teacher.completion_column, teacher))))
        return
    raise UserError(f"{teacher.traces} holds no trace; check generate.teacher.traces")


def traces_of_row(row: Mapping[str, Any], text: str, teacher: FileTeacher,
            left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the traces of a row, whose completion is a text, a message, a conversation or texts."""
    from pipeline.teacher.answer import MalformedReplyError
    from pipeline.teacher.dialects import read_choice

    completions = _several(_column(row, teacher.completion_column, teacher))
    reasons = row.get("finish_reasons")
    if not isinstance(reasons, list):
        reasons = [row.get("finish_reason")] * len(completions)
    thoughts = _thoughts(row, teacher, len(completions))
    for completion, reason, thinking in zip_longest(completions, reasons[:len(completions)],
                                                    thoughts):
        message = _message(completion, text)
        if thinking:
            message = {**message, "reasoning_content": thinking}
        try:
            choice = read_choice({"finish_reason": str(reason or "stop"), "message": message},
                                 teacher.opened and not thinking)
        except MalformedReplyError:
            left_out["empty"] += 1
            continue
        size = len(((choice.thinking or "") + choice.answer).encode())
        yield {"thinking": choice.thinking, "answer": choice.answer,
               "finish_reason": choice.finish_reason, "complete": choice.complete,
               "prompt_tokens": 0, "completion_tokens": -(-size // BYTES_PER_TOKEN),
               "cost_usd": 0.0, "seconds": 0.0, "model": teacher.model}


def _several(value: Any) -> list[Any]:
    """The completions in the value of a column: the texts of a list, else the value itself."""
    several = isinstance(value, list) and not any(isinstance(item, Mapping) for item in value)
    return value if several else [value]


def _thoughts(row: Mapping[str, Any], teacher: FileTeacher, completions: int) -> list[Any]:
    """The thinking of each of the row's completions, as its own column holds it."""
    if teacher.thinking_column is None:
        return []
    thoughts = _several(_column(row, teacher.thinking_column, teacher))
    if len(thoughts) != completions:
        raise UserError(f"a row of {teacher.traces} has {len(thoughts)} texts in "
                        f"{teacher.thinking_column!r} and {completions} completions in "
                        f"{teacher.completion_column!r}; name columns that go together")
    return thoughts


def _message(completion: Any, text: str) -> Mapping[str, Any]:
    """The message that answers the problem `text` in a message, a conversation or a text."""
    from pipeline.curate.normalise import same_text_key

    if isinstance(completion, list):
        turns = [turn for turn in completion if isinstance(turn, Mapping)]
        completion = answer_in(turns, text, same_text_key) or ""
    if not isinstance(completion, Mapping):
        return {"content": completion}
    if "content" in completion:
        return completion
    return {**completion, "content": completion.get("value")}


def _problem_text(row: Mapping[str, Any], teacher: FileTeacher) -> str:
    """The text of the row's problem; a conversation asks it, which may be that of the trace."""
    try:
        found = column(row, teacher.problem_column)
    except NoColumnError:
        found = row.get(teacher.completion_column)
        if not is_conversation(found):
            raise _no_column(row, teacher.problem_column, teacher) from None
    return question_in(found) if is_conversation(found) else str(found)


def _column(row: Mapping[str, Any], name: str, teacher: FileTeacher) -> Any:
    try:
        return column(row, name)
    except NoColumnError:
        raise _no_column(row, name, teacher) from None


def _no_column(row: Mapping[str, Any], name: str, teacher: FileTeacher) -> UserError:
    return UserError(f"{teacher.traces} has no column {name!r}, only {', '.join(row)}; set "
                     "generate.teacher.problem_column, completion_column and thinking_column")


def _report(teacher: FileTeacher, left_out: Counter[str], without: int, unmatched: str) -> None:
    for why, count in left_out.items():
        shown = f", the first: {unmatched!r}" if why == "of no prepared problem" else ""
        print(f"generate: {count:,} traces of {teacher.traces} left out: {why}{shown}",
              file=sys.stderr)
    if without:
        print(f"generate: {without:,} problems have no trace in {teacher.traces}", file=sys.stderr)


def _write(rows: list[dict[str, Any]], write_batch: Callable[[pl.DataFrame], None],
           sums: Counter[str]) -> None:
    from pipeline.tables import Trace, table_of

    table = table_of(Trace, rows)
    write_batch(table)
    sums.update(traces=len(table), cut_off=int((~table["complete"]).sum()),
                completion_tokens=int(table["completion_tokens"].sum()))
