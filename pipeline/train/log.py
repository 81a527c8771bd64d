"""Reads the log of a training run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the training log of a stage, one dict a logging step; [] without one."""
    return read_lines(folder / "log.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file, [] without a file; raises UserError if not JSON."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} has a line that is not JSON ({error}); "
                        "delete its folder to remake it") from None


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON Lines file whole: a process killed at any time leaves the old one or the new."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)
