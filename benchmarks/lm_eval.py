"""Prompts and scores beside lm-evaluation-harness's, on stored answers, if it defines the task.

For every benchmark by name that it has: our zero-shot prompt against its doc_to_text, byte by
byte but for space at the ends, and our judge's score against its own process_results or filters.
It runs in an environment of its own, since it pins packages that ours does not:

    python -m venv FOLDER && FOLDER/bin/pip install 'lm-eval[math,ifeval]==0.4.13'
    python -m benchmarks.lm_eval --python FOLDER/bin/python --data DATA

DATA holds the problem files that runtime.benchmarks reads, and traces_*.jsonl with completions of
reasoning models. Answers of sets without traces are the gold ones as a model would state them, and
wrong ones. Code is compared in its prompts alone: the harness runs code of models unboxed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
Row = dict[str, Any]
LETTERS = "ABCDEFGHIJ"
TRACES = {"aime24": "traces_r1_aime2024.jsonl", "math500": "traces_math500_mixed.jsonl"}
TASKS = {"gsm8k": "gsm8k/gsm8k.yaml", "math500": "minerva_math/minerva_math500.yaml",
         "aime24": "aime/aime24.yaml", "aime25": "aime/aime25.yaml",
         "gpqa_diamond": "gpqa/cot_zeroshot/gpqa_diamond_cot_zeroshot.yaml",
         "mmlu_pro": "mmlu_pro/mmlu_pro_biology.yaml", "ifeval": "ifeval/ifeval.yaml",
         "humaneval": "humaneval/humaneval_instruct.yaml", "mbpp": "mbpp/mbpp_instruct.yaml"}
"""Files below lm_eval/tasks."""
MADE = {
    "gpqa_diamond": [{"Record ID": f"r{i}", "Question": f"Which is number {i}?",
                      "Correct Answer": f"number {i}", "Incorrect Answer 1": "none [title] at all",
                      "Incorrect Answer 2": "two  spaces", "Incorrect Answer 3": f"not {i}"}
                     for i in range(20)],
    "mmlu_pro": [{"question_id": i, "question": f"Which is letter {i + 1}?", "category": "biology",
                  "options": [f" option {j} " for j in range(10)], "answer": LETTERS[i]}
                 for i in range(10)],
    "ifeval": [{"key": i, "prompt": f"Answer in {i} ways.", "instruction_id_list": [name],
                "kwargs": [told]} for i, (name, told) in enumerate((
                    ("punctuation:no_comma", {}), ("keywords:existence", {"keywords": ["reason"]}),
                    ("length_constraints:number_words", {"relation": "at least", "num_words": 5}),
                    ("change_case:english_lowercase", {}), ("detectable_format:json_format", {}),
                    ("startend:end_checker", {"end_phrase": "That is all."}),
                    ("detectable_format:number_bullet_lists", {"num_bullets": 2}),
                    ("detectable_format:title", {}), ("combination:two_responses", {}),
                    ("startend:quotation", {})))]}
"""Rows in the hub's columns, written here, of the sets that DATA may lack."""
SAID = ("this is the reason, and it has more than five words.", "That is all.", '{"a": 1}',
        "* one\n* two", "<<title>> THE END", "first ****** second", '"quoted"',
        "a b c d e f reason")


def requests(data: Path) -> Iterator[Row]:
    """{name, doc, task, response, prompt, problem, judged} of every answer, ours filled in."""
    from pipeline.problems.benchmarks import BENCHMARKS, benchmark_row, local_file
    from pipeline.problems.files import read_rows
    from pipeline.prompts import render

    for name, task in TASKS.items():
        raw = MADE.get(name) or read_rows(local_file(name, data))[:50]
        for index, row in enumerate(raw):
            ours = benchmark_row(name, row, index, 0)
            lm_eval = BENCHMARKS[name].lm_eval
            assert lm_eval
            prompt = render(lm_eval[1], problem=ours["problem"])
            for response in answers(name, row, ours, data):
                yield {"name": name, "task": task, "doc": documents(name, row, ours),
                       "response": response, "prompt": prompt, "ours": ours}


def documents(name: str, row: Row, ours: Row) -> Row:
    """The row as lm-evaluation-harness holds it."""
    meta = ours.get("meta") or {}
    made: dict[str, Callable[[], Row]] = {
        "gsm8k": lambda: {"question": ours["problem"], "answer": f"#### {ours['answer']}"},
        "aime24": lambda: {"Problem": ours["problem"], "Answer": ours["answer"]},
        "math500": lambda: {"problem": ours["problem"], "answer": ours["answer"],
                            "solution": f"\\boxed{{{ours['answer']}}}"},
        "gpqa_diamond": lambda: {"Question": row["Question"], "answer": f"({ours['answer']})",
                                 "choices": meta["choices"],
                                 **{f"choice{i}": text for i, text in
                                    enumerate(meta["choices"], start=1)}},
        "humaneval": lambda: {"prompt": ours["problem"], **row.get("meta", {})},
        "mbpp": lambda: {"text": row["problem"], **row.get("meta", {})}}
    return made.get(name, lambda: {**row, "answer": ours["answer"]})()


