"""sft: the student learns the kept traces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.recipe import LogitsMethod
from pipeline.stage import Counts, Stage


def offline(experiment: Any) -> bool:
    """Whether training reads the logits stage's distributions."""
    method = experiment.sft.method
    return isinstance(method, LogitsMethod) and method.source.type == "offline"


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write model/, an ordinary checkpoint with tokenizer and template, and log.jsonl."""
    from pipeline.launch import launch
    from pipeline.recipe import SftJob
    from pipeline.serve import gpu_count
    from pipeline.sft import train
    from pipeline.student import resolve

    job = SftJob(sft=experiment.sft, model=resolve(inputs["student"]),
                 tokenizer=inputs["student"] / "tokenizer", rows=inputs["pack"] / "rows.parquet",
                 logits=inputs.get("logits"), out=out, seed=experiment.seed)
    options = experiment.runtime.launch
    # Seeing several GPUs, one process would deal each batch out to them by threads.
    return launch(job, "pipeline.sft", options) if options or gpu_count() > 1 else train(job)


def check(experiment: Any) -> None:
    from pipeline.launch import check_options
    from pipeline.sft import arguments

    check_options(experiment.runtime.launch)
    arguments(experiment.sft, Path("unused"), experiment.seed)


STAGE = Stage(
    name="sft", run=run, check=check, resumable=True,
    needs=lambda e: ("student", "pack", "logits") if offline(e) else ("student", "pack"),
    summary=lambda c: f"{c['steps']:,} steps in {c['train_seconds']} s on {c['rows']:,} rows")
