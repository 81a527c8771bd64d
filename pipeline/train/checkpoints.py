"""Marks finished checkpoints by a list of their files with sizes and checksums.

The list is written last and renamed into place, so a process killed at any time leaves a complete
checkpoint or one without its list; a file changed or lost later no longer matches it.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from pathlib import Path

from pipeline.serving.disk import WHOLE_FILES


def steps(folder: Path) -> list[Path]:
    """Return the checkpoint-N folders under `folder`, oldest first, complete or not."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def mark_complete(checkpoint: Path) -> None:
    """Write the list of the finished `checkpoint`."""
    files = sorted(path for path in checkpoint.rglob("*")
                   if path.is_file() and path.name != WHOLE_FILES)
    listed = {str(path.relative_to(checkpoint)): _fingerprint(path) for path in files}
    partial = checkpoint / (WHOLE_FILES + ".partial")
    partial.write_text(json.dumps(listed), encoding="utf-8")
    partial.replace(checkpoint / WHOLE_FILES)


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of `checkpoint` is present and unchanged."""
    try:
        listed = json.loads((checkpoint / WHOLE_FILES).read_text(encoding="utf-8"))
        return all(_fingerprint(checkpoint / name) == known for name, known in listed.items())
    except (OSError, ValueError):
        return False


def last_complete(folder: Path) -> Path | None:
    """Return the newest complete checkpoint under `folder`; deletes newer incomplete ones."""
    for checkpoint in reversed(steps(folder)):
        if is_complete(checkpoint):
            return checkpoint
        print(f"{checkpoint.name} was not finished or has changed; removed", file=sys.stderr)
        shutil.rmtree(checkpoint)
    return None


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; called when the newest is complete."""
    for checkpoint in steps(folder)[:-keep]:
        (checkpoint / WHOLE_FILES).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)


def _fingerprint(path: Path) -> list[int]:
    """Return [size, crc32] of a file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]
