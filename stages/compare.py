"""`limbeck compare`: two finished experiments side by side, what differs in their config first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Column, Table

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.evaluate.metrics import difference, summarise_seeds
from pipeline.prompts import config_files
from pipeline.stage import read_manifest, stage_of
from stages.make import changed_keys, plan_of

OF_A_RUN = ("config", "seed", "version", "files")


def compare(first: Path, second: Path, overrides: list[str]) -> None:
    """Print what differs between two experiments, then scores and their paired differences.

    Each is a config file, or the folder of its evaluation or report. Raises UserError if it is
    neither, or not evaluated yet.
    """
    folders = [evaluation(one, overrides) for one in (first, second)]
    before, after = map(lineage, folders)
    console = Console()
    rows = list(differing(before, after))
    console.print(f"A: {first}\nB: {second}", markup=False, soft_wrap=True)
    table = Table(Column("key", overflow="fold"), "A", "B", title="what differs", box=None,
                  pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table if rows else "no setting differs", markup=False)
    scores = Table("benchmark", "model", "A", "B", "B - A, 95 % interval", title="scores",
                   box=None, pad_edge=False)
    for row in compared_scores(*folders):
        scores.add_row(*row)
    console.print(scores, markup=False)


def evaluation(given: Path, overrides: list[str]) -> Path:
    """The folder of an experiment's evaluation."""
    if given.is_dir():
        manifest = read_manifest(given / "manifest.json") if (given / "manifest.json").is_file() \
            else {}
        if manifest.get("stage") == "evaluate":
            return given
        if key := manifest.get("inputs", {}).get("evaluate"):
            return given.parent / f"evaluate-{key}"
        raise UserError(f"{given} is the folder of no evaluation or report; name one, or a config "
                        "file")
    plan = plan_of(load(Experiment, config_files([given]), overrides), "evaluate")
    if plan.manifest is None:
        raise UserError(f"{given} is not evaluated yet; run `limbeck evaluate -c {given}`")
    return plan.fetched()


def lineage(evaluated: Path) -> dict[str, dict[str, Any]]:
    """{STAGE or STEP.STAGE: manifest} of all that an evaluation stands on, and its own."""
    found: dict[str, dict[str, Any]] = {}

    def visit(name: str, key: str) -> None:
        folder = evaluated.parent / f"{stage_of(name)}-{key}"
        if name in found or not (folder / "manifest.json").is_file():
            return
        found[name] = manifest = read_manifest(folder / "manifest.json")
        step = name.partition("@")[0].rpartition(".")[0]
        for need, other in manifest["inputs"].items():
            if "-" not in need:     # another step's artifact is one of the evaluation's inputs
                visit(f"{step}.{need}" if step and "." not in need else need, other)

    visit("evaluate", evaluated.name.partition("-")[2])
    return found


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield (key, value, value) of every setting, prompt or version that differs."""
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            yield name, *("" if name in one else "not made" for one in (before, after))
            continue
        trees = [{key: one[name].get(key) for key in OF_A_RUN} for one in (before, after)]
        for tree in trees:
            tree["files"] = sorted((tree["files"] or {}).values())
        for key in changed_keys(trees[0], trees[1]):
            yield (f"{name}.{key.removeprefix('config.')}",
                   *("" if key == "files" else _at(tree, key) for tree in trees))


def _at(tree: Any, key: str) -> str:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return json.dumps(tree, ensure_ascii=False)


def compared_scores(first: Path, second: Path) -> Iterator[tuple[str, ...]]:
    """Yield (benchmark, model, score, score, difference) of every model of either."""
    found = [_samples(folder) for folder in (first, second)]
    for benchmark, model in dict.fromkeys([*found[0], *found[1]]):
        rows = [one.get((benchmark, model)) for one in found]
        shown = [_score(one) if one else "" for one in rows]
        apart = ""
        if rows[0] and rows[1]:
            ids = [{row["problem_id"] for by in one.values() for row in by}
                   for one in rows if one]
            mean, low, high = difference(rows[1], rows[0])["interval"]
            apart = f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            if ids[0] != ids[1]:
                apart += f" on {len(ids[0] & ids[1]):,} problems of both"
        yield benchmark, model, *shown, apart


def _samples(folder: Path) -> dict[tuple[str, str], dict[int | None, list[dict]]]:
    """The judged samples of each model on each benchmark, by training seed."""
    table = pl.read_parquet(folder / "completions.parquet")
    columns = ["problem_id", "score", "vote", "cut_off", "completion_tokens"]
    seeds = table["seed"] if "seed" in table.columns else pl.Series([None] * len(table))
    table = table.with_columns(seed=seeds)
    out: dict[tuple[str, str], dict[int | None, list[dict]]] = {}
    for (benchmark, model, seed), rows in table.group_by(
            "benchmark", "model", "seed", maintain_order=True):
        out.setdefault((str(benchmark), str(model)), {})[
            seed if isinstance(seed, int) else None] = rows.select(columns).to_dicts()
    return out


def _score(by_seed: Mapping[int | None, list[dict]]) -> str:
    found = summarise_seeds(by_seed)
    if "avg" not in found:
        return "not judged"
    return (f"{100 * found['avg']:.1f} [{100 * found['ci_low']:.1f}, "
            f"{100 * found['ci_high']:.1f}]")
