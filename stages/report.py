"""report: numbers.json and one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.experiment import Experiment
from pipeline.evaluate.numbers import collect
from pipeline.evaluate.page import render
from pipeline.stage import Counts


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write numbers.json and report.html."""
    numbers = collect(experiment, inputs)
    text = json.dumps(numbers, indent=1, ensure_ascii=False)
    (out / "numbers.json").write_text(text + "\n", encoding="utf-8")
    (out / "report.html").write_text(render(experiment, inputs, numbers), encoding="utf-8")
    return {"models": len(numbers["models"]), "page": "report.html"}


def summary(counts: Counts) -> str:
    return f"{counts['models']} models compared"
