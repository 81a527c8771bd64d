"""What people said of traces: an append-only file beside the trace store, one line a verdict.

A trace is known by its own text and its problem's, so a verdict holds for it after another filter,
in a problem set made anew, and on another machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.curate.normalise import same_text_key
from pipeline.errors import UserError

FILE = "reviews.jsonl"
VERDICTS = ("good", "bad", "unsure")
EDITED_FROM = 1_000_000
"""Sample index of the first edited trace of a table; no teacher is asked for so many."""
REVIEW_COLUMNS = {"review": pl.String, "reviews": pl.Int64}
"""What people said by majority ("" if nobody did), and how many people did."""
Line = dict[str, Any]


@lru_cache(maxsize=4096)
def problem_key(problem: str) -> str:
    """The key of a problem by its text, compared as in `prepare`."""
    return _digest(same_text_key(problem))


def trace_key(problem: str, thinking: str | None, answer: str | None) -> str:
    """The key of a trace by its text; what surrounds the text does not count."""
    return trace_key_of(problem_key(problem), thinking, answer)


def trace_key_of(problem: str, thinking: str | None, answer: str | None) -> str:
    """`trace_key` of a trace of the problem with the key `problem`."""
    return _digest("\0".join((problem, (thinking or "").strip(), (answer or "").strip())))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def reviews_path(traces: Path) -> Path:
    """The file of verdicts beside the trace store `traces`."""
    return Path(traces) / FILE


def append_reviews(path: Path, lines: Iterable[Mapping[str, Any]]) -> list[Line]:
    """Append `lines`, with an id and the time where they lack them; on disk when this returns.

    Safe under several writers. Raises UserError if a line is no verdict or the file is not
    writable.
    """
    whole = [{"id": uuid.uuid4().hex, "at": datetime.now(UTC).isoformat(timespec="seconds"),
              **line} for line in lines]
    for line in whole:
        check_line(line)
    data = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in whole).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as file:
            _drop_torn_tail(file)
            left = memoryview(data)
            while left:
                left = left[os.write(file, left):]
            os.fsync(file)
    except OSError as error:
        raise UserError(f"the verdict could not be written to {path} ({error.strerror}); free "
                        "space or fix permissions and give it again") from None
    return whole


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Yield the file's descriptor, opened to append, with a lock against other writers."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _drop_torn_tail(file: int) -> None:
    """Remove a last line without its end: a writer was killed before it could say "kept"."""
    size = end = os.fstat(file).st_size
    while end:
        start = max(0, end - 65536)
        found = os.pread(file, end - start, start).rfind(b"\n")
        end = start + found + 1 if found >= 0 else start
        if found >= 0:
            break
    if end < size:
        os.ftruncate(file, end)


def check_line(line: Any, where: str = "the verdict") -> None:
    """Raise UserError unless `line` is a verdict or a preference; `where` names it."""
    if not isinstance(line, dict) or not str(line.get("reviewer") or "").strip():
        raise UserError(f"{where} names no reviewer; give it one")
    if line.get("pair") is not None:
        if line.get("prefer") not in ("a", "b", "tie"):
            raise UserError(f"{where} prefers {line.get('prefer')!r}; give a, b or tie")
        return
    if not isinstance(line.get("key"), str) or not line["key"]:
        raise UserError(f"{where} names no trace; it needs a key")
    if line.get("verdict") not in (*VERDICTS, None):
        raise UserError(f"{where} says {line.get('verdict')!r}; give one of {', '.join(VERDICTS)}")


def read_reviews(path: Path) -> list[Line]:
    """Every line of the file, oldest first; a last line that is still being written is left out.

    Raises UserError if a whole line is no verdict.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    out = []
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
        except ValueError:
            raise UserError(f"{path}:{number} is not a verdict (it is not JSON); fix or remove "
                            "that line, the others are kept") from None
        check_line(line, f"{path}:{number}")
        out.append(line)
    return out


def import_reviews(path: Path, lines: Iterable[Line]) -> tuple[int, int]:
    """Append those of `lines` that are not there yet; returns (new, known)."""
    known = {line.get("id") for line in read_reviews(path)}
    lines = list(lines)
    for number, line in enumerate(lines, start=1):
        check_line(line, f"line {number}")
    new = [line for line in lines if not line.get("id") or line["id"] not in known]
    if new:
        append_reviews(path, new)
    return len(new), len(lines) - len(new)


def latest(lines: Iterable[Line]) -> dict[str, dict[str, Line]]:
    """{key: {reviewer: newest line}}; whoever edited a trace calls the edited one good."""
    found: dict[str, dict[str, Line]] = {}
    for line in lines:
        if line.get("pair") is None:
            found.setdefault(line["key"], {})[line["reviewer"]] = line
            if edit := line.get("edit"):
                found.setdefault(edit["key"], {}).setdefault(
                    line["reviewer"], {**line, "key": edit["key"], "verdict": "good", "edit": None})
    return found


def consensus(by: Mapping[str, Line], need: int = 1) -> str:
    """What most people say of one trace: good or bad if `need` do and more than the opposite.

    "unsure" if they are divided, too few or unsure themselves; "" if nobody said anything.
    """
    said = [line["verdict"] for line in by.values() if line["verdict"]]
    good, bad = said.count("good"), said.count("bad")
    if max(good, bad) >= need and good != bad:
        return "good" if good > bad else "bad"
    return "unsure" if said else ""


def review_columns(traces: pl.DataFrame, problems: Mapping[str, str], lines: Iterable[Line],
                   need: int = 1) -> pl.DataFrame:
    """`traces` (problem_id, thinking, answer) with REVIEW_COLUMNS; `problems` has their texts."""
    by_key = latest(lines)
    keys = [trace_key(problems.get(name) or name, thinking, answer) for name, thinking, answer
            in traces.select("problem_id", "thinking", "answer").iter_rows()] if by_key else \
        [""] * len(traces)
    found = [by_key.get(key, {}) for key in keys]
    return traces.with_columns(
        review=pl.Series([consensus(by, need) for by in found], dtype=pl.String),
        reviews=pl.Series([sum(line["verdict"] is not None for line in by.values())
                           for by in found], dtype=pl.Int64))


def edited_traces(problems: Mapping[str, str], lines: Iterable[Line]) -> list[dict[str, Any]]:
    """A row of tables.Trace for each trace that somebody edited, of each editor the newest."""
    ids = {problem_key(text): name for name, text in problems.items()}
    newest = {(line["key"], line["reviewer"]): line for line in lines if line.get("edit")}
    rows: list[dict[str, Any]] = []
    for line in newest.values():
        edit = line["edit"]
        if (name := ids.get(edit["problem_key"])) is None:
            continue
        size = len(((edit["thinking"] or "") + edit["answer"]).encode())
        rows.append({"problem_id": name, "sample": EDITED_FROM + len(rows),
                     "thinking": edit["thinking"], "answer": edit["answer"],
                     "finish_reason": "stop", "complete": True, "prompt_tokens": 0,
                     "completion_tokens": -(-size // 4), "cost_usd": 0.0, "seconds": 0.0,
                     "model": f"edited by {line['reviewer']}"})
    return rows
