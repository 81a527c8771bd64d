"""Stages: keys move with what they are made of, folders are whole or not there."""

import errno
import json
import os
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import Config, load
from pipeline.errors import LockedError, UserError
from pipeline.stage import Stage, execute, leases_in, make_plan
from stages.graph import STAGES, plans
from stages.make import _why, make, plan_of

ROOT = Path(__file__).resolve().parents[2]


class Section(Config):
    """A stage's section."""

    value: int = 1
    """Anything."""


class Whole(Config):
    """An experiment with one stage and a runtime."""

    seed: int = 0
    one: Section = Section()
    runtime: Section = Section()


def write_value(experiment, inputs, out: Path):
    (out / "value.txt").write_text(str(experiment.one.value))
    return {"value": experiment.one.value}


def one(run, **facts):
    """A stage that runs `run`."""
    return Stage("one", lambda: SimpleNamespace(run=run), **facts)


ONE = one(write_value)


def plan(experiment=None, stage=ONE, root=Path("artifacts"), inputs=None):
    return make_plan(stage, experiment or Whole(), inputs or {}, root.joinpath)


def test_the_key_moves_with_config_seed_version_inputs_and_files_and_with_nothing_else(tmp_path):
    file = tmp_path / "prompt.jinja"
    file.write_text("a")
    reading = one(write_value, files=lambda e: (file,))
    before = plan(stage=reading).key
    file.write_text("b")
    newer = one(write_value, version=2)
    keys = [plan().key, before, plan(stage=reading).key, plan(Whole(seed=1)).key,
            plan(Whole(one=Section(value=2))).key, plan(stage=newer).key,
            plan(inputs={"zero": plan()}).key]
    assert len(set(keys)) == len(keys)
    assert plan(Whole(runtime=Section(value=9))).key == plan().key
    assert plan(root=Path("elsewhere")).key == plan().key


def test_another_name_remakes_the_report_that_shows_it_and_nothing_else(tmp_path):
    default = [ROOT / "configs/default.yaml"]
    before, after = (plans(load(Experiment, default, [f"runtime.artifacts={tmp_path}", *more]),
                           "report") for more in ((), ("name=another",)))
    assert [name for name in before if before[name].key != after[name].key] == ["report"]
    before["report"].folder.mkdir()
    (before["report"].folder / "manifest.json").write_text(
        json.dumps({**before["report"].ingredients, "counts": {}}))
    assert _why(after["report"], after) == "name"


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.jinja does not exist"):
        plan(stage=one(write_value, files=lambda e: (Path("nowhere.jinja"),)))


def test_a_finished_stage_has_its_output_and_a_manifest(tmp_path):
    made = plan(root=tmp_path)
    execute(made, Whole(), {}, {"git_commit": "abc"})
    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert (made.folder / "value.txt").read_text() == "1"
    assert manifest["counts"] == {"value": 1} and manifest["key"] == made.key
    assert manifest["config"] == {"value": 1} and manifest["git_commit"] == "abc"


@pytest.mark.parametrize("text", ["", "{}", '{"stage": "one", "coun', "null", "\0\0"])
def test_a_damaged_manifest_names_its_folder_and_is_passed_over_beside_a_whole_one(text, tmp_path):
    made, other = plan(root=tmp_path), plan(Whole(one=Section(value=2)), root=tmp_path)
    execute(made, Whole(), {}, {})
    sibling = plan(Whole(seed=1), root=tmp_path)
    assert _why(sibling, {}) == "seed"
    execute(other, Whole(one=Section(value=2)), {}, {})
    (other.folder / "manifest.json").write_text(text)
    os.utime(made.folder / "manifest.json", (0, 0))     # the damaged one is the newer
    with pytest.raises(UserError, match=rf"{other.key} is damaged.*delete"):
        _ = other.manifest
    assert _why(sibling, {}) == "seed"
    (made.folder / "manifest.json").write_text(text)
    assert _why(sibling, {}) == "never made"


def test_a_stage_that_fails_leaves_no_finished_folder_and_runs_again(tmp_path):
    def fail(experiment, inputs, out):
        (out / "half.txt").write_text("half")
        raise RuntimeError

    broken = plan(stage=one(fail), root=tmp_path)
    with pytest.raises(RuntimeError):
        execute(broken, Whole(), {}, {})
    assert broken.manifest is None and not broken.folder.exists()
    execute(plan(root=tmp_path), Whole(), {}, {})
    assert not (broken.folder / "half.txt").exists()


