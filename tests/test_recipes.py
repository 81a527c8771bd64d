"""Every rl recipe runs from prepare to a refined checkpoint, made tiny by configs/tiny.yaml."""

import json
from pathlib import Path

import polars as pl
import pytest

from pipeline.config import load
from stages.graph import Experiment

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "configs/tiny.yaml"
PHASES = "rl.phases=[{until_step: 1, trainer: {max_completion_length: 16}}, {}]"
RECIPES = ["countdown-qwen-0.5b", "deepscaler-1.5b", "language-qwen-0.5b", "r1-zero-qwen-0.5b"]


@pytest.mark.timeout(280)
@pytest.mark.parametrize("recipe", [
    name if name.startswith(("r1-zero", "deep")) else pytest.param(name, marks=pytest.mark.slow)
    for name in RECIPES])
def test_a_recipe_made_tiny_runs_and_logs_its_curves(limbeck, recipe):
    files = ("-c", ROOT / f"configs/{recipe}.yaml", "-c", TINY,
             *([PHASES] if recipe.startswith("deepscaler") else []))
    said = limbeck("rl", *files).stderr
    assert "Traceback" not in said and said.splitlines()[-1].startswith("rl: ")
    out = Path(limbeck("path", "rl", *files).stdout.strip())
    assert (out / "model/config.json").is_file()
    steps = [json.loads(line) for line in (out / "log.jsonl").open()]
    config = load(Experiment, [ROOT / f"configs/{recipe}.yaml", TINY])
    curves = {f"rewards/{name}/mean" for name in config.rl.rewards} | {
        "reflection", "unjudged", "completions/mean_length"}
    assert {1, 2} <= {step["step"] for step in steps} and curves <= set(steps[0])
    kept = [pl.read_parquet(path) for path in sorted(out.rglob("completions/*.parquet"))]
    assert [len(table) for table in kept] == [8, 8]
    columns = {*config.rl.rewards, "completion", "advantage"}
    assert columns <= set(kept[0].columns)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_passes_the_checks_before_a_run_and_needs_no_teacher(recipe):
    from stages.graph import STAGES, plans

    experiment = load(Experiment, [ROOT / f"configs/{recipe}.yaml"])
    STAGES["rl"].check(experiment)
    assert set(plans(experiment, "rl")) == {"prepare", "student", "rl"}
