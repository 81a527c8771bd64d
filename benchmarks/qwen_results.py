"""Gathers the scores of benchmarks/qwen_distill.sh: qwen_results.py WORK OUT.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES = {"sequence": {"untrained": "base", "sft": "sequence"}, "logits": {"sft": "logits"},
         "unfiltered": {"sft": "unfiltered"}, "teacher": {"untrained": "teacher"}}
BENCHMARKS = {"gsm8k_test": "gsm8k"}


def gather(work: Path) -> dict[str, Any]:
    """Models' scores under their names here, and what each run was made of."""
    models: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for run, renamed in NAMES.items():
        folder = Path((work / f"{run}.path").read_text(encoding="utf-8").strip())
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        for name, shown in renamed.items():
            models[shown] = {BENCHMARKS.get(b, b): values for b, values in scores[name].items()}
        runs[run] = _lineage(folder)
    return {"experiment": "qwen distillation", "models": models, "runs": runs}


def _lineage(folder: Path) -> dict[str, Any]:
    """Key, seconds and counts of every stage an evaluation stands on."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    found = {manifest["stage"]: {"key": manifest["key"], "seconds": manifest["seconds"],
                                 "config": manifest["config"],
                                 "counts": {} if manifest["stage"] == "evaluate"
                                 else manifest["counts"]}}
    for stage, key in manifest["inputs"].items():
        found |= _lineage(folder.parent / f"{stage}-{key}")
    return found


if __name__ == "__main__":
    out = Path(sys.argv[2])
    out.write_text(json.dumps(gather(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
    print(out)
