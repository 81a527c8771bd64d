"""Train sft and rl on two nodes in separate networks, and lose one node during the run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import slurm_commands
import tiny_rl
import tiny_sft
from safetensors.torch import load_file

from pipeline.config.rl import RlConfig, RlJob
from pipeline.errors import UserError
from pipeline.sft import trainer as sft
from pipeline.train import launch

ROOT = Path(__file__).parents[2]
NET = f"limbeck{os.getpid()}n"
FSDP = {"use_fsdp": True, "fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_state_dict_type": "FULL_STATE_DICT", "fsdp_cpu_ram_efficient_loading": "false"}
REWARDED = """
from pipeline.config.rl import RlJob
from pipeline.rl import phases
from pipeline.train.launch import worker_main

phases.reward_functions = lambda *given: {"odd": (1.0, lambda prompts, completion_ids, **columns: [
    float(sum(ids) % 2) for ids in completion_ids])}
worker_main(RlJob, phases.train)
"""
SHARDED = """
from accelerate import PartialState
from accelerate.utils import DistributedType
from pipeline.config.sft import SftJob
from pipeline.sft import trainer
from pipeline.train import fit
from pipeline.train.launch import worker_main

# accelerate shards on GPUs alone, and takes this for DDP on a processor.
init = PartialState.__init__
def as_if_gpus(self, *given, **more):
    init(self, *given, **more)
    if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU
PartialState.__init__ = as_if_gpus
save = fit.save_student
def sharded(run, *given):
    kinds = {type(one).__name__ for one in run.model_wrapped.parameters()}
    assert kinds == {"DTensor"}, kinds
    return save(run, *given)
fit.save_student = sharded
worker_main(SftJob, trainer.train)
"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and `ip netns`")]


def ip(*words: str, check: bool = True) -> str:
    return subprocess.run(["ip", *words], check=check, text=True, capture_output=True).stdout


@pytest.fixture
def two_nodes(tmp_path, monkeypatch):
    """Two network namespaces joined by a cable, and Slurm's commands that start a process in each.
    """
    slurm_commands.install(tmp_path / "slurm", monkeypatch)
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
    monkeypatch.setenv("SLURM_TEST_HOSTS", "10.213.7.1 10.213.7.2")
    monkeypatch.setenv("SLURM_TEST_NET", NET)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "rewarded.py").write_text(REWARDED)
    (tmp_path / "sharded.py").write_text(SHARDED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    nets = [f"{NET}0", f"{NET}1"]
    for net in nets:
        ip("netns", "add", net)
    try:
        ip("link", "add", nets[0], "netns", nets[0], "type", "veth",
           "peer", "name", nets[1], "netns", nets[1])
        for number, net in enumerate(nets, 1):
            ip("-n", net, "address", "add", f"10.213.7.{number}/24", "dev", net)
            for device in (net, "lo"):
                ip("-n", net, "link", "set", device, "up")
        yield tmp_path
    finally:
        for net in nets:
            ip("netns", "del", net, check=False)


def lose_the_second_node(log: Path, steps: int) -> None:
    """Kill every process of it once `log` has so many lines."""
    deadline = time.monotonic() + 200
    while not (log.is_file() and log.read_text().count("\n") >= steps):
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)
    for process in ip("netns", "pids", f"{NET}1").split():
        os.kill(int(process), signal.SIGKILL)


def killed_and_resumed(job, module, options, monkeypatch, steps):
    """Return the counts of `job` on two nodes; the second is killed after `steps` steps."""
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    killer = threading.Thread(target=lose_the_second_node, args=(job.out / "log.jsonl", steps))
    killer.start()
    with pytest.raises(UserError, match="ended with code"):
        launch.launch(job, module, options)
    killer.join()
    assert list((job.out / "checkpoints").glob("checkpoint-*"))
    counts = launch.launch(job, module, options)
    monkeypatch.delenv("SLURM_JOB_NUM_NODES")
    return counts


def losses(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def assert_same(one: Path, other: Path, steps: int) -> None:
    expected, found = losses(one), losses(other)
    assert [step for step, _ in found] == [step for step, _ in expected] == list(
        range(1, steps + 1))
    assert max(abs(a - b) for (_, a), (_, b) in zip(expected, found, strict=True)) < 1e-5
    weights = [load_file(out / "model" / "model.safetensors") for out in (one, other)]
    assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-5 for name in weights[0])


def rl_jobs(folder: Path) -> list[RlJob]:
    """Two equal jobs of 12 steps into `folder`/alone and `folder`/two."""
    start = tiny_rl.build(folder / "start")
    trainer = {**tiny_rl.TRAINER, "per_device_train_batch_size": 4, "max_steps": 12}
    config = RlConfig.model_validate({"rewards": {"accuracy": 1.0}, "patience": 99,
                                      "alarms": {"window": 99}, "trainer": trainer})
    jobs = [RlJob(rl=config, model=str(start), tokenizer=start, rows=tiny_rl.problems(24),
                  held_out=[], judge_workers=1, out=folder / name, seed=3)
            for name in ("alone", "two")]
    for job in jobs:
        job.out.mkdir()
    return jobs


def sft_jobs(folder, epochs):
    """The same training by one process, and by two with half its rows each."""
    tiny = tiny_sft.build(folder / "tiny", 16)
    settings = {"train_sampling_strategy": "sequential", "save_steps": 2,
                "num_train_epochs": epochs, "save_strategy": "steps"}
    return [tiny_sft.job(tiny, folder / name, **settings, per_device_train_batch_size=rows)
            for name, rows in (("alone", 8), ("two", 4))]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("module", "options"), [("pipeline.sft.trainer", {}), ("sharded", FSDP)])
def test_sft_on_two_nodes_that_lost_one_has_the_losses_of_one_process(two_nodes, monkeypatch,
                                                                      module, options):
    if options:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")     # as if there was a GPU
    alone, two = sft_jobs(two_nodes, epochs=12)
    sft.train(alone)
    counts = killed_and_resumed(two, module, {"num_processes": 2, **options},
                                monkeypatch, 5)
    assert counts["steps"] == 24
    assert_same(alone.out, two.out, 24)


@pytest.mark.timeout(900)
def test_rl_on_two_nodes_that_lost_one_has_the_losses_of_two_processes_on_one(two_nodes,
                                                                             monkeypatch):
    jobs = rl_jobs(two_nodes)
    launch.launch(jobs[0], "rewarded", tiny_sft.TWO)
    counts = killed_and_resumed(jobs[1], "rewarded", {"num_processes": 2}, monkeypatch, 4)
    assert counts["steps"] == 12
    assert_same(jobs[0].out, jobs[1].out, 12)
    rewards = [[line["reward"] for line in tiny_rl.log(job.out)] for job in jobs]
    assert rewards[0] == rewards[1] and len(set(rewards[0])) > 1
