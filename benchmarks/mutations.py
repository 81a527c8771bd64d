"""Mechanical mutations of gold answers (judge/near_misses.py): how many the judge takes for right.

Usage: `python -m benchmarks.mutations [--golds FILE] [--show] [--out FILE]`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.judge import JudgePool, Problem
from pipeline.judge.checks.near_misses import near_misses
from pipeline.problems.files import read_rows

GOLDS = Path(__file__).parents[2] / "shared" / "data" / "math500.jsonl"


def accepted(rows: list[dict[str, Any]], statements: bool = True) -> tuple[Counter[str], list[Any]]:
    """How often each rule was tried, and what the judge took for right: (rule, mutation, gold)."""
    tried = [(name, text, row) for row in rows for name, text in near_misses(row["answer"])]
    problems = [Problem(str(i), row["problem"] if statements else "", row["answer"])
                for i, (_, _, row) in enumerate(tried)]
    with JudgePool(workers=1) as pool:
        verdicts = pool.judge_many([f"\\boxed{{{text}}}" for _, text, _ in tried], problems)
    right = [(name, text, row["answer"]) for (name, text, row), verdict
             in zip(tried, verdicts, strict=True) if verdict.score == 1.0]
    return Counter(name for name, _, _ in tried), right


def main() -> None:
    """Print the counts by rule and, with --show, each mutation taken for right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--golds", type=Path, default=GOLDS)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not given.golds.is_file():
        raise SystemExit(f"{given.golds} does not exist; give a file of golds with --golds")
    tried, right = accepted(read_rows(given.golds))
    counts = Counter(name for name, _, _ in right)
    for name, count in tried.items():
        print(f"{name:20} {count:6} {counts[name]:4} taken for right")
    print(f"{'all':20} {tried.total():6} {len(right):4} taken for right")
    for row in right if given.show else []:
        print(json.dumps(row, ensure_ascii=False))
    if given.out:
        told = {"command": " ".join(["python -m benchmarks.mutations", *sys.argv[1:]]),
                "date": time.strftime("%Y-%m-%d"),
                "rules": {name: {"mutations": count, "taken for right": counts[name]}
                          for name, count in tried.items()}}
        given.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
