"""The results files of the Qwen runs: scores, paired differences, curves and what made them."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from benchmarks import qwen_results

ROOT = Path(__file__).resolve().parents[2]
RL = {"minutes": 5.0, "rewards": {"accuracy": 1.0}, "phases": [], "trainer": {
    "learning_rate": 5e-6, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}}


def artifact(work: Path, stage: str, key: str, **more) -> Path:
    folder = work / f"{stage}-{key}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(
        {"stage": stage, "key": key, "seconds": 2.0, "config": {}, "counts": {"n": 1},
         "inputs": {}, **more}))
    return folder


def refined(work: Path, key: str, steps: int) -> Path:
    folder = artifact(work, "rl", key, config=RL, counts={"steps": steps, "train_seconds": 90.0})
    rows = [{"step": step, "reward": step / steps, "completions/mean_length": 10.0,
             "step_time": 3.0, **({"heldout/accuracy": 0.5} if step == steps else {})}
            for step in range(1, steps + 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluated(work: Path, recipe: str, scores: list[float | None], **inputs: str) -> None:
    folder = artifact(work, "evaluate", recipe, inputs=inputs)
    (folder / "scores.json").write_text(json.dumps({"m": {"gsm8k_test": {"avg": scores[0]}}}))
    table = {"benchmark": ["gsm8k_test"] * len(scores), "score": scores,
             "problem_id": [str(index) for index in range(len(scores))]}
    pl.DataFrame(table).write_parquet(folder / "completions.parquet")
    (work / f"{recipe}.evaluate").write_text(f"{folder}\nrl.start={recipe}\n")


def gathered(work: Path, file: str) -> dict:
    return qwen_results.gather(work, qwen_results.SHOWN[file])


def test_each_evaluated_recipe_is_shown_under_its_name_and_a_missing_one_is_not(tmp_path):
    artifact(tmp_path, "student", "s")
    evaluated(tmp_path, "base", [0.0, 1.0], student="s")
    evaluated(tmp_path, "sequence", [1.0, 1.0], student="s")
    distill, rl = gathered(tmp_path, "qwen-distill"), gathered(tmp_path, "qwen-rl")
    assert distill["models"] == {"base": {"gsm8k": {"avg": 0.0}},
                                 "sequence": {"gsm8k": {"avg": 1.0}}}
    assert set(rl["models"]) == {"base", "distilled"}
    assert set(distill["runs"]["sequence"]) == {"evaluate", "student"}
    assert distill["runs"]["sequence"]["evaluate"]["counts"] == {}
    assert distill["overrides"]["sequence"] == ["rl.start=sequence"]
    assert distill["curves"] == distill["rl"] == {}


def test_differences_are_of_the_problems_that_both_were_judged_on(tmp_path):
    evaluated(tmp_path, "base", [0.0, 0.0, 1.0, None])
    evaluated(tmp_path, "sequence", [1.0, 0.0, 1.0, 1.0])
    found = gathered(tmp_path, "qwen-distill")["differences_paired"]
    assert list(found) == ["sequence - base"]
    mean, low, high = found["sequence - base"]["gsm8k"]
    assert mean == 0.333333 and low < 0 < high


def test_seeds_have_a_mean_whose_interval_holds_problems_and_seeds(tmp_path):
    for seed, scores in enumerate(([1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0],
                                   [1.0, 0.0, None, 0.0])):
        evaluated(tmp_path, f"seed_{seed}", scores)
    found = gathered(tmp_path, "qwen-seeds")["seeds"]["gsm8k"]
    assert found["problems"] == 3 and found["each"] == [0.333333, 0.666667, 0.333333]
    mean, low, high = found["mean"]
    half = 1.96 * (7 / 27 / 3 + 1 / 27 / 3) ** 0.5      # by hand: of problems 1, 1/3, 0; of seeds
    assert [mean, low, high] == pytest.approx([4 / 9, 4 / 9 - half, 4 / 9 + half], abs=1e-5)


def test_curves_and_settings_are_those_of_the_stage_that_trained_last(tmp_path):
    sft = artifact(tmp_path, "sft", "f")
    (sft / "log.jsonl").write_text('{"step": 10, "loss": 0.5}\n{"step": 10, "eval_loss": 0.4}\n')
    refined(tmp_path, "r", 150)
    evaluated(tmp_path, "sequence", [0.0], sft="f")
    evaluated(tmp_path, "distilled_rl", [1.0], sft="f", rl="r")
    found = gathered(tmp_path, "qwen-rl")
    assert found["curves"]["distilled"] == {"loss": [(10, 0.5)], "eval_loss": [(10, 0.4)]}
    curves = found["curves"]["distilled_rl"]
    assert curves["reward"][-1] == (150, 1.0) and curves["heldout/accuracy"] == [(150, 0.5)]
    steps = [step for step, _ in curves["reward"]]
    assert len(steps) == 50 <= qwen_results.POINTS
    assert {after - before for before, after in pairwise(steps)} == {3}
    assert list(found["rl"]) == ["distilled_rl"]
    settings = found["rl"]["distilled_rl"]
    assert settings["steps"] == 150
    assert settings["train_minutes"] == 1.5 and settings["minutes_allowed"] == 5
    assert settings["learning_rate"] == 5e-6 and settings["completions_a_step"] == 32
    assert settings["completion_tokens"] == 150 * 32 * 10 and settings["alarms"] == []


def test_a_refined_student_that_is_not_scored_still_has_its_curves(tmp_path):
    note = tmp_path / "r1_zero.rl"
    note.write_text(f"{refined(tmp_path, 'z', 4)}\nruntime.launch={{num_processes: 2}}\nseed=1\n")
    found = gathered(tmp_path, "qwen-r1-zero")
    assert found["models"] == found["differences_paired"] == {}
    assert len(found["curves"]["r1_zero"]["reward"]) == found["rl"]["r1_zero"]["steps"] == 4
    assert found["rl"]["r1_zero"]["completions_a_step"] == 64       # of both processes


def test_the_text_names_no_folder_and_says_the_same():
    found = {"config": ["student.model=/there/lab/teacher", "[/a/b.jsonl, /c/d/e.jsonl]",
                        "Qwen/Qwen2.5", "http://host/v1/x", "a / b"], "curve": [(1, 0.5), (2, 1)]}
    text = qwen_results.as_text(found)
    assert json.loads(text) == {"config": ["student.model=teacher", "[b.jsonl, e.jsonl]", *found[
        "config"][2:]], "curve": [[1, 0.5], [2, 1]]}
    assert "  [1, 0.5],\n" in text


def test_a_student_that_goes_on_starts_from_the_other_recipes_and_is_noted_with_it(tmp_path):
    for name in ("gsm8k_train", "math_train"):
        (tmp_path / f"{name}.jsonl").touch()
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(f"""#!/bin/sh
echo "$*" >> {calls}
case "$*" in *"path sft"*) echo {tmp_path}/sft-1;; *path*) echo {tmp_path}/evaluate-1;; esac
""")
    python.chmod(0o755)
    given = {name: str(tmp_path) for name in ("DATA", "TEACHER", "STUDENT", "WORK")}
    subprocess.run([ROOT / "benchmarks/qwen.sh", "evaluate", "on_policy",
                    "sft.trainer.learning_rate=2e-6", "prepare.limit=99"],
                   check=True, env={**os.environ, **given, "PYTHON": str(python)})
    lines = calls.read_text().splitlines()
    before = [line for line in lines if "sft.method.type=sequence" in line]
    after = [line for line in lines if "sft.method.type=on_policy" in line]
    assert before and after and all("prepare.limit=99" in line for line in before + after)
    assert not any("learning_rate" in line for line in before)
    last = f"student.model={tmp_path}/sft-1/model"
    assert all(line.endswith(f"sft.trainer.learning_rate=2e-6 prepare.limit=99 {last}")
               for line in after)
    assert (tmp_path / "on_policy.evaluate").read_text().splitlines()[-1] == last


def test_the_script_notes_a_recipe_with_its_overrides_and_writes_the_files(tmp_path):
    for name in ("gsm8k_train", "math_train"):
        (tmp_path / f"{name}.jsonl").touch()
    evaluated(tmp_path, "made", [1.0])
    (tmp_path / "made.evaluate").unlink()
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/sh
case "$*" in
*"path evaluate"*) echo {tmp_path}/evaluate-made;;
*qwen_results*) exec {sys.executable} "$@";;
esac
""")
    python.chmod(0o755)
    given = {name: str(tmp_path) for name in ("DATA", "TEACHER", "STUDENT", "WORK")}
    subprocess.run([ROOT / "benchmarks/qwen.sh", "evaluate", "growing", "rl.minutes=1"],
                   check=True, env={**os.environ, **given, "PYTHON": str(python)})
    found = json.loads((tmp_path / "results" / "qwen-context.json").read_text())
    assert found["models"] == {"growing": {"gsm8k": {"avg": 1.0}}}
    overrides = found["overrides"]["growing"]
    assert "rl.trainer.max_steps=40" in overrides and overrides[-1] == "rl.minutes=1"
    assert not list((tmp_path / "results").glob("qwen-rl.json"))
