"""The learning rate that follows a time limit: by the clock where that is ahead of the steps."""

from __future__ import annotations

import json
from itertools import count
from types import SimpleNamespace

import pytest
import tiny_sft
import torch
from safetensors.torch import load_file

from pipeline.config.rl import RlConfig
from pipeline.config.sft import SftConfig
from pipeline.errors import UserError
from pipeline.sft import trainer as sft
from pipeline.train.arguments import check_schedule
from pipeline.train.fit import fit
from pipeline.train.guard import Clock

LINEAR = {"lr_scheduler_type": "linear", "warmup_steps": 2, "max_steps": 24, "learning_rate": 1e-3}
TIMED = {"minutes": 2, "schedule": "minutes"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_sft.build(tmp_path_factory.mktemp("tiny"))


def step_takes(seconds, monkeypatch):
    """A clock that is read at the start of training and after each step."""
    ticks = count(step=seconds)
    monkeypatch.setattr("pipeline.train.guard.time", SimpleNamespace(monotonic=lambda: next(ticks)))


def rates(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["learning_rate"] / 1e-3 for line in lines if "learning_rate" in line]


def same_weights(*folders):
    one, other = (load_file(folder / "model/model.safetensors") for folder in folders)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_rate_warms_up_by_steps_and_falls_to_the_end_of_the_time(tiny, tmp_path, monkeypatch):
    step_takes(20.0, monkeypatch)
    assert sft.train(tiny_sft.job(tiny, tmp_path / "timed", TIMED, **LINEAR))["steps"] == 6
    # Two steps, 40 s, of warm-up; then 80 s are left, and a step takes a quarter of them.
    assert rates(tmp_path / "timed") == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])
    step_takes(20.0, monkeypatch)
    sft.train(tiny_sft.job(tiny, tmp_path / "steps", {"minutes": 2}, **LINEAR))
    assert min(rates(tmp_path / "steps")[2:]) > 0.8     # as planned for 24 steps, of which 6 fit


def test_a_share_of_warm_up_is_one_of_the_time(tiny, tmp_path, monkeypatch):
    step_takes(20.0, monkeypatch)
    sft.train(tiny_sft.job(tiny, tmp_path, TIMED, **LINEAR | {"warmup_steps": 0.5}))
    assert rates(tmp_path) == pytest.approx([0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])


def test_a_run_ahead_of_its_clock_is_the_one_by_steps(tiny, tmp_path, monkeypatch):
    for name, given in (("timed", TIMED), ("steps", {})):
        step_takes(0.5, monkeypatch)
        sft.train(tiny_sft.job(tiny, tmp_path / name, given, **LINEAR | {"max_steps": 8}))
    assert rates(tmp_path / "timed") == rates(tmp_path / "steps")
    assert same_weights(tmp_path / "timed", tmp_path / "steps")


@pytest.mark.parametrize("seconds", [0.5, 20.0])
def test_a_resumed_run_goes_on_with_the_rates_of_one_that_was_not(tiny, tmp_path, monkeypatch,
                                                                  seconds):
    def job(name):
        return tiny_sft.job(tiny, tmp_path / name, TIMED, **LINEAR | {"max_steps": 8},
                            save_steps=1)

    step_takes(seconds, monkeypatch)
    sft.train(job("whole"))
    step_takes(seconds, monkeypatch)
    trainer, guard, tokenizer = sft.make_trainer(job("cut"))
    tiny_sft.break_off(trainer, 4)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, guard, tmp_path / "cut", tokenizer)
    sft.train(job("cut"))
    assert rates(tmp_path / "cut") == rates(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_the_first_processs_clock_sets_the_rate_of_all(monkeypatch):
    monkeypatch.setattr("pipeline.train.guard.broadcast_object_list",
                        lambda values: values.__setitem__(0, 30.0))
    clock = Clock(1.0, "minutes")
    clock.on_optimizer_step(None, None, None)
    clock.planned = 10
    assert clock.place(1) == 5.0


@pytest.mark.parametrize(("section", "given", "said"), [
    (SftConfig, {}, "x.schedule=minutes needs a time limit; set x.minutes"),
    (RlConfig, {"minutes": 1}, "lr_scheduler_type=constant falls with no clock"),
    (RlConfig, {"minutes": 1, "trainer": {"lr_scheduler_type": "linear", "max_steps": 9},
                "phases": [{"trainer": {"lr_scheduler_type": "greedy"}}]}, "greedy falls with no"),
    (SftConfig, {"minutes": 1, "trainer": {"lr_scheduler_type": "reduce_lr_on_plateau"}},
     "plateau falls with no clock; set cosine or linear")])
def test_a_schedule_that_cannot_follow_a_clock_is_refused(section, given, said):
    with pytest.raises(UserError, match=said):
        check_schedule(section.model_validate({"schedule": "minutes", **given}), "x")
