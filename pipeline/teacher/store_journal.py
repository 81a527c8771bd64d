"""The trace store's journal: a line with a checksum for each row, on disk once it is finished."""

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
    """Append-only file of `CRC32 JSON` lines, which survive a kill of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._synced = time.monotonic()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.size = os.fstat(self._file).st_size

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row completely or not at all. Raises OSError if the disk refuses it."""
        row, text = _encoded(row)
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        self.rows.append(row)            # first, so that an interrupt keeps it
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
    """(row, its JSON), in both of which a lone surrogate becomes a question mark."""
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    try:
        return dict(row), text.encode()
    except UnicodeEncodeError:
        replaced = text.encode("utf-8", "replace")
        return json.loads(replaced), replaced


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal without a torn last line. Raises UserError on any other damage."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:            # folded into a segment meanwhile
        return []
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        check, _, text = line.partition(b" ")
        if check != b"%08x" % zlib.crc32(text):
            raise UserError(f"line {number} of {path} is damaged; restore the file from a backup, "
                            "or delete that line to ask the teacher for it again")
        rows.append(json.loads(text))
    return rows
