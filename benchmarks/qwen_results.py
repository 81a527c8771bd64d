"""Gathers what benchmarks/qwen.sh made: python -m benchmarks.qwen_results WORK FOLDER.

WORK/RECIPE.evaluate, or WORK/RECIPE.rl of a student that is not scored, names the artifact and then
the recipe's overrides, a line each. FOLDER gets one file for each table of SHOWN that has any:

models              scores of each model on each benchmark; fractions of 1, tokens are counts
differences_paired  [mean, low, high] of a difference on the same problems, 95 %; fractions of 1
seeds               [mean, low, high] over seed_*, 95 % over problems and seeds; each seed's score
curves              [step, value] by the log's own names, at most POINTS each; seconds for *_time
rl                  steps, minutes and settings of each refinement, and the alarms that rang
overrides           what was laid over configs/qwen-distill.yaml
runs                seconds, counts and config of every stage a model stands on

Folders are left out of every path.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import yaml

from pipeline.evaluate.metrics import paired_gain
from pipeline.evaluate.numbers import Points, columns, curve
from pipeline.stage import read_manifest
from pipeline.train.log import read_lines, read_log

SHOWN = {"qwen-distill": {"base": "base", "sequence": "sequence", "logits": "logits",
                          "unfiltered": "unfiltered", "teacher": "teacher"},
         "qwen-rl": {"base": "base", "rl_only": "rl_only", "sequence": "distilled",
                     "distilled_rl": "distilled_rl", "teacher": "teacher"},
         "qwen-on-policy": {"base": "base", "sequence": "start", "on_policy": "on_policy",
                            "on_policy_rl": "on_policy_rl", "teacher": "teacher"},
         "qwen-two-gpus": {"base": "base", "sequence": "distilled", "two_gpus": "distilled_rl",
                           "teacher": "teacher"},
         "qwen-context": {"sequence": "start", "fixed": "fixed", "growing": "growing"},
         "qwen-seeds": {"base": "base", "sequence": "distilled", "seed_0": "seed_0",
                        "seed_1": "seed_1", "seed_2": "seed_2", "teacher": "teacher"},
         "qwen-r1-zero": {"base": "base", "r1_zero": "r1_zero"}}
COMPARED = [("sequence", "base"), ("logits", "sequence"), ("sequence", "unfiltered"),
            ("teacher", "sequence"), ("rl_only", "base"),
            ("distilled", "base"), ("distilled", "rl_only"), ("distilled_rl", "distilled"),
            ("distilled_rl", "rl_only"), ("on_policy", "start"), ("on_policy_rl", "on_policy"),
            ("on_policy_rl", "start"), ("fixed", "start"), ("growing", "start"),
            ("fixed", "growing"), ("r1_zero", "base"),
            *((f"seed_{seed}", "distilled") for seed in range(3))]
BENCHMARKS = {"gsm8k_test": "gsm8k"}
LENGTH = "completions/mean_length"
CURVES = {"rl": ("reward", "rewards/accuracy/mean", "rewards/r1_format/mean", "heldout/accuracy",
                 "heldout/mean_length", LENGTH, "completions/clipped_ratio",
                 "frac_reward_zero_std", "reflection", "entropy", "step_time", "generation_time",
                 "reward_time"),
          "sft": ("loss", "eval_loss", LENGTH, "completions/clipped_ratio", "step_time",
                  "generation_time")}
SETTINGS = ("learning_rate", "temperature", "num_generations", "max_completion_length", "max_steps")
POINTS = 60


def gather(work: Path, shown: Mapping[str, str]) -> dict[str, Any]:
    """The tables of the module's docstring, for the recipes of `shown` under their names there."""
    notes = {name: note.read_text(encoding="utf-8").splitlines()
             for recipe, name in shown.items() if (note := _note(work, recipe))}
    made = {name: Path(lines[0]) for name, lines in notes.items()}
    runs = {name: _lineage(folder) for name, folder in made.items()}
    scored = [name for name in made if "evaluate" in runs[name]]
    rows = {name: _rows(made[name]) for name in scored}
    trained = {name: _trained(folder, runs[name]) for name, folder in made.items()}
    return {"models": {name: _scores(made[name]) for name in scored},
            "differences_paired": {f"{one} - {other}": _gains(rows[one], rows[other])
                                   for one, other in COMPARED if one in rows and other in rows},
            "seeds": _seeds([rows[name] for name in scored if name.startswith("seed_")]),
            "curves": {name: _curves(*last) for name, last in trained.items() if last},
            "rl": {name: _refinement(runs[name]["rl"], last[1], _processes(notes[name]))
                   for name, last in trained.items() if last and last[0] == "rl"},
            "overrides": {name: lines[1:] for name, lines in notes.items()}, "runs": runs}


def _note(work: Path, recipe: str) -> Path | None:
    """What says where the recipe's scores lie or, where it has none, its refined student."""
    notes = (work / f"{recipe}.{stage}" for stage in ("evaluate", "rl"))
    return next((note for note in notes if note.is_file()), None)


