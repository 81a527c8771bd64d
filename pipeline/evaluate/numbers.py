"""numbers.json: every figure of a run as plain data, read from the stages' folders.

Scores in `models.<name>.<benchmark>` are fractions of 1, costs US dollars.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.config.filter import RULES
from pipeline.curate.agreement import against_judge, summarise_reviews
from pipeline.curate.features import FEATURES, add_features
from pipeline.curate.reviews import latest, read_reviews, reviews_path, trace_key
from pipeline.errors import UserError
from pipeline.expression import compile_expression
from pipeline.stage import read_manifest, stage_of
from pipeline.train.log import read_log

Points = list[tuple[float, float]]


def collect(experiment: Experiment, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """The content of numbers.json for a run with the stage folders `inputs`."""
    manifests = {name: read_manifest(path / "manifest.json") for name, path in inputs.items()}
    newest = max(manifests.values(), key=lambda m: m.get("finished", 0))
    out: dict[str, Any] = {
        "experiment": experiment.name, "seed": experiment.seed,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "machine": machine(),
        "git_commit": newest.get("git_commit"), "python": newest.get("python"),
        "libraries": newest.get("libraries", {}),
        "models": _scores(inputs["evaluate"] / "scores.json") if "evaluate" in inputs else {},
        "stages": {name: stage_row(stage_of(name), inputs[name], m)
                   for name, m in manifests.items()},
        "lineage": {name: m["inputs"] for name, m in manifests.items()}}
    if "evaluate" in inputs:
        apart = inputs["evaluate"] / "differences.json"
        out["differences"] = _scores(apart) if apart.is_file() else {}
        out["reading"] = reading(inputs["evaluate"] / "completions.parquet",
                                 experiment.filter.language, *experiment.filter.languages)
        made = manifests["evaluate"]
        if judges := made.get("config", {}).get("judges"):
            asked = made["counts"].get("judges", {})
            out["judges"] = {name: {**judge, **asked.get(name, {})}
                             for name, judge in judges.items()}
    if "filter" in inputs:
        out["traces"] = trace_counts(judged_columns(inputs["filter"]))
        if people := people_counts(reviews_path(experiment.runtime.traces), inputs):
            out["people"] = people
    if "export" in manifests:
        out["exports"] = manifests["export"]["counts"]
    for name, folder in inputs.items():
        step, _, stage = name.rpartition(".")
        if step and stage == "filter":
            out.setdefault("steps", {})[step] = {"traces": trace_counts(judged_columns(folder))}
    return out


def people_counts(path: Path, inputs: Mapping[str, Path]) -> dict[str, Any] | None:
    """How many of a run's traces people saw, and how far they agree; None if nobody saw any.

    `differ` counts those of `compared` traces on which people and the judge say the opposite.
    """
    by_key = latest(read_reviews(path))
    if not by_key:
        return None
    problems = tables.read(tables.Problem, inputs["prepare"] / "problems.parquet")
    texts = dict(problems.select("problem_id", "problem").rows())
    scores: dict[str, float | None] = {}
    for batch in tables.batches(tables.Judged, inputs["filter"] / "judged.parquet"):
        for name, thinking, answer, score in batch.select(
                "problem_id", "thinking", "answer", "score").iter_rows():
            if (key := trace_key(texts.get(name) or name, thinking, answer)) in by_key:
                scores[key] = score
    here = {key: by for key, by in by_key.items() if key in scores}
    said = summarise_reviews([line for by in here.values() for line in by.values()])
    return {"people": said["people"], "verdicts": said["verdicts"], "shared": said["shared"],
            "alpha": said["alpha"], "kappas": said["kappas"],
            **against_judge(here, scores)} if said["traces"] else None


def reading(path: Path, *languages: str) -> dict[str, dict[str, float]]:
    """How each model's completions of the first benchmark read, as means over completions.

    `language_share`, `reflections` and `readable` (no rule of filter.rules describes it) are as in
    the filter, `tokens` is the length.
    """
    table = columns(path, "model", "benchmark", "thinking", "answer", "completion_tokens",
                    "cut_off")
    table = table.filter(pl.col("benchmark") == table["benchmark"][0]).with_columns(
        finish_reason=pl.when("cut_off").then(pl.lit("length")).otherwise(pl.lit("stop")),
        complete=~pl.col("cut_off"))
    table = add_features(table, FEATURES, *languages)
    rules = [compile_expression(rule, table.schema) for rule in RULES.values()]
    means = table.group_by("model", maintain_order=True).agg(
        pl.col("language_share", "reflections").mean(), tokens=pl.col("completion_tokens").mean(),
        readable=(~pl.any_horizontal(*rules)).mean())
    return {row.pop("model"): row for row in means.to_dicts()}


def _scores(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete its folder to remake it") \
            from None


def stage_row(name: str, folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """key, seconds and counts of a stage, with tokens and cost_usd if it has any."""
    row: dict[str, Any] = {"key": manifest["key"], "seconds": manifest["seconds"]}
    if name == "generate":
        table = columns(folder / "traces.parquet", "completion_tokens", "cost_usd")
        row |= {"tokens": table["completion_tokens"].sum(), "cost_usd": table["cost_usd"].sum()}
    elif name == "filter" and "llm_judge" in manifest["counts"]:
        llm = manifest["counts"]["llm_judge"]
        row |= {"tokens": llm["completion_tokens"], "cost_usd": llm["cost_usd"]}
    elif name == "evaluate":
        table = columns(folder / "completions.parquet", "completion_tokens")
        row["tokens"] = table["completion_tokens"].sum()
    elif name == "pack":
        row["tokens"] = manifest["counts"]["tokens"]
    elif points := curve(read_log(folder), "num_tokens"):
        row["tokens"] = int(points[-1][1])
    if name != "evaluate":      # its counts are the scores under `models`
        row["counts"] = manifest["counts"]
    return row


def columns(path: Path, *names: str) -> pl.DataFrame:
    """The named columns of a Parquet file; raises UserError if it cannot be read."""
    try:
        return pl.read_parquet(path, columns=list(names))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); "
                        "delete its folder to remake it") from None


def judged_columns(folder: Path) -> pl.DataFrame:
    """kept, reason, verdict, grader and completion_tokens of every trace, without the texts."""
    return columns(folder / "judged.parquet", "kept", "reason", "verdict", "grader",
                   "completion_tokens")


def trace_counts(table: pl.DataFrame) -> dict[str, Any]:
    """Counts of all traces, of those kept and of the rejected by reason, most frequent first."""
    def count(frame: pl.DataFrame, column: str) -> dict[str, int]:
        rows = frame[column].value_counts().sort(["count", column], descending=[True, False])
        return dict(rows.iter_rows())

    return {"total": len(table), "kept": int(table["kept"].sum()),
            "rejected": count(table.filter(~pl.col("kept")), "reason"),
            "kept_by": count(table.filter("kept"), "grader"),
            "verdicts": count(table.filter(pl.col("grader") != "majority"), "verdict")}


def curve(log: Sequence[Mapping[str, float]], key: str) -> Points:
    """(step, value) of the rows in which `key` is logged and finite."""
    return [(row["step"], row[key]) for row in log if key in row and math.isfinite(row[key])]


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system and NVIDIA GPUs of this machine."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    out = {"cpu": named[1] if named else platform.processor() or platform.machine(),
           "cores": os.cpu_count(), "system": platform.platform(aliased=True)}
    if "SC_PHYS_PAGES" in os.sysconf_names:
        out["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        out["gpus"] = done.stdout.split("\n")[:-1] if done.returncode == 0 else []
    return out