def answers(name: str, row: Row, ours: Row, data: Path) -> list[str]:
    """Stored completions of a model, or the gold as one would state it, and a wrong answer."""
    from pipeline.problems.files import read_rows

    if name in TRACES:
        return [one["meta"]["response"] for one in read_rows(data / TRACES[name])
                if one["problem"] == ours["problem"]]
    if ours["kind"] == "choice":
        wrong = "A" if ours["answer"] != "A" else "B"
        return [f"So the answer is ({letter})." for letter in (ours["answer"], wrong)]
    if ours["kind"] == "code":
        return [""]
    if ours["kind"] == "ifeval":
        return list(SAID)
    return [f"Therefore it is \\boxed{{{text}}}" for text in (ours["answer"], "123456", "-1")] + \
        [f"Therefore it is {ours['answer']}"]


def theirs() -> None:
    """Read requests, answer {prompt, score} a line. Runs in lm-evaluation-harness's environment."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml
    from lm_eval.utils import apply_template

    replies, sys.stdout = sys.stdout, sys.stderr     # some tasks print
    base, configs = Path(lm_eval.__file__).parent / "tasks", {}
    for line in sys.stdin:
        one = json.loads(line)
        if one["task"] not in configs:
            code = one["name"] in ("humaneval", "mbpp")     # whose functions ask the hub
            configs[one["task"]] = load_yaml(base / one["task"], resolve_func=not code)
        config, doc = configs[one["task"]], one["doc"]
        text = config["doc_to_text"]
        prompt = text(doc) if callable(text) else doc[text] if text in doc else \
            apply_template(text, doc)
        reply = {"prompt": prompt, "score": _score(config, one)}
        print(json.dumps(reply), file=replies, flush=True)


def _score(config: Row, one: Row) -> float | None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters import build_filter_ensemble
    from lm_eval.utils import apply_template

    doc, response = one["doc"], one["response"]
    if one["name"] in ("humaneval", "mbpp"):
        return None
    if process := config.get("process_results"):
        found = process(doc, [response])
        return float(found.get("math_verify", found.get(
            "exact_match", found.get("prompt_level_strict_acc"))))
    filters = config["filter_list"][-1]      # the flexible one, where there are two
    parts = [[step["function"], {k: v for k, v in step.items() if k != "function"}]
             for step in filters["filter"]]
    request = Instance(request_type="generate_until", doc=doc, arguments=(), idx=0)
    request.resps = [response]
    build_filter_ensemble(filters["name"], parts).apply([request])
    gold = doc.get("answer") if config["doc_to_target"] == "answer" else \
        apply_template(config["doc_to_target"], doc)
    how = {key: value for key, value in config["metric_list"][0].items()
           if key in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    said = request.filtered_resps[filters["name"]]
    return float(exact_match_hf_evaluate(predictions=[said], references=[gold], **how)
                 ["exact_match"])


def compare(asked: list[Row], told: list[Row]) -> dict[str, Row]:
    """By benchmark: prompts equal, scores equal, and each answer on which they differ."""
    from pipeline.judge import JudgePool, Problem

    out: dict[str, Row] = {}
    with JudgePool(workers=1, seconds=30) as pool:
        for one, other in zip(asked, told, strict=True):
            counts = out.setdefault(one["name"], {"task": one["task"], "answers": 0, "prompts": 0,
                                                  "prompts_equal": 0, "scores_equal": 0,
                                                  "differ": []})
            counts["prompts"] += 1
            counts["prompts_equal"] += one["prompt"].strip() == other["prompt"].strip()
            if other["score"] is None:
                continue
            ours = one["ours"]
            problem = Problem.from_row({**ours, "problem_id": ours["id"]})
            verdict = pool.judge(one["response"], problem)
            counts["answers"] += 1
            if verdict.score == other["score"]:
                counts["scores_equal"] += 1
            else:
                counts["differ"].append({"id": ours["id"], "gold": ours["answer"],
                                         "response": one["response"][-120:], "ours": verdict.score,
                                         "verdict": verdict.verdict, "theirs": other["score"]})
    return out


def main() -> None:
    """Compare, print the counts and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", help="Python of lm-evaluation-harness's environment.")
    parser.add_argument("--data", type=Path, default=_ROOT.parent / "shared" / "data")
    parser.add_argument("--theirs", action="store_true", help="Used by the other side.")
    parser.add_argument("--out", type=Path, default=_ROOT / "results" / "lm_eval.json")
    given = parser.parse_args()
    if given.theirs:
        return theirs()
    asked = list(requests(given.data))
    lines = "".join(json.dumps(one) + "\n" for one in asked)
    done = subprocess.run([given.python, "-P", __file__, "--theirs"], input=lines, text=True,
                          stdout=subprocess.PIPE, check=True)
    counts = compare(asked, [json.loads(line) for line in done.stdout.splitlines()])
    told = {"command": "python -m benchmarks.lm_eval", "date": time.strftime("%Y-%m-%d"),
            "lm_eval": "0.4.13", "benchmarks": counts}
    given.out.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, found in counts.items():
        print(f"{name:14} prompts {found['prompts_equal']} of {found['prompts']} equal, scores "
              f"{found['scores_equal']} of {found['answers']}")
    return None


if __name__ == "__main__":
    main()
