"""What may go is listed and only then deleted; plans and paths are readable by programs."""

import json
import re

from pipeline.stage import leases_in
from stages import make
from stages.clean import clean


def filled(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1_000_000))


def test_only_checkpoints_of_finished_stages_go_and_only_if_told(tmp_path, capsys):
    done, phases = tmp_path / "sft-1", tmp_path / "rl-2"
    filled(done, "manifest.json", "model/w", "checkpoints/checkpoint-5/w", "checkpoints/runs/t")
    filled(phases, "manifest.json", "model/w", "phase-0/checkpoints/checkpoint-2/w",
         "phase-0/checkpoints/completions/c")
    for name in ("sft-3.partial", "rl-4.partial"):
        filled(tmp_path / name, "checkpoints/checkpoint-1/w")
    before = sorted(tmp_path.rglob("*"))
    clean(tmp_path, partial=False, delete=False)
    assert sorted(tmp_path.rglob("*")) == before
    assert "2.0 MB  may go" in capsys.readouterr().out
    clean(tmp_path, partial=False, delete=True)
    left = {str(path.relative_to(tmp_path)) for path in before if path.exists()}
    assert {str(path.relative_to(tmp_path)) for path in before} - left == {
        "sft-1/checkpoints/checkpoint-5", "sft-1/checkpoints/checkpoint-5/w",
        "rl-2/phase-0/checkpoints/checkpoint-2", "rl-2/phase-0/checkpoints/checkpoint-2/w"}
    with leases_in(tmp_path) as maker:
        maker.take(["rl-4"])
        clean(tmp_path, partial=True, delete=True)
    assert not (tmp_path / "sft-3.partial").exists() and (tmp_path / "rl-4.partial").exists()


def test_a_plan_says_whether_anything_would_run(monkeypatch, capsys):
    row = {"stage": "prepare", "key": "k", "state": "cached", "why": "", "folder": "f"}
    for states, runs in ((("cached", "cached"), False), (("cached", "would run"), True)):
        rows = [{**row, "state": state} for state in states]
        monkeypatch.setattr(make, "plan_rows", lambda experiment, rows=rows: rows)
        assert make.show_plan(None) is runs and "prepare" in capsys.readouterr().out


def test_plan_path_and_show_speak_json_and_plan_tells_by_its_code(limbeck):
    given = ("prepare.limit=5", "prepare.held_out=2")
    rows = json.loads(limbeck("plan", "--json", *given).stdout)
    assert rows[0]["stage"] == "prepare" and {row["state"] for row in rows} == {"would run"}
    assert limbeck("plan", "--check", *given, code=1).stdout
    where = json.loads(limbeck("path", "prepare", "--json", *given).stdout)
    assert where == {"stage": "prepare", "key": rows[0]["key"], "folder": rows[0]["folder"],
                     "made": False}
    limbeck("prepare", *given)
    shown = json.loads(limbeck("show", "prepare", "--json", "-n", "1", *given).stdout)
    assert shown["manifest"]["key"] == where["key"]
    assert len(shown["rows"]["problems.parquet"]) == 1
    assert re.match(r"limbeck[ ,]", limbeck("--version").stdout)
