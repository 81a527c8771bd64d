"""The results files of the Qwen runs hold every evaluated recipe under its name."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import qwen_results


def evaluated(work: Path, recipe: str, model: str, avg: float) -> None:
    def manifest(stage, **more):
        folder = work / f"{stage}-{recipe}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(
            {"stage": stage, "key": recipe, "seconds": 2.0, "config": {}, "counts": {"n": 1},
             "inputs": {}, **more}))
        return folder

    manifest("student")
    folder = manifest("evaluate", inputs={"student": recipe})
    (folder / "scores.json").write_text(json.dumps({model: {"gsm8k_test": {"avg": avg}}}))
    (work / f"{recipe}.path").write_text(str(folder))


def test_each_evaluated_recipe_is_shown_under_its_name_and_a_missing_one_is_not(tmp_path):
    evaluated(tmp_path, "base", "untrained", 0.26)
    evaluated(tmp_path, "sequence", "sft", 0.42)
    distill = qwen_results.gather(tmp_path, qwen_results.SHOWN["qwen-distill"])
    refined = qwen_results.gather(tmp_path, qwen_results.SHOWN["qwen-rl"])
    assert distill["models"] == {"base": {"gsm8k": {"avg": 0.26}},
                                 "sequence": {"gsm8k": {"avg": 0.42}}}
    assert set(refined["models"]) == {"base", "distilled"}
    assert set(distill["runs"]["sequence"]) == {"evaluate", "student"}
    assert distill["runs"]["sequence"]["evaluate"]["counts"] == {}
