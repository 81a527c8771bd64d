"""Checkpoints of several processes: made by one, waited for by all, whole after any kill."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import tiny_rl
import tiny_sft

from pipeline.config.rl import RlConfig, RlJob
from pipeline.train import checkpoints, launch

ROOT = Path(__file__).resolve().parents[2]
TRAINER = {**tiny_rl.TRAINER, "per_device_train_batch_size": 4, "max_steps": 8,
           "save_total_limit": 2}
SLOW_FIRST = """
import os, time, transformers
from pipeline.config.rl import RlJob
from pipeline.rl import phases
from pipeline.train.launch import worker_main

save = transformers.Trainer.save_model
def late(self, *given, **more):
    time.sleep(os.environ["RANK"] == "0")     # the others are there before the folder is
    save(self, *given, **more)

transformers.Trainer.save_model = late
phases.reward_functions = lambda *given: {"odd": (1.0, lambda prompts, completion_ids, **columns: [
    float(sum(ids) % 2) for ids in completion_ids])}
worker_main(RlJob, phases.train)
"""
DYING = """
import os, pathlib, random, shutil, signal, torch, transformers
from pipeline.config.rl import RlJob
from pipeline.rl import heldout, phases
from pipeline.train import checkpoints, fit
from pipeline.train.launch import worker_main

draw = random.Random(f"{os.environ['ATTEMPT']} {os.environ['RANK']}")
chance = float(os.environ["CHANCE"])
def deadly(place, name):
    call = getattr(place, name)
    def run(*given, **more):
        if draw.random() < chance:
            os.kill(os.getpid(), signal.SIGKILL)
        done = call(*given, **more)
        if draw.random() < chance:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    setattr(place, name, run)

for place, name in ((torch, "save"), (checkpoints, "mark_complete"), (shutil, "rmtree"),
                    (pathlib.Path, "replace"), (pathlib.Path, "rename"), (shutil, "copytree"),
                    (transformers.Trainer, "_save"), (transformers.Trainer, "training_step"),
                    (heldout, "save_student"), (fit, "save_student")):
    deadly(place, name)
phases.reward_functions = lambda *given: {"odd": (1.0, lambda prompts, completion_ids, **columns: [
    float(sum(ids) % 2) for ids in completion_ids])}
worker_main(RlJob, phases.train)
"""


def job(start: Path, out: Path, **trainer) -> RlJob:
    """A refinement that saves at every step and keeps the best on held-out problems."""
    config = RlConfig.model_validate({
        "rewards": {"accuracy": 1.0}, "patience": 99, "alarms": {"window": 99}, "keep": "best",
        "evaluate_every": 2, "trainer": {**TRAINER, **trainer}})
    out.mkdir(parents=True)
    return RlJob(rl=config, model=str(start), tokenizer=start, rows=tiny_rl.problems(24),
                 held_out=tiny_rl.problems(4), judge_workers=1, engine={}, out=out, seed=3)


def options(processes: int) -> dict:
    return {**tiny_sft.TWO, "num_processes": processes}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """The two programs above, importable where training is launched."""
    (tmp_path / "slow_first.py").write_text(SLOW_FIRST)
    (tmp_path / "dying.py").write_text(DYING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def numbers(out: Path) -> list[str]:
    return [path.name for path in checkpoints.steps(out / "checkpoints")]


def test_processes_wait_for_the_folder_that_the_first_of_them_makes(modules):
    run = job(tiny_rl.build(modules / "start"), modules / "out", save_only_model=True, max_steps=4)
    assert launch.launch(run, "slow_first", options(2))["steps"] == 4
    assert numbers(run.out) == ["checkpoint-3", "checkpoint-4"]
    for checkpoint in checkpoints.steps(run.out / "checkpoints"):
        assert checkpoints.is_complete(checkpoint)
        assert {path.name for path in checkpoint.glob("curriculum-*")} == \
            {"curriculum-0.pt", "curriculum-1.pt"}
    assert json.loads((run.out / "best/heldout.json").read_text())["problems"] == 4


def finished(run: RlJob, processes: int, attempt: int, chance: float) -> bool:
    """Whether a launch in which each process may die at any save or step came to its end."""
    path = run.out / "job.json"
    path.write_text(run.model_dump_json())
    environment = {**os.environ, "ATTEMPT": str(attempt), "CHANCE": str(chance)}
    line = launch.command(options(processes), ["-m", "dying", str(path)])
    with subprocess.Popen(line, cwd=ROOT, env=environment, start_new_session=True,
                          stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            return process.wait(120) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)      # what a dead sibling left waiting


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("processes", "kills", "chance"), [(2, 20, 0.02), (4, 4, 0.02)])
def test_killed_at_random_several_processes_end_in_the_weights_of_one_run(modules, processes, kills,
                                                                         chance):
    start = tiny_rl.build(modules / "start")
    steps = {"max_steps": 4 * kills + 10}
    whole, cut = (job(start, modules / name, **steps) for name in ("whole", "cut"))
    assert finished(whole, processes, 0, 0.0)
    died = 0
    for attempt in itertools.count(1):
        if finished(cut, processes, attempt, chance if died < kills else 0.0):
            break
        died += 1
        assert attempt < 3 * kills
    assert died == kills
    assert (tiny_rl.weights(cut.out / "model") == tiny_rl.weights(whole.out / "model")).all()
    assert [line["reward"] for line in tiny_rl.log(cut.out)] == \
        [line["reward"] for line in tiny_rl.log(whole.out)]
    assert numbers(cut.out) == numbers(whole.out)
