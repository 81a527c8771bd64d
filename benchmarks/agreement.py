"""How often the judge agrees with labels: cases of other graders' suites, and pairs of our own.

Counts, by set: rows, those labelled right, right found right, wrong found right. A row of CASES
has `prediction`, `gold`, `expected`, `core` (neither a question of policy nor a doubted label) and
`source_path`. Usage: `python -m benchmarks.agreement [--cases FILE] [--out FILE]`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.judge import JudgePool, Policy
from pipeline.judge.file import to_problem
from pipeline.problems.files import read_rows

_ROOT = Path(__file__).parents[1]
CASES = _ROOT.parent / "shared" / "cases" / "verifier_cases.jsonl"
PAIRS = _ROOT / "tests" / "judge_pairs.jsonl"


def pairs(path: Path = PAIRS) -> list[dict[str, Any]]:
    """The pairs of `path`, written before the judge was asked, as cases."""
    return [{"prediction": f"\\boxed{{{text}}}" if group["form"] == "boxed" else text,
             "gold": gold, "kind": group["kind"], "expected": label == "right"}
            for group in read_rows(path) for label in ("right", "wrong")
            for text, gold in group[label]]


def found_right(cases: Sequence[dict[str, Any]]) -> list[bool]:
    """Whether the judge, with its default policy, finds each prediction right."""
    problems = [to_problem({**case, "gold": case["gold"] or ""}, number, Policy())
                for number, case in enumerate(cases, start=1)]
    with JudgePool(workers=1) as pool:
        verdicts = pool.judge_many([str(case["prediction"]) for case in cases], problems)
    return [verdict.score == 1.0 for verdict in verdicts]


def agreement(cases: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Counts of `cases` and of what the judge makes of them."""
    found = list(zip(found_right(cases), (case["expected"] for case in cases), strict=True))
    return {"cases": len(found), "right": sum(label for _, label in found),
            "right_found_right": sum(says and label for says, label in found),
            "wrong_found_right": sum(says and not label for says, label in found)}


def classes() -> dict[str, dict[str, Any]]:
    """The figures of tests/judge_cases.jsonl by class."""
    from benchmarks import judge_cases

    table = list(judge_cases.cases())
    words = map(judge_cases.said, judge_cases.judged(table))
    return judge_cases.by_class(list(zip(table, words, strict=True)))


def main() -> None:
    """Count each set, print the counts and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=Path, default=CASES)
    parser.add_argument("--out", type=Path, default=_ROOT / "results" / "agreement.json")
    given = parser.parse_args()
    if not given.cases.is_file():
        raise SystemExit(f"{given.cases} does not exist; give the file of cases with --cases")
    core = [case for case in read_rows(given.cases) if case["core"]]
    sets = {"core": core, "pairs": pairs(),
            "core of TinyV's HardVerify": [c for c in core if "HardVerify" in c["source_path"]]}
    counts = {name: agreement(chosen) for name, chosen in sets.items()}
    told = {"command": " ".join(["python -m benchmarks.agreement", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"), "sets": counts, "classes": classes()}
    print(json.dumps(told, indent=1))
    given.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