def _lineage(folder: Path) -> dict[str, Any]:
    """Seconds, counts and config of every stage an artifact stands on."""
    manifest = read_manifest(folder / "manifest.json")
    counts = {} if manifest["stage"] == "evaluate" else manifest["counts"]
    found = {manifest["stage"]: {"key": manifest["key"], "seconds": manifest["seconds"],
                                 "config": manifest["config"], "counts": counts}}
    for stage, key in manifest["inputs"].items():
        found |= _lineage(folder.parent / f"{stage}-{key}")
    return found


def _trained(folder: Path, run: Mapping[str, Any]) -> tuple[str, Path] | None:
    """The stage that trained a model last, and its folder; None for one as it comes."""
    return next(((stage, folder.parent / f"{stage}-{run[stage]['key']}")
                 for stage in CURVES if stage in run), None)


def _scores(folder: Path) -> dict[str, Any]:
    (scores,) = json.loads((folder / "scores.json").read_text(encoding="utf-8")).values()
    return {BENCHMARKS.get(b, b): values for b, values in scores.items()}


def _rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The problem and the score of every judged completion, by benchmark."""
    table = columns(folder / "completions.parquet", "benchmark", "problem_id", "score")
    return {BENCHMARKS.get(b, b): part.to_dicts()
            for (b,), part in table.partition_by("benchmark", as_dict=True).items()}


def _gains(rows: Mapping[str, Sequence[dict]],
           others: Mapping[str, Sequence[dict]]) -> dict[str, list[float]]:
    return {b: [round(value, 6) for value in paired_gain(rows[b], others[b])]
            for b in rows if b in others}


def _seeds(runs: Sequence[Mapping[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """By benchmark, the mean score over `runs` with its 95 % interval, and each run's mean.

    The variance is that of a problem's mean over runs plus that of a run's mean over problems.
    """
    out: dict[str, Any] = {}
    for name in runs[0] if len(runs) > 1 else ():
        tables = [{row["problem_id"]: row["score"] for row in run[name]
                   if row["score"] is not None} for run in runs]
        shared = set.intersection(*map(set, tables))
        of_problems = [fmean(table[key] for table in tables) for key in shared]
        of_runs = [fmean(table[key] for key in shared) for table in tables]
        mean = fmean(of_runs)
        half = 1.96 * (variance(of_problems) / len(shared) + variance(of_runs) / len(runs)) ** 0.5
        out[name] = {"mean": [round(value, 6) for value in (mean, mean - half, mean + half)],
                     "each": [round(value, 6) for value in of_runs], "problems": len(shared)}
    return out


def _curves(stage: str, folder: Path) -> dict[str, Points]:
    log = read_log(folder)
    return {key: _thinned(points) for key in CURVES[stage] if (points := curve(log, key))}


def _thinned(points: Points) -> Points:
    """Every k-th point and the last one, k as small as leaves at most POINTS."""
    k = -(-len(points) // POINTS)
    return [(step, round(value, 4)) for step, value in points[(len(points) - 1) % k::k]]


def _processes(lines: Sequence[str]) -> int:
    """Processes that trained, by the overrides of a recipe."""
    launch = [line.split("=", 1)[1] for line in lines if line.startswith("runtime.launch=")]
    return yaml.safe_load(launch[-1]).get("num_processes", 1) if launch else 1


def _refinement(run: Mapping[str, Any], folder: Path, processes: int) -> dict[str, Any]:
    """What an rl stage did and with which settings."""
    config, trainer = run["config"], run["config"]["trainer"]
    completions = (processes * trainer["per_device_train_batch_size"]
                   * trainer["gradient_accumulation_steps"])
    tokens = completions * sum(length for _, length in curve(read_log(folder), LENGTH))
    return {"steps": run["counts"]["steps"],
            "train_minutes": round(run["counts"]["train_seconds"] / 60, 1),
            "minutes_allowed": config["minutes"], "completions_a_step": completions,
            "completion_tokens": round(tokens), "rewards": config["rewards"],
            **{key: trainer[key] for key in SETTINGS if key in trainer},
            "phases": config["phases"], "alarms": read_lines(folder / "alarms.jsonl")}


def as_text(found: Mapping[str, Any]) -> str:
    """JSON with a list of values on one line, and of a path only its last name."""
    text = re.sub(r"(?<![\w.:/<])/(?:[\w.~+-]+/)+(?=\w)", "", json.dumps(found, indent=1))
    return re.sub(r"\[\n\s*([^\[\]{}]*?)\n\s*\]",
                  lambda inside: "[" + re.sub(r"\n\s*", " ", inside[1]) + "]", text) + "\n"


if __name__ == "__main__":
    work, folder = map(Path, sys.argv[1:])
    for file, shown in SHOWN.items():
        if (found := gather(work, shown))["runs"]:
            (folder / f"{file}.json").write_text(as_text({"experiment": file, **found}),
                                                 encoding="utf-8")
            print(folder / f"{file}.json")
