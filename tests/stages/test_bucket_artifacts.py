"""Artifacts in an object store: made once, whole or not at all, found from every machine."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import shared_artifacts
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.objects import bucket_of
from stages.graph import STAGES, plans
from stages.make import make, plan_rows
from tests.bucket_server import bucket_server
from tests.conftest import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/default.yaml"
PLACES = ("runtime.artifacts=s3://group/made", "runtime.traces=s3://group/traces")


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with bucket_server(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def made(monkeypatch):
    """The stages that ran, of two that write a table and a file of 12 MB."""
    ran = []

    def run(experiment, inputs, out):
        ran.append(out.name.partition("-")[0])
        assert all((folder / "part" / "table.txt").read_text() for folder in inputs.values())
        (out / "part").mkdir()
        (out / "part" / "table.txt").write_text("rows")
        (out / "checkpoints" / "checkpoint-3").mkdir(parents=True)
        (out / "checkpoints" / "checkpoint-3" / "state").write_text("s")
        (out / "weights").write_bytes(bytes(12 << 20))
        return {}

    for name in ("prepare", "generate"):
        monkeypatch.setitem(STAGES, name, replace(STAGES[name], load=lambda: SimpleNamespace(
            run=run, summary=lambda counts: "made")))
    return ran


def experiment(patch, machine, *overrides):
    """The experiment on the machine of that name."""
    patch.setenv("XDG_CACHE_HOME", str(Path.cwd() / machine))
    shared_artifacts._listed.cache_clear()       # as a process of its own
    return load(Experiment, [CONFIG], [*PLACES, *overrides])


def test_what_one_machine_made_another_finds_and_fetches_once_where_it_is_needed(
        server, made, monkeypatch):
    first = experiment(monkeypatch, "first")
    make(first, "prepare")
    plan = plans(first, "prepare")["prepare"]
    second = experiment(monkeypatch, "second")
    states = {row["stage"]: row["state"] for row in plan_rows(second)}
    assert states["prepare"] == "cached" and states["generate"] == "would run"
    there = plans(second, "generate")
    assert not there["prepare"].folder.exists() and there["prepare"].key == plan.key
    make(second, "generate")
    assert made == ["prepare", "generate"]
    fetched = there["prepare"].folder
    assert {path.relative_to(fetched).as_posix() for path in fetched.rglob("*")} == {
        "part", "part/table.txt", "weights", "manifest.json"}       # checkpoints stay
    assert (fetched / "weights").stat().st_size == 12 << 20
    gets = [call for call in server.calls if call == ("GET", f"/group/made/{fetched.name}/weights")]
    make(experiment(monkeypatch, "second", "generate.samples=5"), "generate")
    assert made == ["prepare", "generate", "generate"] and gets == [
        call for call in server.calls if call == gets[0]]
    assert plans(load(Experiment, [CONFIG], []), "generate")["generate"].key == \
        there["generate"].key            # no key changes with the place


def test_an_upload_that_breaks_off_is_made_whole_by_the_next_run(server, made, monkeypatch):
    first = experiment(monkeypatch, "first")
    server.refuse = lambda method, path: method == "PUT" and path.endswith("manifest.json")
    with pytest.raises(UserError, match=r"cannot be reached.*made is kept here"):
        make(first, "prepare")
    name = plans(first, "prepare")["prepare"].folder.name
    bucket = bucket_of(first.runtime.artifacts)
    assert name in bucket.names()        # in part
    server.refuse = lambda method, path: False
    second = experiment(monkeypatch, "second")
    assert plans(second, "prepare")["prepare"].manifest is None
    make(experiment(monkeypatch, "first"), "prepare")
    assert made == ["prepare"]
    assert plans(experiment(monkeypatch, "second"), "prepare")["prepare"].manifest["counts"] == {}
    bucket.delete([f"{name}/manifest.json", f"{name}/weights"])      # its maker is gone for good
    bucket.put(f"{name}/left", b"by the half")
    shutil.rmtree("second")
    make(experiment(monkeypatch, "second"), "prepare")
    assert made == ["prepare"] * 2 and sorted(bucket_of(bucket.folder / name).names()) == [
        "manifest.json", "part", "weights"]


def test_a_download_that_breaks_off_leaves_nothing_that_looks_whole(server, made, monkeypatch):
    make(experiment(monkeypatch, "first"), "prepare")
    plan = plans(experiment(monkeypatch, "second"), "prepare")["prepare"]
    server.refuse = lambda method, path: path.endswith("/weights")
    with pytest.raises(UserError, match="cannot be reached"):
        plan.fetched()
    assert not plan.folder.exists() and plan.manifest is not None
    server.refuse = lambda method, path: False
    assert (plan.fetched() / "weights").is_file()


def test_a_bucket_that_is_not_there_is_named_by_plan(server, monkeypatch):
    with pytest.raises(UserError, match="no bucket for s3://nowhere/made"):
        plan_rows(experiment(monkeypatch, "first", "runtime.artifacts=s3://nowhere/made"))
    with pytest.raises(UserError, match="no bucket for s3://nowhere/traces"):
        make(experiment(monkeypatch, "first", "runtime.traces=s3://nowhere/traces"), "prepare")


MAKER = """
from pipeline import heartbeat
from pipeline.objects import local_copy
from tests.bucket_server import join
from tests.stages.one_stage import made
join()
heartbeat.BEAT = 0.2
plan = made(local_copy("s3://group/made").joinpath)
print((plan.fetched() / "by.txt").read_text(), flush=True)
"""


@pytest.fixture
def machine(server, tmp_path):
    """Start a process on a machine of its own, that makes the one stage there is."""
    with ExitStack() as running:
        def start(name):
            return running.enter_context(subprocess.Popen(
                [sys.executable, "-c", MAKER, name], stdin=subprocess.PIPE, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={
                    **os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / name)}))

        yield start


def test_two_machines_that_want_the_same_make_it_once_and_one_that_dies_is_replaced(machine):
    first = machine("aa")
    assert first.stdout.readline() == "making\n"
    second = machine("bb")
    assert f"process {first.pid} on" in second.stderr.readline()
    first.kill()
    assert second.stdout.readline() == "making\n"
    third = machine("cc")
    said = third.stderr.readline()
    assert f"process {second.pid} on" in said and "delete s3://group/made/.leases/alive/" in said
    assert second.communicate("go\n", timeout=PATIENCE)[0] == "bb\nbb\n"
    assert third.communicate(timeout=PATIENCE)[0] == "bb\nbb\n"    # it made nothing, and fetched


def test_the_manifests_of_the_bucket_are_listed_by_runs(server, made, monkeypatch, capsys):
    from stages.runs import show_runs

    make(experiment(monkeypatch, "first"), "prepare")
    second = experiment(monkeypatch, "second")
    capsys.readouterr()
    show_runs(second.runtime.folders(), set(), as_json=True)
    assert [row["stage"] for row in json.loads(capsys.readouterr().out)] == ["prepare"]
