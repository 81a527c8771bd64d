"""Checks thinking budgets on the engine that is there: vLLM on a GPU, else the CPU decoder.

    python -m benchmarks.budgets CHECKPOINT --budgets 16 64 256

Prints one JSON line. At each budget the thinking is exactly that long, or the model ended it
earlier; then it is closed and an answer of at most so many tokens follows. What is otherwise counts
as wrong, and the status is 1. A model may still answer nothing (`no_answer`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from typing import Any

from pipeline.completion import OPEN
from pipeline.config.evaluate import StudentSampling
from pipeline.progress import quiet_libraries
from pipeline.student.sample import sampler
from pipeline.student.template import end_of_turn_ids, opens_thinking, prompt_ids
from pipeline.student.thinking_budget import Budget, BudgetForcer
from pipeline.student.tokenizer import load_tokenizer

QUESTIONS = [f"Think for a long time, step by step: how many primes lie between {n} and {n + 60}? "
             "Then give the number." for n in range(100, 2020, 60)]
COUNTS = ("at_budget", "ended_by_model", "closed_by_model", "wrong", "no_answer")
OPENED = '{%- if add_generation_prompt -%}{{ "' + OPEN + r'\n" }}{%- endif -%}'
"""Put at the end of a template that leaves it to the model to begin its thinking."""


def checked(forcer: BudgetForcer, rows: list[list[int]], budget: Budget) -> dict[str, int]:
    """Count rows by how their thinking ended, and those without an answer."""
    found = dict.fromkeys(COUNTS, 0)
    size = len(forcer.closing)
    for row in rows:
        at = forcer.closes_at(row)
        forced = next((i for i in range(len(row)) if row[i:i + size] == forcer.closing), None)
        if at is None:
            found["wrong"] += 1
            continue
        if forced is None or not forced <= at[0] <= forced + size:
            # Closed in tokens of its own: an answer may hold the tag again, as any text.
            kind, start, after = "closed_by_model", at[0], row[at[1]:]
        else:
            kind, start, after = "ended_by_model", forced, row[forced + size:]
        if start > budget.thinking or len(after) > budget.answer:
            kind = "wrong"
        elif start == budget.thinking:
            kind = "at_budget"
        found[kind] += 1
        found["no_answer"] += not forcer.tokenizer.decode(after, skip_special_tokens=True).strip()
    return found


def measured(model: str, folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Sample QUESTIONS at each budget with the template of `folder`, which opens the thinking."""
    tokenizer = load_tokenizer(folder)
    ends = end_of_turn_ids(tokenizer, model)
    forcer = BudgetForcer(tokenizer, ends, opens_thinking(tokenizer))
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": text}])
               for text in QUESTIONS[:args.problems]]
    longest = max(map(len, prompts)) + max(args.budgets) + args.answer + forcer.tags
    options = json.loads(args.engine)
    began = time.monotonic()
    with sampler(model, ends, longest, StudentSampling(), 0, options) as run:
        loaded = time.monotonic()
        found = {str(tokens): checked(forcer, forcer.sample(run, prompts, budget), budget)
                 for tokens in args.budgets for budget in [Budget(tokens, args.answer)]}
        done = time.monotonic()
    return {"budgets": found, "load_seconds": round(loaded - began, 1),
            "seconds": round(done - loaded, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--answer", type=int, default=128, help="longest answer in tokens")
    parser.add_argument("--problems", type=int, default=len(QUESTIONS))
    parser.add_argument("--engine", default="{}", help="options of vllm.LLM as JSON")
    args = parser.parse_args()
    quiet_libraries()
    tokenizer = load_tokenizer(args.model)
    if not opens_thinking(tokenizer):
        tokenizer.chat_template += OPENED
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        found = measured(args.model, folder, args)
    engine = "vllm " + sys.modules["vllm"].__version__ if "vllm" in sys.modules else "transformers"
    print(json.dumps({"model": args.model, "engine": engine, "problems": args.problems, **found}))
    sys.exit(any(one["wrong"] for one in found["budgets"].values()))


if __name__ == "__main__":
    main()
