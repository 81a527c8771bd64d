"""Gathers the scores of benchmarks/qwen.sh: qwen_results.py WORK FOLDER.

Writes FOLDER/qwen-distill.json and FOLDER/qwen-rl.json from the recipes that are evaluated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SHOWN = {"qwen-distill": {"base": "base", "sequence": "sequence", "logits": "logits",
                          "unfiltered": "unfiltered", "teacher": "teacher"},
         "qwen-rl": {"base": "base", "rl_only": "rl_only", "sequence": "distilled",
                     "distilled_rl": "distilled_rl", "r1_zero": "r1_zero",
                     "teacher": "teacher"}}
BENCHMARKS = {"gsm8k_test": "gsm8k"}


def gather(work: Path, shown: dict[str, str]) -> dict[str, Any]:
    """Models' scores under their names here, and what each was made of."""
    models: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for recipe, name in shown.items():
        path = work / f"{recipe}.path"
        if path.is_file():
            folder = Path(path.read_text(encoding="utf-8").strip())
            (scores,) = json.loads((folder / "scores.json").read_text(encoding="utf-8")).values()
            models[name] = {BENCHMARKS.get(b, b): values for b, values in scores.items()}
            runs[name] = _lineage(folder)
    return {"models": models, "runs": runs}


def _lineage(folder: Path) -> dict[str, Any]:
    """Seconds, counts and config of every stage an evaluation stands on."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    counts = {} if manifest["stage"] == "evaluate" else manifest["counts"]
    found = {manifest["stage"]: {"key": manifest["key"], "seconds": manifest["seconds"],
                                 "config": manifest["config"], "counts": counts}}
    for stage, key in manifest["inputs"].items():
        found |= _lineage(folder.parent / f"{stage}-{key}")
    return found


if __name__ == "__main__":
    for file, shown in SHOWN.items():
        out = Path(sys.argv[2]) / f"{file}.json"
        found = {"experiment": file, **gather(Path(sys.argv[1]), shown)}
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(out)
