"""Several processes and several people on one artifacts folder: waiting, reading, looking."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import stage as stages
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import LockedError, UserError
from stages.graph import STAGES, plans
from stages.make import make
from stages.runs import show_runs
from tests.conftest import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/default.yaml"


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """Stages that write nothing, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "WAIT_SECONDS", 0.02)
    monkeypatch.setattr("stages.make.WAIT_SECONDS", 0.02)
    for name in ("prepare", "generate"):
        monkeypatch.setitem(STAGES, name, replace(STAGES[name], load=lambda: SimpleNamespace(
            run=lambda *_: {}, summary=lambda counts: "made")))


def experiment(*overrides):
    return load(Experiment, [CONFIG], overrides)


def test_a_stage_that_another_process_makes_is_waited_for_and_taken(capsys):
    made = experiment()
    plan = plans(made, "prepare")["prepare"]
    plan.folder.parent.mkdir(parents=True)
    held, go = threading.Event(), threading.Event()

    def another():
        with stages.leases_in(plan.folder.parent) as leases:
            leases.take([plan.folder.name])
            held.set()
            while not go.wait(0.01) and "waiting for it" not in sys.stderr.getvalue():
                pass
            plan.folder.mkdir()
            (plan.folder / "manifest.json").write_text(json.dumps(
                {**plan.ingredients, "counts": {}, "seconds": 1.0, "by": "another"}))

    other = threading.Thread(target=another)
    other.start()
    assert held.wait(PATIENCE)
    with pytest.raises(UserError, match="--wait waits for it"):
        make(made, "prepare")
    try:
        make(made, "prepare", wait=True)
    finally:
        go.set()
        other.join()
    assert plan.manifest["by"] == "another" and "waiting for it" in capsys.readouterr().err


MAKER = """
import sys
from pathlib import Path
from pipeline import heartbeat
from tests.stages.one_stage import made
heartbeat.BEAT, heartbeat.machine = 0.05, lambda: sys.argv[1]
made(Path("made").joinpath, resumable=True)
"""


@pytest.fixture
def node():
    """Start a process on a node of its own name that makes the one stage there is."""
    with ExitStack() as running:
        def start(name):
            return running.enter_context(subprocess.Popen(
                [sys.executable, "-c", MAKER, name], env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

        yield start


def test_two_nodes_that_want_the_same_make_it_once(node):
    first = node("aa")
    assert first.stdout.readline() == "making\n"
    second = node("bb")
    said = second.stderr.readline()
    assert f"process {first.pid} on" in said and "since 20" in said and "waiting for it" in said
    first.communicate("go\n", timeout=PATIENCE)
    assert second.communicate(timeout=PATIENCE)[0] == "aa\n"        # it made nothing
    assert not list(Path("made").glob("*.partial"))


def test_a_node_goes_on_where_another_died_or_was_broken_off(node):
    first = node("aa")
    assert first.stdout.readline() == "making\n"
    second = node("bb")
    assert "waiting for it" in second.stderr.readline()
    first.kill()
    assert second.stdout.readline() == "making\n"
    third = node("cc")
    broken = re.search(r"delete (\S+);", third.stderr.readline())[1]
    Path(broken).unlink()
    assert third.stdout.readline() == "making\n"
    for process, said in ((third, "cc\n"), (second, "")):
        assert process.communicate("go\n", timeout=PATIENCE)[0] == said
    assert second.returncode != 0
    assert next(Path("made").glob("*/by.txt")).read_text() == "cc"


def test_a_file_system_without_rename_is_named_before_any_work(monkeypatch):
    def refused(path, target):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(UserError, match=r"renames no folder \(Function not implemented\).*runtime"):
        make(experiment("runtime.artifacts=bucket"), "prepare")
    assert [path.name for path in Path("bucket").iterdir()] == []


def test_without_hard_links_one_makes_at_a_time_and_without_locks_too_it_is_said(monkeypatch):
    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    make(experiment("runtime.artifacts=linkless"), "prepare")
    with stages.leases_in(Path("linkless")) as leases:
        leases.take(["another"])
        with pytest.raises(LockedError, match="no hard links"):
            make(experiment("runtime.artifacts=linkless", "seed=1"), "prepare")
    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(UserError, match="neither hard links nor locks"):
        make(experiment("runtime.artifacts=bare"), "prepare")


def test_a_trace_store_that_another_run_writes_to_is_waited_for(monkeypatch, capsys):
    asked = []

    def generate(experiment, *_):
        asked.append(1)
        if len(asked) < 3:
            raise LockedError("another run is writing to the trace store")
        return {}

    monkeypatch.setitem(STAGES, "generate", replace(STAGES["generate"], load=lambda:
                        SimpleNamespace(run=generate, summary=lambda counts: "made")))
    with pytest.raises(LockedError):
        make(experiment(), "generate")
    make(experiment(), "generate", wait=True)
    assert len(asked) == 3 and capsys.readouterr().err.count("waiting for it") == 1


def test_what_the_group_has_made_is_read_and_what_is_new_is_written_to_the_first_folder():
    make(experiment("runtime.artifacts=group"), "generate")
    before = {path: path.stat().st_mtime_ns for path in Path("group").rglob("*")}
    both = experiment("runtime.artifacts=[own, group]")
    assert {plan.folder.parent.name for plan in plans(both, "generate").values()} == {"group"}
    make(both, "generate")
    assert not Path("own").exists()
    changed = experiment("runtime.artifacts=[own, group]", "generate.samples=7")
    make(changed, "generate")
    assert [path.name for path in Path("own").glob("*-*/")] == [
        plans(changed, "generate")["generate"].folder.name]
    assert {path: path.stat().st_mtime_ns for path in Path("group").rglob("*")} == before
    with pytest.raises(UserError, match=r"runtime\.artifacts"):
        experiment("runtime.artifacts=[]")


def test_runs_lists_what_is_made_and_the_settings_that_differ(capsys):
    made = experiment("name=first")
    make(made, "generate")
    make(experiment("name=second", "generate.samples=7", "generate.sampling.top_p=0.9"), "generate")
    current = {plan.folder.name for plan in plans(made, "generate").values()}
    capsys.readouterr()
    show_runs([Path("data/artifacts")], current, as_json=True)
    rows = {(row["stage"], row["experiment"]): row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {("prepare", "first"), ("generate", "first"), ("generate", "second")}
    first, second = rows["generate", "first"], rows["generate", "second"]
    assert second["settings"] == {"generate.samples": 7, "generate.sampling.top_p": 0.9}
    assert first["settings"] == {"generate.samples": 24, "generate.sampling.top_p": None}
    assert first["current"] and not second["current"] and first["inputs"] == {}
    show_runs([Path("data/artifacts")], current)
    assert "generate.samples=7" in " ".join(capsys.readouterr().out.split())
    show_runs([Path("nowhere")], set())
    assert "nothing is made yet in nowhere" in capsys.readouterr().out
