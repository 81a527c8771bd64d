"""The real commands, start to end, on a still smaller default."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("-c", ROOT / "configs/default.yaml", "-c", ROOT / "tests/smoke.yaml")


def path_of(limbeck, stage, *more):
    return Path(limbeck("path", stage, *SMALL, *more).stdout.strip())


def paths_of(limbeck, *more):
    """The folder of every stage, by one command."""
    rows = json.loads(limbeck("plan", "--json", *SMALL, *more).stdout)
    return {row["stage"]: row["folder"] for row in rows}


@pytest.mark.timeout(600)
def test_the_whole_line_runs_is_cached_and_remakes_only_what_follows_a_change(limbeck, tmp_path):
    for stage in ("generate", "filter", "sft", "rl"):
        said = limbeck(stage, *SMALL).stderr
        assert said.splitlines()[-1].startswith(f"{stage}: ") and "next: limbeck" in said
        assert "Traceback" not in said and "\x1b" not in said
    checkpoint = path_of(limbeck, "rl") / "model"
    assert (checkpoint / "config.json").is_file() and (checkpoint / "tokenizer.json").is_file()
    assert any("reflection" in line for line in (checkpoint.parent / "log.jsonl").open())

    before = sorted(p.name for p in (tmp_path / "data/artifacts").iterdir())
    again = limbeck("rl", *SMALL)
    assert "already made" in again.stderr
    limbeck("rl", *SMALL, "runtime.judge_workers=1", "runtime.teacher.concurrency=3")
    assert sorted(p.name for p in (tmp_path / "data/artifacts").iterdir()) == before

    strict = ("filter.keep=verdict == \"correct\" and tokens < 100",)
    loose, stricter = paths_of(limbeck), paths_of(limbeck, *strict)
    assert loose["generate"] == stricter["generate"] and loose["filter"] != stricter["filter"]
    plan = limbeck("plan", *SMALL, *strict).stdout
    assert "filter.keep" in plan and "cached" in plan
    limbeck("filter", *SMALL, *strict)

    said = limbeck("report", *SMALL).stderr
    assert f"→ data/artifacts/{path_of(limbeck, 'report').name}/report.html (" in said
    numbers = json.loads((path_of(limbeck, "report") / "numbers.json").read_text())
    assert set(numbers["models"]) == {"untrained", "sft", "rl", "teacher"}
    for scores in numbers["models"].values():
        held_out = scores["heldout"]
        assert 0 <= held_out["ci_low"] <= held_out["avg"] <= held_out["ci_high"] <= 1
        assert held_out["problems"] == 12 and held_out["samples"] == 2
    assert (path_of(limbeck, "report") / "report.html").stat().st_size > 10_000
    shown = limbeck("show", "filter", *SMALL).stdout
    assert "verdict" in shown and "kept" in shown


def test_editing_the_prompt_remakes_from_generate_on(limbeck, tmp_path):
    prompt = tmp_path / "mine.jinja"
    prompt.write_text("{{ problem }} Think.")
    mine = (f"generate.prompt={prompt}",)
    before = paths_of(limbeck, *mine)
    prompt.write_text("{{ problem }} Think hard.")
    after = paths_of(limbeck, *mine)
    assert before.pop("prepare") == after.pop("prepare")
    assert {"generate", "filter", "pack"} <= before.keys()
    assert all(before[stage] != after[stage] for stage in before)
