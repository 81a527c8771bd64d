"""Model, traces and report reach a hub whole, private, with true cards, and without any key."""

import json
import os
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.hub import lineage
from pipeline.hub.licences import restrictions
from stages.graph import plans
from stages.push import push
from tests.hub_server import Hub
from tests.made_run import made_run

CONFIG = Path(__file__).parents[2] / "configs/default.yaml"
CANARY = "sk-canary-7f3a9Zq0Jx"
HOME = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_CanaryToken0123",
        "LIMBECK_API_KEY": CANARY}


def finished(folder, *overrides):
    """A finished run under `folder`: every stage's artifact, made up, and its experiment."""
    artifacts = folder / "data/artifacts"
    experiment = load(Experiment, [CONFIG], [f"runtime.artifacts={artifacts}", *overrides])
    given = made_run(folder / "made")
    for name, plan in plans(experiment, "report").items():
        made = given.get(name)
        shutil.copytree(made, plan.folder) if made else plan.folder.mkdir(parents=True)
        counts = {"kept": 200, "traces": 400} if name == "filter" else {"steps": 2}
        (plan.folder / "manifest.json").write_text(json.dumps({
            **plan.ingredients, "key": plan.key, "counts": counts, "seconds": 1.0,
            "finished": 1_790_000_000, "git_commit": "abc123"}))
    chain = {name: plan.folder for name, plan in plans(experiment, "report").items()}
    rows = [{"problem_id": f"t{i}", "problem": f"Make {i}.", "answer": f"{i}+0", "kind": "gym",
             "source": "countdown", "split": "problems", "meta": "{}"} for i in range(100)]
    tables.write(tables.Problem, pl.DataFrame(rows), chain["prepare"] / "problems.parquet")
    path = chain["evaluate"] / "scores.json"
    scores = json.loads(path.read_text())
    scores["rl"]["heldout"]["budgets"] = {"64": {"avg": 0.5, "ci_low": 0.4, "ci_high": 0.6,
                                                 "mean_tokens": 81.2}}
    path.write_text(json.dumps(scores))
    model = chain["rl"] / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    for part in (1, 2):
        (model / f"model-{part}.safetensors").write_bytes(os.urandom(300_000))
    (chain["report"] / "report.html").write_text("<html>")
    (chain["report"] / "numbers.json").write_text("{}")
    return experiment, chain


def hasty(folder):
    """The environment of a process for which every wait, so the hub library's, is 10 ms long."""
    (folder / "sitecustomize.py").write_text(
        "import time\nsleep = time.sleep\ntime.sleep = lambda seconds: sleep(min(seconds, 0.01))\n")
    return {**HOME, "PYTHONPATH": os.pathsep.join([str(folder), str(CONFIG.parents[1])])}


def front_matter(text):
    return yaml.safe_load(text.decode().split("---\n")[1])


