"""The distillation benchmark's scores come together under their names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import qwen_results


def test_scores_of_every_run_stand_under_their_models_names(tmp_path):
    for run in qwen_results.NAMES:
        folder = tmp_path / f"evaluate-{run}"
        folder.mkdir()
        scores = {name: {"gsm8k_test": {"avg": 0.5}, "math500": {"avg": 0.25}}
                  for name in ("untrained", "sft")}
        (folder / "scores.json").write_text(json.dumps(scores))
        (folder / "manifest.json").write_text(json.dumps(
            {"stage": "evaluate", "key": run, "seconds": 1.0, "config": {}, "counts": {},
             "inputs": {}}))
        (tmp_path / f"{run}.path").write_text(f"{folder}\n")
    found = qwen_results.gather(tmp_path)
    assert set(found["models"]) == {"base", "sequence", "logits", "unfiltered", "teacher"}
    assert found["models"]["logits"] == {"gsm8k": {"avg": 0.5}, "math500": {"avg": 0.25}}
    assert found["runs"]["logits"]["evaluate"]["key"] == "logits"
