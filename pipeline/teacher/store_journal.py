"""The trace store's journal: rows on disk the moment they are finished, one checked line each."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


class Journal:
    """Append-only file of `CRC32 JSON` lines; what is appended survives a kill of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._synced = time.monotonic()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.size = os.fstat(self._file).st_size

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, whole or not at all; OSError where the disk refuses it."""
        row, text = _encoded(row)
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        self.rows.append(row)            # first: stopped in between, it is in the next segment
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(28, "No space left on device", str(self.path))
        except OSError:
            self.rows.pop()
            os.ftruncate(self._file, self.size)
            raise
        self.size += len(line)
        if time.monotonic() - self._synced > 1:      # a power cut costs a second, a kill nothing
            os.fsync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        os.close(self._file)


def _encoded(row: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """`row` as it can be stored and its JSON: a lone surrogate becomes a question mark."""
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    try:
        return dict(row), text.encode()
    except UnicodeEncodeError:
        whole = text.encode("utf-8", "replace")
        return json.loads(whole), whole


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a journal. A torn last line is left out; any other damage is a UserError.

    A journal that is gone has been folded into a segment meanwhile: no rows.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        check, _, text = line.partition(b" ")
        if check != b"%08x" % zlib.crc32(text):
            raise UserError(f"line {number} of {path} is damaged; restore the file from a backup, "
                            "or delete that line to ask the teacher for it again")
        rows.append(json.loads(text))
    return rows
