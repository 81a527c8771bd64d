"""The judge beside TRL's accuracy_reward as shipped and boxed-only math-verify, on one core.

Corpus: real responses (traces, and solutions of MATH's training split), each against its own gold
and against a wrong one, no row twice, so that no cache helps. Each grader runs in its own process
on one core, and is stopped at a time limit; then rows a second counts what it had done. Usage:
`python -m benchmarks.verify [--data DIR] [--rows N] [--out results/verify.json]`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = tuple[str, str]
GRADERS = ("trl", "boxed", "limbeck")
LIMIT_SECONDS = 90
_ROOT = Path(__file__).parents[1]
_DATA = _ROOT.parent / "shared" / "data"
_ATTACKS = _ROOT.parent / "shared" / "cases" / "resource_attacks.json"


def corpus(folder: Path, rows: int) -> list[Row]:
    """(response, gold) rows: every trace, then solutions, right and wrong golds in turn."""
    found: list[Row] = []
    sources = [*sorted(folder.glob("traces_*.jsonl")), folder / "math_train.jsonl"]
    for path in sources:
        items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for item, other in zip(items, items[1:] + items[:1], strict=True):
            text = item["meta"].get("response") or item["meta"].get("solution")
            if text:
                found += [(text, item["answer"]), (text + "\n", other["answer"])]
    return found[:rows]


def with_attacks(rows: list[Row]) -> list[Row]:
    """`rows` with one resource attack in every hundred."""
    attacks = [(case["prediction"], case["gold"]) for case in json.loads(_ATTACKS.read_text())]
    return [row for i, row in enumerate(rows)
            for row in ([attacks[i // 100 % len(attacks)]] if i % 100 == 50 else []) + [row]]


def grade(name: str, rows: list[Row]) -> None:
    """Judge one by one in this process; print a line as each is done, with its score."""
    judge_one = {"trl": _trl, "boxed": _boxed, "limbeck": _limbeck}[name]()
    judge_one(("\\boxed{\\sqrt{2}}", "3"))  # what is imported late is imported for all of them
    print("start", flush=True)
    for row in rows:
        print(judge_one(row), flush=True)


def _trl() -> Any:
    from trl.rewards import accuracy_reward

    return lambda row: accuracy_reward(completions=[[{"role": "assistant", "content": row[0]}]],
                                       solution=[f"${row[1]}$"])[0]


def _boxed() -> Any:
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def judge_one(row: Row) -> float:
        text = row[0][row[0].rfind("\\boxed"):] if "\\boxed" in row[0] else ""
        gold = parse(f"\\boxed{{{row[1]}}}", config)
        return float(verify(gold, parse(text[:2000], config)))

    return judge_one


def _limbeck() -> Any:
    from pipeline.judge import JudgePool, Problem

    pool = JudgePool(workers=1)
    return lambda row: pool.judge(row[0], Problem("b", "", row[1])).score


def measure(name: str, rows: list[Row], limit: float) -> dict[str, float]:
    """Rows a second, rows done and share judged correct of one grader in its own process."""
    script = [sys.executable, "-m", "benchmarks.verify", "--grader", name]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.DEVNULL, cwd=_ROOT, start_new_session=True) as process:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(rows))
        process.stdin.close()
        seen = b""
        while not seen.endswith(b"start\n") and (byte := os.read(process.stdout.fileno(), 1)):
            seen += byte
        begun = time.monotonic()
        scores = _collect(process, begun + limit)
        seconds = time.monotonic() - begun
        process.kill()
    return {"rows_per_second": len(scores) / seconds, "rows": len(scores), "seconds": seconds,
            "correct": sum(score == "1.0" for score in scores)}


def _collect(process: subprocess.Popen[str], deadline: float) -> list[str]:
    import select

    assert process.stdout
    descriptor, data = process.stdout.fileno(), b""
    while select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            break
        data += chunk
    return data.decode().split()


def main() -> None:
    """Measure all graders on both corpora, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS)
    parser.add_argument("--out", type=Path, default=_ROOT / "results" / "verify.json")
    parser.add_argument("--grader", choices=GRADERS)
    options = parser.parse_args()
    with contextlib.suppress(AttributeError):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if options.grader:
        return grade(options.grader, [tuple(row) for row in json.load(sys.stdin)])
    if not options.data.is_dir():
        raise SystemExit(f"{options.data} does not exist; give the folder of traces with --data")
    plain = corpus(options.data, options.rows)
    figures = {f"{kind}/{name}": measure(name, rows, options.limit)
               for kind, rows in (("plain", plain), ("attacks", with_attacks(plain)))
               for name in GRADERS}
    report(figures, options.out)
    return None


def report(figures: dict[str, dict[str, float]], out: Path) -> None:
    """Print the table with speed relative to TRL and write the JSON file."""
    for key, figure in figures.items():
        base = figures[key.partition("/")[0] + "/trl"]["rows_per_second"]
        figure["times_trl"] = figure["rows_per_second"] / base
        print(f"{key:18} {figure['rows_per_second']:10.1f} rows/s  {figure['times_trl']:8.1f} x TRL"
              f"  {figure['rows']:5.0f} rows  {figure['correct']:5.0f} correct")
    machine = {"machine": platform.machine(), "python": platform.python_version(),
               "math-verify": version("math-verify"), "trl": version("trl"), "cores": 1,
               "date": time.strftime("%Y-%m-%d"), "command": "python -m benchmarks.verify " +
               " ".join(sys.argv[1:])}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"versions": machine, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
