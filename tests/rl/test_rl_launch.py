"""Refinement in processes of its own: several on one run, one for vLLM, and bad settings."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import tiny_rl
import tiny_sft
from transformers import AutoModelForCausalLM

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.rl import phases
from pipeline.serving import vllm_server
from pipeline.student import sample
from pipeline.train import launch
from stages import rl
from stages.graph import STAGES

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "rl.start=base", "rl.rewards={accuracy: 1, repetition: 1}", "rl.evaluate_every=2",
    "rl.keep=best", "rl.minutes=5", "rl.dynamic_sampling=1", "rl.keep_completions=1",
    "rl.phases=[{until_step: 1}, {}]", "runtime.judge_workers=1",
    "rl.trainer={max_steps: 3, num_generations: 4, per_device_train_batch_size: 4, "
    "max_completion_length: 12, learning_rate: 5.0e-3, gradient_accumulation_steps: 1}")


def stage(folder, *more):
    """(experiment, inputs, out) of an rl stage on sums; three problems are held out."""
    student, prepare, out = (folder / name for name in ("student", "prepare", "out"))
    tiny_rl.build(student)
    (student / "tokenizer").symlink_to(student / "model")
    prepare.mkdir()
    out.mkdir()
    for name, count in (("problems", 12), ("heldout", 3)):
        rows = [{k: v for k, v in row.items() if k != "prompt"} for row in tiny_rl.problems(count)]
        tables.write(tables.Problem, pl.DataFrame(rows), prepare / f"{name}.parquet")
    experiment = load(Experiment, [ROOT / "configs/default.yaml"], [*SETTINGS, *more])
    return experiment, {"student": student, "prepare": prepare}, out


@pytest.mark.slow
def test_two_launched_processes_refine_one_model_and_write_one_log(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    experiment, inputs, out = stage(tmp_path, f"runtime.launch={tiny_sft.TWO}")
    counts = rl.run(experiment, inputs, out)
    assert counts["steps"] == 3 and counts["problems"] == 12
    told = tiny_rl.log(out)
    assert [(line["phase"], line["step"]) for line in told] == [(0, 1), (1, 2), (1, 3)]
    assert ["heldout/accuracy" in line for line in told] == [True, True, True]
    kept = [pl.read_parquet(path) for path in sorted(out.rglob("completions/*.parquet"))]
    assert [len(table) for table in kept] == [8, 8, 8]
    assert all(table["prompt"].to_list()[i] == table["prompt"].to_list()[i - i % 4]
               for table in kept for i in range(8))
    AutoModelForCausalLM.from_pretrained(out / "model")
    assert json.loads((out / "best/heldout.json").read_text())["problems"] == 3


def test_the_model_handed_on_is_named_where_it_is_not_the_last(tmp_path):
    more = ["rl.phases=[]", "rl.evaluate_every=1", "rl.trainer.max_steps=2"]
    experiment, inputs, out = stage(tmp_path, *more, "rl.keep=best")
    counts = rl.run(experiment, inputs, out)
    best = json.loads((out / "best/heldout.json").read_text())
    assert counts["handed_on"] == best and best["problems"] == 3
    assert f"2 steps in {counts['train_seconds']} s; handed on as it was after step " \
           f"{best['step']}, {best['accuracy']:.1%} of 3 held-out problems right" \
        == rl.summary(counts)
    counts.pop("handed_on")
    assert rl.summary(counts) == f"2 steps in {counts['train_seconds']} s"


UNEVEN = """
from pipeline.rl import phases
from pipeline.serving import vllm_server
from pipeline.train.launch import worker_main
from pipeline.config.rl import RlJob

def half(prompts, completions, trainer_state=None, **columns):
    rank = int(__import__("os").environ["RANK"])    # one process's group teaches, the other's not
    return [float(rank and i % 2) for i in range(len(completions))]

