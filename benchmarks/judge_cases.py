"""Agreement of the judge with a table of cases, by class: false accepts, recall, undecided.

A row of the table is a group: class, kind, form ("boxed", or "unboxed" for the response's last
line), policy ("rl", else the filter's), and under "correct", "wrong" and "undecided" (a model may
decide, never correct) its [answer, gold] or [answer, gold, problem].
Usage: `python -m benchmarks.judge_cases [TABLE ...] [--out FILE] [--show] [--totals]`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.judge import Judgement, JudgePool, Policy, Problem
from pipeline.problems.files import read_rows

TABLE = Path(__file__).parents[1] / "tests" / "judge_cases.jsonl"
LABELS = ("correct", "wrong", "undecided")
POLICIES = {"filter": Policy(), "rl": Policy(marker="box", restated="refused")}


@dataclass(frozen=True)
class Case:
    """One answer with its label; `problem` is empty unless the verdict needs the statement."""

    group: str
    kind: str
    completion: str
    gold: str
    problem: str
    policy: str
    expect: str


def cases(path: Path = TABLE) -> Iterator[Case]:
    """The cases of the table at `path`, one a pair."""
    for group in read_rows(path):
        for expect in LABELS:
            for answer, gold, *problem in group.get(expect, []):
                completion = f"\\boxed{{{answer}}}" if group["form"] == "boxed" else answer
                yield Case(group["class"], group["kind"], completion, gold, "".join(problem),
                           group.get("policy", "filter"), expect)


def judged(given: Sequence[Case]) -> list[Judgement]:
    """The judge's verdict on each case, under the policy that the case names."""
    problems = [Problem(str(number), case.problem, case.gold, case.kind, POLICIES[case.policy])
                for number, case in enumerate(given)]
    with JudgePool(workers=1) as pool:
        return pool.judge_many([case.completion for case in given], problems)


def said(verdict: Judgement) -> str:
    """`verdict` in the words of the labels."""
    if verdict.score is None:
        return "undecided"
    return "correct" if verdict.score == 1.0 else "wrong"


def agrees(case: Case, word: str) -> bool:
    """Whether `word` is what the case expects; one left to a model may be anything but correct."""
    return word == case.expect or (case.expect == "undecided" and word == "wrong")


def figures(rows: Sequence[tuple[Case, str]]) -> dict[str, Any]:
    """Counts and shares of cases and what the judge said of them; recall is None without rights."""
    right = [word for case, word in rows if case.expect == "correct"]
    accepted = Counter(word == "correct" for case, word in rows if case.expect != "correct")
    agreed = sum(agrees(*row) for row in rows)
    return {"cases": len(rows), "agreement": round(agreed / len(rows), 4),
            "not right": accepted.total(), "false accepts": accepted[True], "right": len(right),
            "recall": round(right.count("correct") / len(right), 4) if right else None,
            "undecided": round(sum(word == "undecided" for _, word in rows) / len(rows), 4),
            "wrong but undecided": sum(case.expect == "wrong" and word == "undecided"
                                       for case, word in rows)}


def by_class(rows: Sequence[tuple[Case, str]]) -> dict[str, dict[str, Any]]:
    """The figures of each class, in the order of the table, and last those of all."""
    names = list(dict.fromkeys(case.group for case, _ in rows))
    told = {name: figures([row for row in rows if row[0].group == name]) for name in names}
    return told | {"all": figures(rows)}


def line(name: str, told: dict[str, Any]) -> str:
    """One class in a line of the printed table."""
    recall = "" if told["recall"] is None else f"{told['recall']:.1%}"
    return (f"{name:44} {told['cases']:5} {told['agreement']:7.1%} {told['false accepts']:5}"
            f" /{told['not right']:4} {recall:>7} /{told['right']:4} {told['undecided']:7.1%}")


def told_of(path: Path, totals: bool, show: bool) -> dict[str, dict[str, Any]]:
    """The figures of the table at `path`, printed; `show` prints each case that disagrees."""
    table = list(cases(path))
    rows = list(zip(table, map(said, judged(table)), strict=True))
    told = by_class(rows)
    print(f"{path.name:44} cases   agree false accepts  recall     undecided")
    for name in ["all"] if totals else told:
        print(line(name, told[name]))
    for case, word in rows if show else []:
        if not agrees(case, word):
            print(json.dumps([case.group, case.expect, word, case.completion, case.gold],
                             ensure_ascii=False))
    return {"all": told["all"]} if totals else told


def main() -> None:
    """Judge each table, print its figures and, with --out, write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path, nargs="*", default=[TABLE])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", action="store_true", help="print the cases that disagree")
    parser.add_argument("--totals", action="store_true", help="no figures of single classes")
    given = parser.parse_args()
    told = {"command": " ".join(["python -m benchmarks.judge_cases", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"),
            "tables": {path.name: told_of(path, given.totals, given.show)
                       for path in given.tables}}
    if given.out:
        given.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
