"""A recipe as a Slurm job: submitted, stopped, queued again, and on several nodes."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import slurm_commands
import tiny_sft
import typer
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from pipeline.cluster import nodes, slurm
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.sft import trainer as sft
from pipeline.train import launch
from stages.__main__ import app
from tests.conftest import PATIENCE, until

ROOT = Path(__file__).parents[2]
# A few minutes: preemption comes up to a minute late, and scores shall not all be zero.
RECIPE = ["prepare.limit=460", "prepare.held_out=60", "generate.samples=12",
          "sft.trainer.max_steps=400", "rl.trainer.max_steps=24", "evaluate.samples=2",
          "evaluate.limit=30", "runtime.slurm_setup=export OMP_NUM_THREADS=1"]
TINY = ["-c", str(ROOT / "configs" / "tiny.yaml")]


@pytest.fixture
def slurm_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return slurm_commands.install(tmp_path / "slurm", monkeypatch)


def test_a_submitted_command_is_refused_before_sbatch_or_recorded(slurm_folder):
    run = CliRunner().invoke
    assert isinstance(run(app, ["submit", "al", *TINY]).exception, UserError)
    refused = run(app, ["submit", "all", "rl.keep=best", *TINY])
    assert "rl.keep=best needs rl.evaluate_every" in str(refused.exception)
    assert not (slurm_folder / "sbatch.txt").exists()
    refused = run(app, ["submit", "all", "runtime.slurm.partition=none", *TINY])
    assert "invalid partition specified: none" in str(refused.exception)

    done = run(app, ["submit", "all", "name=one", "runtime.slurm.gpus_per_node=2",
                     "runtime.slurm_setup=module load cuda", *TINY])
    assert done.exit_code == 0 and "job 7" in done.output
    told = (slurm_folder / "sbatch.txt").read_text().split()
    assert {"--requeue", "--signal=B:USR1@120", "--gpus-per-node=2",
            "--job-name=limbeck-one"} <= set(told)
    script = (slurm_folder / "job.sh").read_text()
    assert "module load cuda\nexec" in script and "stages.job" in script
    [job] = json.loads(run(app, ["jobs", "--json"]).output)
    assert (job["state"], job["attempts"]) == ("RUNNING", 0) and job["log"].endswith("/7.log")


def test_a_stage_of_a_recipe_of_steps_is_submitted(slurm_folder):
    done = CliRunner().invoke(app, ["submit", "rl", "-c", str(ROOT / "configs/r1-embedded.yaml")])
    assert done.exit_code == 0 and "job 7" in done.output


def test_a_step_and_a_sweep_are_submitted_as_their_command_takes_them(slurm_folder):
    recipe = ["-c", str(ROOT / "configs/r1-embedded.yaml")]
    run = CliRunner().invoke
    done = run(app, ["submit", "sft", "--step", "cold", "--each", "sft.trainer.seed=1,2", *recipe])
    assert done.exit_code == 0, done.exception
    command = shlex.split((slurm_folder / "job.sh").read_text().splitlines()[-1])
    assert command[5:] == ["sft", "--wait", *recipe, "--step", "cold", "--each",
                           "sft.trainer.seed=1,2"]
    for target, step, said in (("sft", "warm", "there is no step 'warm'"),
                               ("all", "cold", "all makes every step")):
        refused = run(app, ["submit", target, "--step", step, *recipe])
        assert isinstance(refused.exception, UserError) and said in str(refused.exception)


def test_a_job_is_waited_for_through_its_requeue(slurm_folder, monkeypatch, capsys):
    ends = slurm_folder / "jobs" / "7.ends"
    ends.parent.mkdir()
    states = [{"7": "RUNNING"}, {"7": "PREEMPTED"}, {"7": "PENDING"}, None, {"7": "RUNNING"}]
    for last, written, code in (({"7": "COMPLETED"}, "130\n0\n", 0), ({}, "130\n0\n", 0),
                                ({"7": "FAILED"}, "130\n2\n", 2), ({"7": "CANCELLED"}, "", 1)):
        ends.write_text(written)
        told, asked = [], iter([*states, last, last])
        monkeypatch.setattr(slurm, "_states", lambda asked=asked: next(asked))
        monkeypatch.setattr(slurm, "POLL_SECONDS", 0)
        assert slurm.wait_for("7", ends.parent, told.append) == code
        assert told[:4] == ["RUNNING", "PREEMPTED", "PENDING", "Slurm does not answer"]


def test_ctrl_c_leaves_the_job_that_was_waited_for(slurm_folder):
    line = [sys.executable, "-m", "stages", "submit", "prepare", "--wait", *TINY]
    with subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert "job 7: RUNNING" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130 and "job 7 goes on" in said and "scancel 7" in said


def test_without_sbatch_submit_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="not on this machine's path"):
        slurm.submit("", {}, "x", tmp_path, "limbeck all")


@pytest.mark.parametrize(("state", "asked"), [("7 RUNNING", ["requeue 7"]), ("7 CANCELLED", [])])
def test_a_stopped_job_is_queued_again_unless_a_user_ended_it(slurm_folder, state, asked):
    (slurm_folder / "state").write_text(f"{state}\n")
    jobs = slurm_folder / "jobs"
    jobs.mkdir()
    line = [sys.executable, "-m", "stages.job", str(jobs), "generate", "generate.samples=200"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "7"}
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE) as process:
        until(lambda: list(Path("data/artifacts").glob("generate-*.partial")))
        process.send_signal(signal.SIGUSR1)
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130, said
    assert (jobs / "7.ends").read_text() == "130\n"
    file = slurm_folder / "scontrol.txt"
    assert (file.read_text().splitlines() if file.exists() else []) == asked


def test_a_finished_job_is_not_queued_again(slurm_folder, monkeypatch):
    from stages import job

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(sys, "argv", ["job", str(slurm_folder), "prepare", *TINY])
    with pytest.raises(SystemExit) as stop:
        job.run_in_job()
    assert not stop.value.code and (slurm_folder / "7.ends").read_text() == "0\n"
    assert not (slurm_folder / "scontrol.txt").exists()


def test_two_nodes_of_an_allocation_learn_what_one_process_does(slurm_folder, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tiny = tiny_sft.build(slurm_folder / "tiny", 16)
    alone, two = slurm_folder / "alone", slurm_folder / "two"
    sft.train(tiny_sft.job(tiny, alone, train_sampling_strategy="sequential"))
    job = tiny_sft.job(tiny, two, train_sampling_strategy="sequential",
                       per_device_train_batch_size=4)
    assert launch.launch(job, "pipeline.sft.trainer", {"num_processes": 2})["steps"] == 2
    one, both = (load_file(path / "model" / "model.safetensors") for path in (alone, two))
    assert all((one[name] - both[name]).abs().max() < 1e-5 for name in one)
    assert "--kill-on-bad-exit=1" in (slurm_folder / "srun.txt").read_text()


def test_one_node_or_a_rank_given_by_hand_starts_accelerate_here(monkeypatch):
    assert not nodes.spans_nodes({"num_processes": 2})
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert nodes.spans_nodes({"num_processes": 2}) and not nodes.spans_nodes({})
    assert not nodes.spans_nodes({"num_processes": 2, "machine_rank": 1})


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("sbatch") or subprocess.run(
    ["sinfo"], capture_output=True, check=False).returncode != 0, reason="no Slurm controller")
@pytest.mark.timeout(1800)
def test_a_recipe_requeued_in_sft_and_preempted_in_rl_ends_as_one_that_was_not(tmp_path,
                                                                              monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = CliRunner().invoke
    logs = {}
    for folder, stops in (("whole", {}), ("stopped", {"sft": "requeue", "rl": "preempt"})):
        given = [f"runtime.artifacts={folder}", f"runtime.traces={folder}/traces", *RECIPE]
        job = run(app, ["submit", "all", *given]).output.split()[1].rstrip(";")
        log = logs[folder] = Path(folder) / "jobs" / f"{job}.log"
        for stage, how in stops.items():
            pattern = f"{stage}-*.partial/log.jsonl"
            until(lambda pattern=pattern: list(Path("stopped").glob(pattern)), 300)
            _stop(job, how)
            said = f"{stage}: stopped after step"
            until(lambda log=log, said=said: said in log.read_text(), 240)
            until(lambda job=job: slurm.state_of([job]).get(job) == "PENDING", 120)
            # Slurm lets a requeued job wait two minutes.
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False)
        assert slurm.wait_for(job, log.parent, print) == 0, log.read_text()[-2000:]
    made = [{path.parent.name for path in Path(folder).glob("*/manifest.json")}
            for folder in ("whole", "stopped")]
    assert made[0] == made[1] and len(made[0]) == 9
    for name in ("sft-*/model/model.safetensors", "rl-*/model/model.safetensors",
                 "evaluate-*/scores.json"):
        one, other = (next(Path(folder).glob(name)).read_bytes() for folder in logs)
        assert one == other, name
    scores = json.loads(next(Path("whole").glob("evaluate-*/scores.json")).read_text())
    assert scores["sft"]["heldout"]["avg"] > 0


def _stop(job, how):
    """Queue `job` again as an operator would, or by another of a higher partition."""
    if how == "requeue":
        subprocess.run(["scontrol", "requeue", job], check=True)
    else:
        node = subprocess.run(["squeue", "--noheader", "--format=%N", f"--jobs={job}"], text=True,
                              capture_output=True, check=True).stdout.strip()
        subprocess.run(["sbatch", "--partition=high", "--exclusive", f"--nodelist={node}",
                        "--wrap=true", "--output=/dev/null"], check=True)


@pytest.mark.parametrize("name", ["skypilot", "kubernetes"])
def test_the_shipped_jobs_run_a_command_whose_config_loads(name):
    job = yaml.safe_load((ROOT / "configs" / "cluster" / f"{name}.yaml").read_text("utf-8"))
    words = shlex.split(job["run"]) if name == "skypilot" else \
        job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert words[:2] == [".venv/bin/limbeck", "all"]
    given = typer.main.get_command(app).commands["all"].make_context("all", words[2:]).params
    loaded = load(Experiment, [ROOT / path for path in given["config"]], given["overrides"])
    assert str(loaded.runtime.artifacts) == "/runs/artifacts"
