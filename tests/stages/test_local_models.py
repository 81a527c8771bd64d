"""A local model folder that is changed in place, and a lower limit over longer traces, are seen."""

import json
import os
import re
from pathlib import Path

import polars as pl
import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
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


@pytest.mark.parametrize("override", [
    "sft.report_to=[wandb]", "rl.report_to=[trackio]", "rl.trainer.report_to=[wandb]",
    "rl.trainer.run_name=mine", "sft.trainer={run_name: mine, project: ours}"])
def test_where_curves_are_shown_changes_no_key_and_is_told_to_the_trainer(override):
    before, after = (load(Experiment, [CONFIG], given) for given in ((), (override,)))
    keys = [[plan.key for plan in plans(one, "report").values()] for one in (before, after)]
    assert keys[0] == keys[1]
    section = override.partition(".")[0]
    told = type(getattr(after, section)).model_validate_json(
        getattr(after, section).model_dump_json(context="everything"))
    assert told == getattr(after, section) != getattr(before, section)


def test_a_launched_process_is_told_where_its_curves_go(tmp_path, monkeypatch):
    from pipeline.config.sft import SftConfig, SftJob
    from pipeline.train import launch

    monkeypatch.setattr(launch, "run", lambda *_: (tmp_path / "counts.json").write_text("{}") and 0)
    job = SftJob(sft=SftConfig(report_to=["wandb"]), model="m", tokenizer=tmp_path, rows=tmp_path,
                 out=tmp_path)
    launch.launch(job, "module", {})
    assert SftJob.model_validate_json((tmp_path / "job.json").read_text()) == job


def test_longer_traces_under_a_lowered_limit_are_cut_as_if_asked_under_it(limbeck, tmp_path):
    asked = ("generate", "prepare.limit=20", "prepare.held_out=0", "generate.samples=2")
    limbeck(*asked)
    said = limbeck(*asked, "generate.sampling.max_tokens=40").stderr
    cut = int(re.search(r"(\d+) traces were asked under a higher limit; they are cut", said)[1])
    assert "(0 asked, 40 reused, 0 failed" in said and f"{cut} cut off" in said and cut > 5
    tables = {path.parent.name: pl.read_parquet(path)
              for path in tmp_path.glob("data/artifacts/generate-*/traces.parquet")}
    (short, whole) = sorted(tables.values(), key=lambda table: table["completion_tokens"].max())
    assert short["completion_tokens"].max() == 40 < whole["completion_tokens"].max()
    both = short.join(whole, on=["problem_id", "sample"], suffix="_whole")
    assert both["cost_usd"].equals(both["cost_usd_whole"], check_names=False)
    for row in both.iter_rows(named=True):
        text, before = (row["thinking" + of] + row["answer" + of] for of in ("", "_whole"))
        over = row["completion_tokens_whole"] > 40
        assert before.startswith(text) and (len(text) < len(before)) == over
        assert (row["finish_reason"] == "length", row["complete"]) == (over, not over)
    fresh = limbeck(*asked, "generate.sampling.max_tokens=40", "runtime.traces=other",
                    "runtime.artifacts=elsewhere").stderr
    assert "higher limit" not in fresh
