"""Every rl recipe runs from prepare to a refined checkpoint, made tiny by configs/tiny.yaml."""

import json
from pathlib import Path

import polars as pl
import pytest
import tiny_rl

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.rl import phases
from stages import make, rl
from stages.graph import STAGES, plans
from tests.rl.test_process_reward import classifier

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "configs/tiny.yaml"
PHASES = "rl.phases=[{until_step: 1, trainer: {max_completion_length: 16}}, {}]"
PRM = ("rl.rewards.process=0.5", "rl.process={type: local, model: prm}")
RECIPES = ["countdown-qwen-0.5b", "deepscaler-1.5b", "language-qwen-0.5b", "r1-zero-qwen-0.5b"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_made_tiny_runs_and_logs_its_curves(tmp_path, monkeypatch, capsys, recipe):
    # Phases one after the other as ever, but in this process, which has its libraries already.
    monkeypatch.setattr(rl, "launch", lambda job, *given, **named: phases.train(job))
    monkeypatch.chdir(tmp_path)
    classifier(tmp_path / "prm", "Token", 2)
    more = {"deepscaler-1.5b": [PHASES], "r1-zero-qwen-0.5b": PRM}.get(recipe, [])
    experiment = load(Experiment, [ROOT / f"configs/{recipe}.yaml", TINY], more)
    make.make(experiment, "rl")
    assert capsys.readouterr().err.splitlines()[-1].startswith("rl: ")
    out = make.plan_of(experiment, "rl").folder
    assert (out / "model/config.json").is_file() and (out / "best/heldout.json").is_file()
    steps = [json.loads(line) for line in (out / "log.jsonl").open()]
    curves = {f"rewards/{name}/mean" for name in experiment.rl.rewards} | {
        "reflection", "unjudged", "completions/mean_length"}
    assert {1, 2} <= {step["step"] for step in steps} and curves <= set(steps[0])
    assert any("heldout/accuracy" in step for step in steps)
    kept = [pl.read_parquet(path) for path in sorted(out.rglob("completions/*.parquet"))]
    assert [len(table) for table in kept] == [8, 8]
    assert {*experiment.rl.rewards, "completion", "advantage"} <= set(kept[0].columns)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_passes_the_checks_before_a_run_and_needs_no_teacher(recipe, monkeypatch):
    monkeypatch.setattr("pipeline.serving.vllm_server.has_vllm", lambda: True)
    experiment = load(Experiment, [ROOT / f"configs/{recipe}.yaml"])
    STAGES["rl"].check(experiment, fully=True)
    assert set(plans(experiment, "rl")) == {"prepare", "student", "rl"}
    assert experiment.rl.trainer["max_steps"] / experiment.rl.evaluate_every >= 3


@pytest.mark.parametrize("files", [
    ("qwen-distill", "qwen-ablation"), ("qwen-distill", "on-policy"), ("qwen-distill", "context"),
    ("qwen-distill", "cross-tokenizer"), ("qwen-distill", "qwen-seeds"), ("r1", "one-gpu"),
    ("countdown-qwen-0.5b", "one-gpu")])
def test_a_study_on_real_models_passes_the_checks_of_every_step(files, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.serving.vllm_server.has_vllm", lambda: True)
    monkeypatch.chdir(tmp_path)
    Path("train").mkdir()
    problems = "".join(json.dumps({"problem": f"{i} + {i * i}?", "answer": str(i + i * i)}) + "\n"
                       for i in range(600))
    for name in ("train.jsonl", "train/gsm8k.jsonl", "gsm8k_test.jsonl", "math500.jsonl"):
        Path(name).write_text(problems)
    student = tiny_rl.build(tmp_path / "student")
    more = [] if files[0] == "qwen-distill" else ["prepare.problems=train.jsonl"]
    if "cross-tokenizer" in files:      # a teacher whose tokens are looked at
        more = [f"steps.{step}.sft.method.teacher={student}" for step in ("crossed", "mixed")]
    experiment = load(Experiment, [ROOT / f"configs/{name}.yaml" for name in files],
                      [f"student.model={student}", *more])
    make.check_targets(experiment, make.goals(experiment))
    trainings = [step.experiment for step in experiment.all_steps().values()] or [experiment]
    timed = [part for step in trainings for part in (step.sft, step.rl) if part.minutes]
    assert all(part.schedule == "minutes" for part in timed)
    assert bool(timed) == (not {"context", "cross-tokenizer"} & set(files))


@pytest.mark.parametrize("override", ["rl.rewards.process=1", "rl.process={type: local, model: x}"])
def test_a_process_reward_and_its_model_are_asked_for_together(override):
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

    from pipeline.prompts import messages
    from pipeline.student.template import render_prompt

    text = render_prompt(tokenizer_of("bare"), messages("r1_zero", "What is 2+2?"))
    assert text.startswith("A conversation between User and Assistant. ")
    assert text.endswith("</answer>. User: What is 2+2? Assistant:\n") and text.count("User:") == 1


@pytest.mark.parametrize("text", ["", "Solve it.", "{{ '{{ problem }}' }}"])
def test_a_prompt_that_leaves_out_the_problem_is_refused_before_it_is_asked(tmp_path, text):
    from pipeline.prompts import messages

    (tmp_path / "own.jinja").write_text(text)
    with pytest.raises(UserError, match=r"own\.jinja leaves out problem; write \{\{ problem \}\}"):
        messages(str(tmp_path / "own.jinja"), "What is 2+2?")
    (tmp_path / "own.jinja").write_text("Solve: {{ problem | upper }}")
    assert messages(str(tmp_path / "own.jinja"), "1 or 2?")[0]["content"] == "Solve: 1 OR 2?"