def test_a_push_is_whole_private_and_true(limbeck, tmp_path):
    _, chain = finished(tmp_path)
    with Hub() as hub:
        said = limbeck("push", "student", **HOME, HF_ENDPOINT=hub.url).stdout
    model, data = (hub.repositories[kind, name] for kind, name in (
        ("model", "me/student"), ("dataset", "me/student-traces")))
    assert "model: " + hub.url + "/me/student (private" in said
    assert model["private"] and data["private"]
    assert {"config.json", "model-1.safetensors", "lineage.json", "report.html",
            "scores.json", "README.md"} <= set(model["files"])
    assert model["files"]["model-2.safetensors"] == \
        (chain["rl"] / "model/model-2.safetensors").read_bytes()
    scores = json.loads((chain["evaluate"] / "scores.json").read_text())["rl"]["heldout"]
    [result] = front_matter(model["files"]["README.md"])["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == scores["avg"]
    assert result["metrics"][0]["args"]["ci_low"] == scores["ci_low"]
    assert f"| {scores['avg']} | {scores['ci_low']} to {scores['ci_high']} |" in \
        model["files"]["README.md"].decode()
    assert "| heldout | 64 | 0.5 | 0.4 to 0.6 | 81 |" in model["files"]["README.md"].decode()
    assert json.loads(model["files"]["scores.json"])["heldout"] == scores
    (tmp_path / "kept.parquet").write_bytes(data["files"]["data/train.parquet"])
    kept = pl.read_parquet(tmp_path / "kept.parquet")
    judged = pl.read_parquet(chain["filter"] / "judged.parquet").filter("kept")
    assert len(kept) == len(judged)
    assert {"problem", "thinking", "verdict", "grader", "pass_rate", "teacher"} <= set(kept.columns)
    card = data["files"]["README.md"].decode()
    counts = pl.read_parquet(chain["filter"] / "judged.parquet")["verdict"].value_counts(sort=True)
    assert ", ".join(f"{count:,} {name}" for name, count in counts.iter_rows()) in card
    assert "supervised fine-tuning and reinforcement" in model["files"]["README.md"].decode()
    everything = b"".join(file for one in (model, data) for file in one["files"].values())
    assert CANARY.encode() not in everything and b"hf_CanaryToken" not in everything
    assert str(tmp_path).encode() not in everything


def test_a_cut_connection_is_tried_again_and_nothing_is_sent_twice(limbeck, tmp_path):
    finished(tmp_path)
    with Hub(cuts=1) as hub:
        said = limbeck("push", "student", "--only", "model", **hasty(tmp_path),
                       HF_ENDPOINT=hub.url)
    files = hub.repositories["model", "me/student"]["files"]
    assert hub.cuts == 0 and hub.sent == [300_000, 300_000]
    assert len([name for name in files if name.endswith(".safetensors")]) == 2
    assert "Traceback" not in said.stderr


def test_after_a_push_that_broke_off_the_same_command_sends_only_the_rest(limbeck, tmp_path):
    finished(tmp_path)
    with Hub(cuts=99) as hub:
        asked = ("push", "student", "--only", "model")
        said = limbeck(*asked, code=2, **hasty(tmp_path), HF_ENDPOINT=hub.url).stderr
        assert "run the same command again: what arrived is not sent again" in said
        assert hub.sent == [300_000] and not hub.repositories["model", "me/student"]["files"]
        hub.cuts = 0
        limbeck(*asked, **HOME, HF_ENDPOINT=hub.url)
    assert hub.sent == [300_000, 300_000]       # the first blob was not sent again
    assert len(hub.repositories["model", "me/student"]["files"]) >= 5


def test_a_public_repository_is_not_pushed_to_unasked(limbeck, tmp_path):
    finished(tmp_path)
    with Hub() as hub:
        hub.repositories["model", "me/student"] = {"private": False, "files": {}}
        said = limbeck("push", "student", "--only", "model", code=2, **HOME, HF_ENDPOINT=hub.url)
        assert "is there already and public; give --public" in said.stderr
        assert not hub.repositories["model", "me/student"]["files"]


def test_a_key_in_any_file_stops_the_push(tmp_path, monkeypatch):
    experiment, chain = finished(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    given = {"model": "rl", "private": True, "accepted": False, "out": tmp_path / "out"}
    (chain["rl"] / "model/notes.txt").write_text(f"key={CANARY}")
    with pytest.raises(UserError, match=r"notes.txt holds an API key .* nothing is pushed"):
        push(experiment, "student", ["model"], **given)
    judged = pl.read_parquet(chain["filter"] / "judged.parquet")
    judged.with_columns(thinking=pl.lit(f"I use {CANARY}")).write_parquet(
        chain["filter"] / "judged.parquet")
    with pytest.raises(UserError, match=r"the table of kept traces .* holds an API key"):
        push(experiment, "student", ["data"], **given)
    assert not (tmp_path / "out").exists()


def test_files_of_another_push_are_not_left_beside_this_one(tmp_path):
    experiment, _ = finished(tmp_path)
    given = {"model": "rl", "private": True, "accepted": False, "out": tmp_path / "out"}
    for _ in range(2):
        push(experiment, "student", ["model"], **given)
    (tmp_path / "out/student/old.safetensors").touch()
    with pytest.raises(UserError, match=r"holds old\.safetensors, .*or give another --out"):
        push(experiment, "student", ["model"], **given)


def test_secrets_of_a_config_are_left_out_of_the_lineage():
    config = {"trainer": {"hub_token": CANARY, "max_steps": 3}, "list": [{"api_key": CANARY}]}
    assert lineage.without_secrets(config) == {
        "trainer": {"hub_token": "(left out)", "max_steps": 3}, "list": [{"api_key": "(left out)"}]}


def test_what_a_licence_forbids_is_said_and_needs_a_flag(tmp_path, capsys):
    experiment, _ = finished(tmp_path, "generate.teacher={type: openai, model: gpt-4.1}",
                             "student.model=meta-llama/Llama-3.2-1B", "evaluate.models=[rl]")
    given = {"model": "rl", "private": True, "out": tmp_path / "out"}
    with pytest.raises(UserError, match="give --accept"):
        push(experiment, "student", ["model"], accepted=False, **given)
    assert "terms forbid training competing models" in capsys.readouterr().err
    push(experiment, "student", ["model"], accepted=True, **given)
    card = (tmp_path / "out/student/README.md").read_text()
    assert "name begin with Llama" in card and "gpt-4.1" in card
    assert restrictions("solver", "tiny", ["aime2024"], True) and not \
        restrictions("solver", "tiny", ["aime2024", "openai/gsm8k"], False)


def test_lineage_survives_a_move_and_is_read_back(limbeck, tmp_path):
    _, chain = finished(tmp_path)
    lineage.write(chain["rl"])
    moved = tmp_path / "elsewhere"
    shutil.move(chain["rl"] / "model", moved)
    shutil.rmtree(chain["prepare"].parent)
    told = json.loads(limbeck("lineage", moved, "--json").stdout)
    assert list(told)[-1] == "rl" and {"prepare", "generate", "filter", "sft"} <= set(told)
    assert told["rl"]["inputs"]["sft"] == told["sft"]["key"]
    assert told["rl"]["key"] in limbeck("lineage", moved).stdout
    said = limbeck("lineage", tmp_path, code=2).stderr
    assert "has no lineage.json and no manifest.json" in said


def test_what_is_not_made_is_named(tmp_path):
    experiment = load(Experiment, [CONFIG], [f"runtime.artifacts={tmp_path}"])
    with pytest.raises(UserError, match="is not made yet for this config; run `limbeck"):
        push(experiment, "x", ["model"], model="rl", private=True, accepted=False, out=None)


def test_a_lineage_written_before_its_folder_is_whole_has_the_finished_name(tmp_path):
    for name, inputs in (("rl-aaa", {}), ("rl-bbb.partial", {"rl-aaa": "aaa"})):
        manifest = {"stage": "rl", "key": name[3:6], "inputs": inputs, "counts": {}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    assert list(lineage.chain(tmp_path / "rl-bbb.partial")) == ["rl", "rl-bbb"]