def test_only_a_resumable_stage_sees_what_an_interrupted_run_left(tmp_path):
    for resumable in (False, True):
        def run(experiment, inputs, out, resumable=resumable):
            assert (out / "half.txt").exists() == resumable
            return {}

        made = plan(stage=one(run, resumable=resumable), root=tmp_path / str(resumable))
        partial = made.folder.with_name(made.folder.name + ".partial")
        partial.mkdir(parents=True)
        (partial / "half.txt").touch()
        execute(made, Whole(), {}, {})


def test_a_second_process_making_the_same_artifact_is_refused(tmp_path):
    made = plan(root=tmp_path)
    with leases_in(tmp_path) as other:
        other.take([made.folder.name])
        with pytest.raises(LockedError, match=f"process {os.getpid()} on .* makes {made.folder}"):
            execute(made, Whole(), {}, {})
    execute(made, Whole(), {}, {})


def test_what_another_process_has_made_meanwhile_is_taken_as_it_is(tmp_path):
    runs = []
    made = plan(stage=one(lambda *given: {"run": runs.append(1) or len(runs)}),
                root=tmp_path)
    assert [execute(made, Whole(), {}, {})["counts"]["run"] for _ in range(2)] == [1, 1]
    assert runs == [1]


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded"),
    pl.exceptions.ComputeError("parquet: underlying IO error: No space left (os error 28)")])
def test_a_full_disk_is_one_sentence_that_names_the_folder(error, tmp_path, monkeypatch):
    def full(experiment, inputs, out):
        raise error

    given = [f"runtime.artifacts={tmp_path}"]
    experiment = load(Experiment, [ROOT / "configs/default.yaml"], given)
    monkeypatch.setitem(STAGES, "prepare", replace(
        STAGES["prepare"], load=lambda: SimpleNamespace(run=full)))
    with pytest.raises(UserError, match=rf"no space is left for {tmp_path}/prepare-.*; free some"):
        make(experiment, "prepare")
    monkeypatch.setitem(STAGES, "prepare", replace(
        STAGES["prepare"], load=lambda: SimpleNamespace(run=lambda *_: 1 / 0)))
    with pytest.raises(ZeroDivisionError):
        make(experiment, "prepare")


def test_the_last_line_is_of_the_stage_asked_for_even_where_only_one_before_it_was_gone(
        tmp_path, monkeypatch, capsys):
    given = [f"runtime.artifacts={tmp_path}"]
    experiment = load(Experiment, [ROOT / "configs/default.yaml"], given)
    for name in ("prepare", "generate"):
        monkeypatch.setitem(STAGES, name, replace(
            STAGES[name], load=lambda: SimpleNamespace(run=lambda *_: {}, summary=str)))
    make(experiment, "generate")
    plans(experiment, "generate")["prepare"].folder.joinpath("manifest.json").unlink()
    plans(experiment, "generate")["prepare"].folder.rmdir()
    make(experiment, "generate", ["a=1"])
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["prepare", "generate"] * 2
    assert "already made" in lines[-1] and lines[-1].endswith("next: limbeck filter a=1")


def test_a_new_stage_is_a_module_and_a_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "counting.py").write_text("""
def run(experiment, inputs, out):
    lines = (inputs["prepare"] / "problems.parquet").stat().st_size > 0
    (out / "counted.txt").write_text(str(lines))
    return {"counted": 1}

def summary(counts):
    return f"{counts['counted']} table counted"
""")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(STAGES, "counting", Stage(
        "counting", partial(import_module, "counting"), help="Count tables.", next="generate",
        needs=lambda e: ("prepare",)))
    experiment = load(Experiment, [ROOT / "configs/default.yaml"],
                      [f"runtime.artifacts={tmp_path}", "prepare.limit=12", "prepare.held_out=4"])
    make(experiment, "counting", [])
    assert "counting: 1 table counted" in (said := capsys.readouterr().err)
    assert "next: limbeck generate" in said
    assert (plan_of(experiment, "counting").folder / "counted.txt").read_text() == "True"
