"""Measures how well models keep to a length that the prompt names: tokens named against used.

    python -m benchmarks.lengths "$(limbeck path prepare)/heldout.parquet" BEFORE AFTER

Each problem is asked once a length, with no limit but --max-tokens; a row a model and length, and
over all lengths the mean distance in tokens and the correlation. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import correlation, fmean
from typing import Any

from pipeline import tables
from pipeline.config.evaluate import StudentSampling
from pipeline.evaluate.judged import judged_rows
from pipeline.evaluate.metrics import summarise
from pipeline.judge import JudgePool
from pipeline.progress import quiet_libraries
from pipeline.prompts import asking_length, chats
from pipeline.student.sample import sample_sets


def measured(model: str, rows: Sequence[dict[str, Any]], lengths: Sequence[int], prompt: str,
             sampling: StudentSampling, seed: int) -> dict[str, Any]:
    """Return by length the tokens used, the distance from it and the accuracy, and the whole."""
    asked = chats(prompt, rows)
    sets = {str(length): [asking_length(chat, length) for chat in asked.values()]
            for length in lengths}
    found, named, used = {}, [], []
    with JudgePool(2) as pool:
        for name, groups in sample_sets(model, model, sets, 1, sampling, seed):
            got = [(problem, 0, *samples[0], 0.0)
                   for problem, samples in zip(asked, groups, strict=True)]
            tokens = [one[3] for one in got]
            judged = judged_rows(pool, model, {row["problem_id"]: row for row in rows}, got)
            score = summarise(judged)
            found[name] = {"tokens": fmean(tokens),
                           "distance": fmean(abs(count - int(name)) for count in tokens),
                           **{key: score[key] for key in ("avg", "ci_low", "ci_high")}}
            named += [int(name)] * len(tokens)
            used += tokens
    return {"lengths": found, "correlation": correlation(named, used),
            "distance": fmean(abs(a - b) for a, b in zip(named, used, strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 100, 150, 200])
    parser.add_argument("--limit", type=int, default=150)
    parser.add_argument("--prompt", default="boxed", help="a name in prompts/")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet_libraries()
    rows = tables.read(tables.Problem, args.problems).head(args.limit).to_dicts()
    sampling = StudentSampling(temperature=args.temperature, top_p=1.0, max_tokens=args.max_tokens)
    report = {model: measured(model, rows, args.lengths, args.prompt, sampling, args.seed)
              for model in args.models}
    for model, one in report.items():
        print(f"{model}: correlation {one['correlation']:.2f}, distance {one['distance']:.0f}")
        for length, at in one["lengths"].items():
            print(f"  {length:>5} named: {at['tokens']:.0f} used, {at['distance']:.0f} away, "
                  f"{100 * at['avg']:.1f} % [{100 * at['ci_low']:.1f}, {100 * at['ci_high']:.1f}]")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
