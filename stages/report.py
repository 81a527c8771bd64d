"""report: numbers.json and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.stage import Counts, Stage


class ReportConfig(Config):
    """What the page shows."""

    title: str = "limbeck"
    """Heading of the page."""


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write numbers.json and report.html."""
    raise NotImplementedError


STAGE = Stage(name="report", run=run,
              needs=lambda e: ("prepare", "generate", "filter", "student", "pack", "sft", "rl",
                               "evaluate"))
