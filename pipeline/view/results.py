"""What came out of a run and what it took: scores by problem, and each stage's costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.errors import UserError
from pipeline.evaluate.numbers import judged_columns, stage_row, trace_counts
from pipeline.view.catalog import Artifact, lineage


def evaluation(folder: Path, problems: Mapping[str, Mapping[str, Any]], one: str = "",
               other: str = "") -> dict[str, Any]:
    """{"models", "benchmarks", "problems"}: right samples of each model on each problem.

    `problems` have the texts that the table lacks. With two models also "flips": how many problems
    one solves more often than the other. Raises UserError if the table cannot be read.
    """
    path = folder / "completions.parquet"
    try:
        table = pl.read_parquet(path, columns=["model", "benchmark", "problem_id", "score"])
        held = [name for name in ("problem", "gold") if name in pl.read_parquet_schema(path)]
        texts = pl.scan_parquet(path).select("benchmark", "problem_id", *held).unique(
            ["benchmark", "problem_id"], keep="first").collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); delete its folder "
                        "and run `limbeck evaluate` again") from None
    by = {(row["benchmark"], row["problem_id"]): row for row in texts.iter_rows(named=True)}
    models = table["model"].unique(maintain_order=True).to_list()
    found = _by_problem(table.with_row_index("row"))
    rows = [{"benchmark": benchmark, "problem_id": name, "models": scores,
             "problem": by[benchmark, name].get("problem")
             or problems.get(name, {}).get("problem")}
            for (benchmark, name), scores in found.items()]
    out = {"models": models, "benchmarks": table["benchmark"].unique(maintain_order=True).to_list(),
           "problems": rows, "scores": _scores(folder)}
    return {**out, "flips": flips(rows, one, other)} if one and other else out


def _by_problem(table: pl.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """{(benchmark, problem): {model: {right, samples, rows}}} in the table's order."""
    groups = table.group_by("benchmark", "problem_id", "model", maintain_order=True).agg(
        right=(pl.col("score") == 1).sum(), samples=pl.len(),
        # Right ones first, as the page's dots are.
        rows=pl.col("row").sort_by(pl.col("score").fill_null(-1), descending=True))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in groups.iter_rows(named=True):
        found.setdefault((row["benchmark"], row["problem_id"]), {})[row["model"]] = {
            name: row[name] for name in ("right", "samples", "rows")}
    return found


def flips(problems: list[dict[str, Any]], one: str, other: str) -> dict[str, int]:
    """Problems by which of two models solves them more often, of those that both were asked."""
    shares = [tuple(row["models"][name]["right"] / row["models"][name]["samples"]
                    for name in (one, other))
              for row in problems if {one, other} <= row["models"].keys()]
    return {"gained": sum(second > first for first, second in shares),
            "lost": sum(second < first for first, second in shares),
            "same": sum(second == first for first, second in shares)}


def _scores(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def costs(artifact: Artifact, known: Mapping[str, Artifact]) -> dict[str, Any]:
    """{"stages", "funnels"} of a run: `artifact` and all that it was made from."""
    chain = lineage(artifact, known)
    stages = [{"stage": one.stage, "name": one.name, "state": one.state, **_row(one)}
              for one in chain]
    return {"stages": stages, "funnels": [_funnel(one) for one in chain
                                          if one.stage == "filter" and one.state == "made"]}


def _row(artifact: Artifact) -> dict[str, Any]:
    """Seconds, tokens, dollars and GPU hours of a stage, as far as they are known."""
    if artifact.state != "made":
        return {"trouble": artifact.trouble or "not finished"}
    try:
        row = stage_row(artifact.stage, artifact.folder, artifact.manifest)
    except (UserError, KeyError) as error:
        return {"trouble": str(error), "seconds": artifact.manifest.get("seconds")}
    gpus = artifact.manifest.get("gpus") or row.get("counts", {}).get("gpus")
    return {"seconds": row["seconds"], "tokens": row.get("tokens"), "usd": row.get("cost_usd"),
            "gpu_hours": row["seconds"] * gpus / 3600 if isinstance(gpus, int) else None}


def _funnel(artifact: Artifact) -> dict[str, Any]:
    try:
        return {"source": artifact.name, **trace_counts(judged_columns(artifact.folder))}
    except UserError as error:
        return {"trouble": str(error)}
