"""Several processes and several people on one artifacts folder: waiting, reading, looking."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from pipeline import stage as stages
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import LockedError, UserError
from pipeline.teacher.store import TraceStore
from stages.graph import STAGES, plans
from stages.make import make
from stages.runs import show_runs

CONFIG = Path(__file__).resolve().parents[2] / "configs/default.yaml"


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
        with FileLock(f"{plan.folder}.lock"):
            held.set()
            go.wait(20)
            time.sleep(0.2)
            plan.folder.mkdir()
            (plan.folder / "manifest.json").write_text(json.dumps(
                {**plan.ingredients, "counts": {}, "seconds": 1.0, "by": "another"}))

    other = threading.Thread(target=another)
    other.start()
    assert held.wait(20)
    with pytest.raises(UserError, match="--wait waits for it"):
        make(made, "prepare")
    go.set()
    make(made, "prepare", wait=True)
    other.join()
    assert plan.manifest["by"] == "another" and "waiting for it" in capsys.readouterr().err


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
    with TraceStore(Path("traces")).writing(), pytest.raises(LockedError), \
            TraceStore(Path("traces")).writing():
        pass


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
