"""report: numbers.json and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.stage import Counts, Stage


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write numbers.json and report.html."""
    import json

    from pipeline.evaluate.numbers import collect
    from pipeline.evaluate.page import render

    numbers = collect(experiment, inputs)
    text = json.dumps(numbers, indent=1, ensure_ascii=False)
    (out / "numbers.json").write_text(text + "\n", encoding="utf-8")
    (out / "report.html").write_text(render(experiment, inputs, numbers), encoding="utf-8")
    page = out.with_name(out.name.removesuffix(".partial")) / "report.html"
    return {"models": len(numbers["models"]), "page": str(page)}


def needs(experiment: Any) -> tuple[str, ...]:
    """Every stage that the models compared come from; a stage no model needs is not run."""
    models = experiment.evaluate.models
    refined = "rl" in models
    tuned = "sft" in models or (refined and experiment.rl.start == "sft")
    return ("prepare", "generate", "filter", "student", *(("pack", "sft") if tuned else ()),
            *(("rl",) if refined else ()), "evaluate")


STAGE = Stage(name="report", run=run, needs=needs, shows_name=True,
              files=lambda e: (Path(__file__).parents[1] / "pipeline/evaluate/page.html.jinja",),
              summary=lambda c: f"{c['models']} models compared; open {c['page']}")
