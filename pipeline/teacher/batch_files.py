"""The pending batches: one file of the lines sent for each, in STORE/batches/TEACHER/.

NAME.jsonl exists before the batch, NAME.ID.jsonl once it has an id, NAME.ID.done once its answers
are stored. So a killed run's batches are found again and nothing is paid for twice.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout

from pipeline.errors import LockedError, UserError
from pipeline.teacher.answer import Reply
from pipeline.teacher.dialects import malformed_on_error, read_json
from pipeline.teacher.request import Job, Keys, Request, jobs
from pipeline.teacher.store import TraceStore


def folder_of(store: TraceStore, keys: Keys) -> Path:
    """The folder of one teacher's batches."""
    # Another teacher's answers would be stored under a wrong origin and price.
    digest = hashlib.blake2b(keys.origin.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return store.folder / "batches" / digest


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one that submits or stores this teacher's batches. Raises LockedError."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise LockedError(f"another run is submitting or storing the batches in {folder}; wait "
                          "until it ends") from None


def pending(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def write_lines(folder: Path, data: bytes) -> Path:
    """Write a new file of lines atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid.uuid4().hex}.jsonl"
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    return partial.rename(path)


def set_id(path: Path, batch_id: str) -> None:
    path.rename(path.with_name(f"{path.stem}.{quote(batch_id, safe='')}.jsonl"))


def id_of(path: Path) -> str:
    """The id of a file's batch, "" if it has none yet."""
    return unquote(path.stem.partition(".")[2])


def sent_lines(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of a batch file by name."""
    # Not by splitlines(), which also splits at U+2028 inside a problem.
    lines = map(json.loads, path.read_text(encoding="utf-8").split("\n"))
    return {line["custom_id"]: line for line in lines}


def name_of(job: Job) -> str:
    return job.names()[0]


def job_of(line: dict[str, Any]) -> Job:
    """The job that `line` asks."""
    key, _, sample = line["custom_id"].partition(":")
    return Job(key, line["body"]["messages"], range(int(sample), int(sample) + 1))


def check_not_in_batch(missing: Sequence[Request], keys: Keys, store: TraceStore) -> None:
    """Raises UserError if any of `missing`, about to be asked directly, is in a pending batch."""
    folder = folder_of(store, keys)
    waiting = {name for path in pending(folder) for name in sent_lines(path)}
    count = sum(name_of(job) in waiting for job in jobs(missing, keys, 1)) if waiting else 0
    if count:
        raise UserError(f"{count:,} of the requests are in pending batches and would be paid for "
                        "twice; run `limbeck generate` with runtime.teacher.batch=true to collect "
                        f"them, or delete {folder} to ask again anyway")


@malformed_on_error()
def reply_of(result: Any, prompt_opens_thinking: bool) -> Reply:
    """The reply in a line of a result file. Raises MalformedReplyError if it holds none."""
    return read_json((result.get("response") or {}).get("body") or result,
                     prompt_opens_thinking=prompt_opens_thinking)
