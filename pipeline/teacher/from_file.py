"""Traces that exist already, laid out as the teacher's own: a published data set's, another tool's.

A trace finds its problem by the problem's text, the same where `prepare` takes it for the same. How
many tokens it has is not known, so a quarter of its bytes stands for them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import polars as pl

from pipeline.errors import UserError

ASSISTANT = ("assistant", "gpt", "model")
"""Who writes a conversation's answers, in OpenAI's, ShareGPT's and Gemma's words."""
BYTES_A_TOKEN, AT_ONCE = 4, 2048


def given_traces(teacher: Any, problems: pl.DataFrame, samples: int,
                 keep: Callable[[pl.DataFrame], None]) -> dict[str, Any]:
    """Counts of the traces in `teacher.traces`, at most `samples` a problem; `keep` gets them, some
    thousand at a time (records.Trace).

    `problems` is a records.Problem frame. A UserError where no trace belongs to any of them.
    """
    from pipeline.curate.normalise import same_text_key
    from pipeline.problems.sources import raw_rows

    known = {same_text_key(row["problem"]): row["problem_id"]
             for row in problems.iter_rows(named=True)}
    left_out: Counter[str] = Counter()
    found: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    strange, waiting = "", []
    for row in raw_rows(teacher.traces, teacher.subset, teacher.split):
        text = str(_column(row, teacher.problem_column, teacher))
        if (name := known.get(same_text_key(text))) is None:
            left_out["of no prepared problem"] += 1
            strange = strange or " ".join(text.split())[:60]
            continue
        for trace in _traces(row, teacher, left_out):
            if found[name] == samples:
                left_out["beyond generate.samples"] += 1
            else:
                waiting.append({"problem_id": name, "sample": found[name], **trace})
                found[name] += 1
        if len(waiting) >= AT_ONCE:
            _pass_on(waiting, keep, sums)
            waiting = []
    if not found and (left_out["empty"] or not strange):
        raise UserError(f"no trace of {teacher.traces} says anything ({left_out['empty']:,} are "
                        "empty); set generate.teacher.completion_column")
    if not found:
        raise UserError(f"no trace of {teacher.traces} is of a prepared problem (its first is "
                        f"{strange!r}); their texts must be the same: set prepare.problems and "
                        "generate.teacher.problem_column")
    _say(teacher, left_out, len(known) - len(found), strange)
    _pass_on(waiting, keep, sums)
    return {"traces": sums["traces"], "asked": 0, "reused": sums["traces"], "failed": 0,
            "left_out": dict(left_out), "retries": 0, "stopped": None, "cut_off": sums["cut_off"],
            "prompt_tokens": 0, "completion_tokens": sums["completion_tokens"], "cost_usd": 0.0}


def _traces(row: Mapping[str, Any], teacher: Any,
            left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """The completions of a row: a text, a message, a conversation, or a list of texts."""
    from pipeline.teacher.answer import MalformedReplyError
    from pipeline.teacher.dialects import read_choice

    given = _column(row, teacher.completion_column, teacher)
    several = isinstance(given, list) and not any(isinstance(one, Mapping) for one in given)
    texts = given if several else [given]
    ends = row.get("finish_reasons")
    ends = ends if isinstance(ends, list) else [row.get("finish_reason")] * len(texts)
    for one, end in zip_longest(texts, ends[:len(texts)]):
        try:
            choice = read_choice({"finish_reason": end or "stop", "message": _message(one)},
                                 teacher.opened)
        except MalformedReplyError:
            left_out["empty"] += 1
            continue
        size = len(((choice.thinking or "") + choice.answer).encode())
        yield {"thinking": choice.thinking, "answer": choice.answer,
               "finish_reason": choice.finish_reason, "complete": choice.complete,
               "prompt_tokens": 0, "completion_tokens": -(-size // BYTES_A_TOKEN),
               "cost_usd": 0.0, "seconds": 0.0, "model": teacher.model}


def _message(given: Any) -> Mapping[str, Any]:
    """The assistant's last message: `given` itself, the last of a conversation, or made of a text.
    """
    if isinstance(given, list):
        turns = [turn for turn in given if isinstance(turn, Mapping)]
        given = next((turn for turn in reversed(turns)
                      if turn.get("role", turn.get("from")) in ASSISTANT), "")
    if isinstance(given, Mapping):
        return given if "content" in given else {**given, "content": given.get("value")}
    return {"content": given}


def _column(row: Mapping[str, Any], name: str, teacher: Any) -> Any:
    """The value of a column; a dot leads into a mapping."""
    found: Any = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise UserError(f"{teacher.traces} has no column {name!r}, only {', '.join(row)}; set "
                            "generate.teacher.problem_column and completion_column")
        found = found[part]
    return found


def _say(teacher: Any, left_out: Counter[str], without: int, strange: str) -> None:
    for why, count in left_out.items():
        shown = f", the first: {strange!r}" if why == "of no prepared problem" else ""
        print(f"generate: {count:,} traces of {teacher.traces} left out: {why}{shown}",
              file=sys.stderr)
    if without:
        print(f"generate: {without:,} problems have no trace in {teacher.traces}", file=sys.stderr)


def _pass_on(rows: list[dict[str, Any]], keep: Callable[[pl.DataFrame], None],
             sums: Counter[str]) -> None:
    from pipeline.tables import Trace, table_of

    table = table_of(Trace, rows)
    keep(table)
    sums.update(traces=len(table), cut_off=int((~table["complete"]).sum()),
                completion_tokens=int(table["completion_tokens"].sum()))
