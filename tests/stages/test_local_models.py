"""A local model folder that is changed in place, and a lower limit over longer traces, are seen."""

import json
import os
from pathlib import Path

import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from stages.generate import summary
from stages.graph import plans
from stages.make import _why

CONFIG = Path(__file__).resolve().parents[2] / "configs/default.yaml"
ONLINE = "sft.method={type: logits, source: {type: online, teacher: %s}}"


def key(stage, *overrides):
    return plans(load(Experiment, [CONFIG], overrides), stage)[stage].key


@pytest.mark.parametrize(("stage", "setting"), [
    ("student", "student.model=%s"), ("evaluate", "student.model=%s"),
    ("logits", "logits.teacher=%s"), ("rl", "rl.start=%s"), ("sft", ONLINE),
    ("sft", "sft.method={type: on_policy, teacher: %s}"),
    ("rl", "rl.process={type: local, model: %s}")])
def test_a_model_folder_changed_in_place_gives_another_key(stage, setting, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.stage.LARGE_FILE", 100)
    given = setting % tmp_path
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(200))
    keys = [key(stage, given)]
    os.utime(tmp_path / "config.json")      # a small file counts by its content
    assert key(stage, given) == keys[0]
    os.utime(weights, ns=(0, 1))
    keys.append(key(stage, given))
    weights.write_bytes(bytes(201))
    os.utime(weights, ns=(0, 1))
    keys.append(key(stage, given))
    (tmp_path / "config.json").write_text("{ }")
    keys.append(key(stage, given))
    (tmp_path / "tokenizer.json").write_text("{}")
    keys.append(key(stage, given))
    assert len(set(keys)) == len(keys)


def test_the_changed_folder_is_named_as_the_reason(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    experiment = load(Experiment, [CONFIG], [f"rl.start={tmp_path}",
                                             f"runtime.artifacts={tmp_path}/made"])
    made = plans(experiment, "rl")["rl"]
    made.folder.mkdir(parents=True)
    (made.folder / "manifest.json").write_text(json.dumps({**made.ingredients, "counts": {}}))
    (tmp_path / "config.json").write_text("{ }")
    chain = plans(experiment, "rl")
    assert _why(chain["rl"], chain) == str(tmp_path)


def test_longer_traces_under_a_lowered_limit_are_said(limbeck):
    asked = ("generate", "prepare.limit=20", "prepare.held_out=0", "generate.samples=2")
    limbeck(*asked)
    said = limbeck(*asked, "generate.sampling.max_tokens=40").stderr
    assert "longer than generate.sampling.max_tokens" in said and "kept whole" in said
    fresh = limbeck(*asked, "generate.sampling.max_tokens=40", "runtime.traces=other",
                    "runtime.artifacts=elsewhere").stderr
    assert "kept whole" not in fresh
    counts = {"traces": 1, "asked": 0, "reused": 1, "failed": 0, "cut_off": 0, "cost_usd": 0.0}
    assert "kept whole" not in summary(counts)
