"""Turns a full disk into one sentence and removes incomplete checkpoints."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

WHOLE_FILES = "whole.json"
DISK_FULL = re.compile(rf"(errno|os error) ({errno.ENOSPC}|{errno.EDQUOT})\b|"
                  r"unexpected pos \d|PytorchStreamWriter failed", re.IGNORECASE)
"""Errors of a full disk or quota in Python, Arrow, safetensors, polars and torch.save."""


class DiskFullGuard:
    """Turns "disk full" into a UserError and deletes unfinished checkpoints in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, UserError) or not DISK_FULL.search(str(error)):
            return
        for checkpoint in self.folder.rglob("checkpoint-*"):
            if not (checkpoint / WHOLE_FILES).is_file():
                shutil.rmtree(checkpoint, ignore_errors=True)
        raise UserError(f"no space is left for {self.folder} ({str(error).splitlines()[0]}); free "
                        "some and run the same command again: it resumes from the last complete "
                        "checkpoint") from None