phases.reward_functions = lambda weights, context: dict.fromkeys(weights, (1.0, half))
worker_main(RlJob, phases.train)
"""


@pytest.mark.slow
def test_processes_with_unlike_shares_of_teaching_completions_stay_in_step(tmp_path, monkeypatch):
    (tmp_path / "uneven.py").write_text(UNEVEN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    experiment, inputs, out = stage(
        tmp_path, "rl.phases=[]", "rl.dynamic_sampling=0", "rl.keep=last", "rl.evaluate_every=0",
        "rl.trainer.per_device_train_batch_size=2", "rl.trainer.gradient_accumulation_steps=2")
    assert launch.launch(rl.job_of(experiment, inputs, out), "uneven", tiny_sft.TWO)["steps"] == 3
    assert [line["frac_reward_zero_std"] for line in tiny_rl.log(out)] == [0.5] * 3


@pytest.mark.parametrize(("given", "gpus", "seen"), [
    ("rl.trainer.use_vllm=true", "2,3", ["2"]), ("rl.minutes=5", "2,3", ["2"]),
    ("runtime.launch={num_processes: 2}", "2,3", ["2,3"]),
    ("rl.phases=[{until_step: 1}, {until_step: 2}, {}]", "", [""] * 3)])
def test_vllm_several_gpus_and_each_phase_take_processes_of_their_own(
        tmp_path, monkeypatch, given, gpus, seen):
    experiment, inputs, out = stage(tmp_path, "rl.phases=[]", given)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    started = []

    def fake(line, environment):
        job = json.loads((out / "job.json").read_text())
        started.append((line[-3:], job["last"], environment["CUDA_VISIBLE_DEVICES"]))
        (out / "counts.json").write_text('{"steps": 3}')
        return 0

    monkeypatch.setattr(launch, "run", fake)
    assert rl.run(experiment, inputs, out) == {"steps": 3, "problems": 12}
    line = ["-m", "pipeline.rl.phases", str(out / "job.json")]
    assert started == [(line, index, names) for index, names in enumerate(seen)]


def test_two_runs_on_one_host_listen_on_ports_of_their_own(tmp_path, monkeypatch):
    experiment, inputs, out = stage(tmp_path, "rl.phases=[]", "rl.trainer.use_vllm=true")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    ports = []

    def fake(line, environment):
        ports.append(environment.get("MASTER_PORT"))
        (out / "counts.json").write_text('{"steps": 3}')
        return 0

    monkeypatch.setattr(launch, "run", fake)
    for _ in range(2):
        rl.run(experiment, inputs, out)
    monkeypatch.setenv("MASTER_PORT", "29700")
    rl.run(experiment, inputs, out)
    assert len(set(ports)) == 3 and ports[2] == "29700" and all(int(port) > 1023 for port in ports)


def test_phases_in_processes_of_their_own_refine_as_one_process_does(tmp_path):
    experiment, inputs, out = stage(tmp_path, "rl.lora={r: 2}", "rl.keep=last")
    assert rl.run(experiment, inputs, out)["steps"] == 3
    assert json.loads((out / "job.json").read_text())["last"] == 1
    here, there = tiny_rl.weights(out / "model"), tmp_path / "there"
    there.mkdir()
    assert phases.train(rl.job_of(experiment, inputs, there))["steps"] == 3
    assert (here - tiny_rl.weights(there / "model")).abs().max() < 1e-6
    assert [line["reward"] for line in tiny_rl.log(out)] == \
        [line["reward"] for line in tiny_rl.log(there)]
    assert (out / "model/adapter/adapter_config.json").is_file()
    assert not (out / "model/adapter_config.json").exists()


def test_the_band_is_sampled_with_the_engines_options(tmp_path, monkeypatch):
    experiment, inputs, out = stage(tmp_path, "rl.difficulty=pass_rate < 2",
                                    "rl.difficulty_samples=1", "runtime.vllm={max_num_seqs: 7}")
    real, seen = sample.sample, []
    monkeypatch.setattr(sample, "sample", lambda *given: seen.append(given[-1]) or real(*given))
    assert len(rl.job_of(experiment, inputs, out).rows) == 12 and seen == [{"max_num_seqs": 7}]


def test_a_band_without_samples_at_the_start_asks_every_problem_and_needs_no_traces(tmp_path):
    band = "rl.difficulty=samples < 16 or pass_rate < 1"
    experiment, inputs, out = stage(tmp_path, band, "rl.difficulty_samples=null", "rl.start=base")
    assert len(rl.job_of(experiment, inputs, out).rows) == 12
    assert STAGES["rl"].needs(experiment) == ("prepare", "student")
    assert "filter" in STAGES["rl"].needs(load(Experiment, [ROOT / "configs/default.yaml"], [band]))


@pytest.mark.parametrize(("override", "said"), [
    ("rl.lora={rank: 4}", "rl.lora"), ("rl.server={}", "go together"),
    ("rl.server_gpus=1", "go together"), ("rl.lora={r: 0}", "rl.lora.r=0 must be above 0"),
    ("rl.rewards.acuracy=1", "names 'acuracy'; there are accuracy,"),
    ("rl.trainer.output_dir=elsewhere", "rl.trainer.output_dir: .* remove this key"),
    ("rl.trainer.beta=abc", "rl.trainer.beta='abc' should be a valid number"),
    ("rl.trainer.temperature=-1", "temperature=-1.0 must be above 0"),
    ("rl.trainer.max_steps=0", "max_steps=0 must be above 0")])
def test_settings_that_cannot_run_are_refused_before_the_run(override, said):
    experiment = load(Experiment, [ROOT / "configs/default.yaml"], [override])
    with pytest.raises(UserError, match=said):
        STAGES["rl"].check(experiment, fully=True)


@pytest.mark.parametrize("override", [
    "rl.trainer={use_vllm: true}", "rl.trainer={max_steps: 2}",
    "rl.phases=[{until_step: 1}, {trainer: {use_vllm: true}}]"])
def test_a_run_with_vllm_is_refused_before_it_starts_where_there_is_none(override, monkeypatch):
    monkeypatch.setattr(vllm_server, "has_vllm", lambda: False)
    server = ["rl.server={}", "rl.server_gpus='1'"] if "2}" in override else []
    experiment = load(Experiment, [ROOT / "configs/default.yaml"], [override, *server])
    with pytest.raises(UserError, match=r"not installed; run pip install '\.\[vllm\]'"):
        rl.check_fully(experiment)


def test_a_server_takes_the_weights_of_one_trainer_only():
    experiment = load(Experiment, [ROOT / "configs/default.yaml"],
                      ["rl.server={}", "rl.server_gpus='1'", "rl.phases=[{until_step: 1}, {}]",
                       "rl.trainer.max_steps=2"])
    with pytest.raises(UserError, match=r"rl\.phases"):
        rl.check(experiment)


def test_a_truth_value_is_what_the_word_says(tmp_path):
    from pipeline.rl.schedule import grpo_config

    made = grpo_config({"gradient_checkpointing": "off", "use_vllm": "no", "max_steps": "2",
                        "save_strategy": "no"}, tmp_path, 0)
    assert (made.gradient_checkpointing, made.use_vllm, made.max_steps) == (False, False, 2)
    assert made.save_strategy == "no"
