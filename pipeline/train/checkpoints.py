"""Checkpoints that are whole or are not there: a list of files with sizes and checksums in each.

The list is written last and renamed into place, so a process killed at any time leaves either a
whole checkpoint or one without its list; a file changed or lost later no longer matches it.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from pathlib import Path

from pipeline.serving.disk import WHOLE_FILES


def steps(folder: Path) -> list[Path]:
    """The checkpoint-N folders under `folder`, oldest first, whole or not."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def mark_whole(checkpoint: Path) -> None:
    """Write the list of the finished `checkpoint`."""
    files = sorted(path for path in checkpoint.rglob("*")
                   if path.is_file() and path.name != WHOLE_FILES)
    listed = {str(path.relative_to(checkpoint)): _fingerprint(path) for path in files}
    partial = checkpoint / (WHOLE_FILES + ".partial")
    partial.write_text(json.dumps(listed), encoding="utf-8")
    partial.replace(checkpoint / WHOLE_FILES)


def is_whole(checkpoint: Path) -> bool:
    """Whether every file of `checkpoint` is there as it was when it was finished."""
    try:
        listed = json.loads((checkpoint / WHOLE_FILES).read_text(encoding="utf-8"))
        return all(_fingerprint(checkpoint / name) == known for name, known in listed.items())
    except (OSError, ValueError):
        return False


def last_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint under `folder`; newer ones that are not whole are removed."""
    for checkpoint in reversed(steps(folder)):
        if is_whole(checkpoint):
            return checkpoint
        print(f"{checkpoint.name} was not finished or has changed; removed", file=sys.stderr)
        shutil.rmtree(checkpoint)
    return None


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; called when the newest is whole."""
    for checkpoint in steps(folder)[:-keep]:
        (checkpoint / WHOLE_FILES).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)


def _fingerprint(path: Path) -> list[int]:
    """[size, crc32] of a file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]
