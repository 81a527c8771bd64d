"""A training run that is told to stop saves the step it is at, and goes on from it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_rl
import tiny_sft
import torch

from pipeline.errors import StoppedError
from pipeline.sft import trainer as sft

ROOT = Path(__file__).parents[2]
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


def stopped_at(monkeypatch, kind, step, number):
    """Send this process signal `number` while `kind` makes `step`."""
    make = kind.training_step

    def signalled(self, *args, **kwargs):
        if self.state.global_step + 1 == step:
            signal.raise_signal(number)
        return make(self, *args, **kwargs)

    monkeypatch.setattr(kind, "training_step", signalled)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stopped_sft_saves_its_step_and_goes_on_to_the_same_weights(number, tmp_path,
                                                                      monkeypatch):
    tiny = tiny_sft.build(tmp_path / "tiny")
    whole, cut = (tiny_sft.job(tiny, tmp_path / name, save_steps=100) for name in ("whole", "cut"))
    sft.train(whole)
    handlers = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stopped_at(patch, sft.StudentTrainer, 5, number)
        with pytest.raises(StoppedError, match=r"stopped after step 5 of 8.*\(checkpoint-5\)"):
            sft.train(cut)
    assert signal.getsignal(number) == handlers
    assert not (cut.out / "model").exists() and (cut.out / "checkpoints/checkpoint-5").is_dir()
    assert sft.train(cut)["steps"] == 8
    assert torch.equal(*(tiny_rl.weights(job.out / "model") for job in (whole, cut)))
    logs = [[(line["step"], line.get("loss")) for line in
             map(json.loads, (job.out / "log.jsonl").read_text().splitlines())]
            for job in (whole, cut)]
    assert logs[0] == logs[1]


def test_a_stopped_rl_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    from pipeline.rl.dynamic_sampling import DynamicSamplingTrainer

    start = tiny_rl.build(tmp_path)
    given = {"phases": [{"until_step": 1}, {}], "trainer": {"save_steps": 100}}
    tiny_rl.refined(start, tmp_path / "whole", **given)
    with monkeypatch.context() as patch:
        stopped_at(patch, DynamicSamplingTrainer, 2, signal.SIGTERM)    # of the second phase
        with pytest.raises(StoppedError, match=r"rl: stopped after step 2 of 3"):
            tiny_rl.refined(start, tmp_path / "cut", **given)
    tiny_rl.refined(start, tmp_path / "cut", **given)
    assert torch.equal(*(tiny_rl.weights(tmp_path / name / "model") for name in ("whole", "cut")))


LAUNCH = """
import json, sys
from pipeline.errors import UserError
from pipeline.config.sft import SftJob
from pipeline.train.launch import launch
try:
    launch(SftJob.model_validate_json(sys.argv[1]), "pipeline.sft.trainer", json.loads(sys.argv[2]))
except UserError as error:
    print(error)
    sys.exit(error.code)
"""


@pytest.mark.parametrize("options", [{}, pytest.param(tiny_sft.TWO, marks=pytest.mark.slow)])
def test_launched_processes_save_and_stop_too(options, tmp_path):
    job = tiny_sft.job(tiny_sft.build(tmp_path / "tiny"), tmp_path / "out", num_train_epochs=9999,
                       save_steps=100_000)
    command = [sys.executable, "-c", LAUNCH, job.model_dump_json(), json.dumps(options)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        log = job.out / "log.jsonl"
        while not (log.is_file() and log.read_text()):
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGUSR1)
        said = process.communicate(timeout=200)[0]
    [saved] = (job.out / "checkpoints").glob("checkpoint-*")
    assert process.returncode == 130 and f"({saved.name})" in said
    assert (saved / "whole.json").is_file()
