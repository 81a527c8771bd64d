"""Turns a full disk into one sentence and removes what is not whole."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

WHOLE_FILES = "whole.json"
FULL = re.compile(rf"(errno|os error) ({errno.ENOSPC}|{errno.EDQUOT})\b|"
                  r"unexpected pos \d|PytorchStreamWriter failed", re.IGNORECASE)
"""A full disk or quota as Python, Arrow, safetensors and polars word it, and as torch.save does."""


class DiskFullGuard:
    """Where the disk is full while `folder` is made: a UserError, and no torn checkpoint stays."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, UserError) or not FULL.search(str(error)):
            return
        for checkpoint in self.folder.rglob("checkpoint-*"):
            if not (checkpoint / WHOLE_FILES).is_file():
                shutil.rmtree(checkpoint, ignore_errors=True)
        raise UserError(f"no space is left for {self.folder} ({str(error).splitlines()[0]}); free "
                        "some and run the same command again: it goes on from what is whole"
                        ) from None
