"""Every rl recipe runs from prepare to a refined checkpoint, made tiny by configs/tiny.yaml."""

import json
from pathlib import Path

import polars as pl
import pytest
from test_process import classifier

from pipeline.config import load
from pipeline.errors import UserError
from stages.graph import Experiment

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "configs/tiny.yaml"
PHASES = "rl.phases=[{until_step: 1, trainer: {max_completion_length: 16}}, {}]"
PRM = ("rl.rewards.process=0.5", "rl.process={type: local, model: prm}")
RECIPES = ["countdown-qwen-0.5b", "deepscaler-1.5b", "language-qwen-0.5b", "r1-zero-qwen-0.5b"]


@pytest.mark.timeout(280)
@pytest.mark.parametrize("recipe", [
    name if name.startswith("r1-zero") else pytest.param(name, marks=pytest.mark.slow)
    for name in RECIPES])
def test_a_recipe_made_tiny_runs_and_logs_its_curves(limbeck, tmp_path, recipe):
    classifier(tmp_path / "prm", "Token", 2)
    more = {"deepscaler-1.5b": [PHASES], "r1-zero-qwen-0.5b": PRM}.get(recipe, [])
    files = ("-c", ROOT / f"configs/{recipe}.yaml", "-c", TINY, *more)
    said = limbeck("rl", *files).stderr
    assert "Traceback" not in said and said.splitlines()[-1].startswith("rl: ")
    out = Path(limbeck("path", "rl", *files).stdout.strip())
    assert (out / "model/config.json").is_file()
    steps = [json.loads(line) for line in (out / "log.jsonl").open()]
    config = load(Experiment, [ROOT / f"configs/{recipe}.yaml", TINY], more)
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


@pytest.mark.parametrize("override", ["rl.rewards.process=1", "rl.process={type: local, model: x}"])
def test_a_process_reward_and_its_model_are_asked_for_together(override):
    from stages.graph import STAGES

    experiment = load(Experiment, [ROOT / "configs/r1-zero-qwen-0.5b.yaml"], [override])
    with pytest.raises(UserError, match="go together"):
        STAGES["rl"].check(experiment)


def test_the_language_recipe_asks_about_half_of_its_problems_in_chinese():
    from pipeline.prompts import render

    asked = [render("boxed_mixed", problem="x" * length) for length in range(1, 101)]
    assert sum("请" in text for text in asked) == 50
    assert all("\\boxed{}" in text and text.startswith("x") for text in asked)


def test_the_r1_zero_prompt_is_the_papers_and_ends_where_the_model_speaks():
    from tokenizer_kinds import tokenizer_of

    from pipeline.chat import render_prompt
    from pipeline.prompts import messages

    text = render_prompt(tokenizer_of("bare"), messages("r1_zero", "What is 2+2?"))
    assert text.startswith("A conversation between User and Assistant. ")
    assert text.endswith("</answer>. User: What is 2+2? Assistant:\n") and text.count("User:") == 1
