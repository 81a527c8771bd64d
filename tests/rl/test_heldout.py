"""Held-out accuracy while training: it disturbs nothing, and the best model by it is kept."""

import json
from pathlib import Path

import pytest
import tiny_rl
import torch

from pipeline.errors import UserError
from pipeline.rl.heldout import HeldOut, swap

MEASURED = [0.2, 0.6, 0.6, 0.4]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return tiny_rl.build(tmp_path_factory.mktemp("start"))


def test_measuring_changes_no_weight_and_logs_accuracy_and_length(start, tmp_path):
    for name, every in (("without", 0), ("with", 3)):
        tiny_rl.refined(start, tmp_path / name, held_out=range(6), evaluate_every=every)
    measured, not_measured = (tiny_rl.weights(tmp_path / n / "model") for n in ("with", "without"))
    assert torch.equal(measured, not_measured)
    told = {line["step"]: line for line in tiny_rl.log(tmp_path / "with")}
    assert [step for step in told if "heldout/accuracy" in told[step]] == [3, 4]
    assert 0 < told[4]["heldout/accuracy"] <= 1 and 0 < told[4]["heldout/mean_length"] <= 12


@pytest.mark.parametrize("phases", [[], [{"until_step": 3}, {}]])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_best_model_is_kept_and_handed_on_if_asked(start, tmp_path, monkeypatch, keep, phases):
    values = iter(MEASURED)
    monkeypatch.setattr(HeldOut, "measure", lambda self, seed: (next(values), 5.0))
    tiny_rl.refined(start, tmp_path, held_out=range(2), evaluate_every=1, keep=keep,
                    phases=phases)
    best = tmp_path / "best"
    assert json.loads((best / "heldout.json").read_text())["step"] == 2
    first = tmp_path / "phase-0" if phases else tmp_path
    after_two = tiny_rl.weights(first / "checkpoints/checkpoint-2")
    assert torch.equal(tiny_rl.weights(best), after_two)
    assert torch.equal(tiny_rl.weights(tmp_path / "model"), after_two) == (keep == "best")
    assert (tmp_path / "model/tokenizer.json").is_file()


def test_the_last_model_of_a_run_that_the_clock_ends_is_measured_too(start, tmp_path):
    tiny_rl.refined(start, tmp_path, held_out=range(2), evaluate_every=3, keep="best",
                    minutes=1e-9)
    assert json.loads((tmp_path / "best/heldout.json").read_text())["step"] == 1
    assert "heldout/accuracy" in (tmp_path / "log.jsonl").read_text()


def test_a_best_model_written_whole_but_not_yet_in_place_is_put_there(tmp_path):
    for name in ("best", "best.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "heldout.json").write_text(name)
    swap(tmp_path / "best")
    assert (tmp_path / "best/heldout.json").read_text() == "best.partial"
    (tmp_path / "best.partial").mkdir()
    swap(tmp_path / "best")
    assert (tmp_path / "best/heldout.json").is_file()


def test_the_best_cannot_be_kept_where_none_is_measured():
    from pipeline.config.experiment import Experiment
    from pipeline.config.load import load
    from stages import rl

    default = [Path(__file__).parents[2] / "configs/default.yaml"]
    with pytest.raises(UserError, match=r"rl\.evaluate_every"):
        rl.check(load(Experiment, default, ["rl.keep=best"]))
    with pytest.raises(UserError, match=r"prepare\.held_out"):
        rl.check(load(Experiment, default, ["rl.evaluate_every=5", "prepare.held_out=0"]))
    rl.check(load(Experiment, default, ["rl.evaluate_every=5", "rl.keep=best"]))
