"""export: a student as files that were run and held against their checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.config.evaluate import CALIBRATED
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.export.export_files import check_extra, described, export
from pipeline.hub.lineage import read as read_lineage
from pipeline.judge import needs_answer
from pipeline.problems.chats import student_chats
from pipeline.problems.sources import evaluation_sets, load_rows
from pipeline.stage import Counts, stage_of
from pipeline.student.tiny import resolve
from stages.graph import MAKER, MODELS, learnt_from


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write the files, Modelfile and README.md; returns each file's proof."""
    config, model = experiment.export, experiment.exported()
    made = MAKER.get(model, model)
    step = made.rpartition(".")[0] if made in inputs else ""
    checkpoint, tokenizer = model, model
    if made in inputs:
        checkpoint = resolve(inputs[made])
        tokenizer = str(inputs[f"{step}.student" if step else "student"] / "tokenizer")
    settings = experiment.all_steps()[step].experiment if step else experiment
    rows = _rows(experiment, inputs)
    name = re.sub(r"[^\w.-]+", "-", f"{experiment.name}-{Path(model).name}").lower()
    found = export(checkpoint, tokenizer, config, out, name=name, rows=rows,
                   chats=student_chats(settings.generate, rows),
                   lineage=_lineage(inputs.get(made, Path(model))),
                   learnt=_learnt(experiment, inputs),
                   seed=experiment.seed, workers=experiment.runtime.judge_workers)
    return {"name": name, "model": model, "files": found,
            "benchmark": getattr(config.benchmark, "problems", config.benchmark)}


def _lineage(folder: Path) -> dict[str, Any]:
    """Manifests of all that the model stands on; of a stranger's checkpoint its name alone."""
    try:
        return read_lineage(folder)
    except UserError:
        return {"checkpoint": folder.name}


def _learnt(experiment: Experiment, inputs: Mapping[str, Path]) -> list[list[int]]:
    """Token rows of what the model learnt from, spread over them all; none if none are needed."""
    pack = next((folder for name, folder in inputs.items() if stage_of(name) == "pack"), None)
    if pack is None:
        return []
    table = pl.scan_parquet(pack / "rows.parquet")
    ids = pl.col("input_ids")
    if "seq_lengths" in table.collect_schema():     # of a block of rows the first
        ids = ids.list.head(pl.col("seq_lengths").list.first())
    most = experiment.export.calibration
    every = max(1, tables.count(pack / "rows.parquet") // most)
    return table.select(ids).gather_every(every).head(most).collect()["input_ids"].to_list()


def _rows(experiment: Experiment, inputs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The benchmark's problems, at least as many as the proof needs."""
    config = experiment.export
    [(name, one)] = evaluation_sets([config.benchmark], "export.benchmark").items()
    if name == "heldout":
        rows = tables.read(tables.Problem, inputs["prepare"] / "heldout.parquet").to_dicts()
    else:
        rows = load_rows(one, experiment.seed, needs_answer, experiment.runtime.benchmarks)
    if not rows:
        raise UserError(f"export.benchmark={name} holds no problem; name one that does")
    return rows[:max(config.limit, config.problems)] if config.limit is not None else rows


def check(experiment: Experiment) -> None:
    """Refuse what cannot be exported before anything is trained for it."""
    check_extra(experiment.export.formats)
    config, model = experiment.export, experiment.exported()
    made = MAKER.get(model, model).rpartition(".")[2] in MODELS
    if made and experiment.steps and MAKER.get(model, model) in MODELS:
        known = ", ".join(one for one in experiment.compared() if one != "teacher")
        raise UserError(f"export.model: {model!r} is the model of no step; name {known}")
    calibrated = [form for form in config.formats if form in CALIBRATED]
    if calibrated and not learnt_from(experiment, MAKER.get(model, model)):
        raise UserError(f"{calibrated[0]} is calibrated on the traces that a model learnt from, "
                        f"and export.model={model} learnt from none here; name a model that did, "
                        "or the format w4a16")
    if not made and not (Path(model) / "config.json").is_file():
        raise UserError(f"export.model={model} is neither a model of the run (untrained, sft, rl) "
                        "nor a folder with a checkpoint; name one of those")
    if config.benchmark == "heldout" and not experiment.prepare.held_out:
        raise UserError("export.benchmark is heldout, and prepare.held_out=0 keeps no problem for "
                        "it; raise it, or name a problem file")


def summary(counts: Counts) -> str:
    """State each file's size and proof, and how to run the first."""
    shown = [described(form, found) for form, found in counts["files"].items()]
    return "; ".join(shown) + "; README.md there says how to run it"
