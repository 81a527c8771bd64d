"""A small whole run made up for tests: every stage's folder with what the report reads."""

import json
import math
import random

import polars as pl

from pipeline import tables
from pipeline.evaluate.metrics import summarise

SKILL = {"untrained": 0.0, "sft": 0.5, "rl": 0.75, "teacher": 0.6}
INPUTS = {"prepare": (), "generate": ("prepare",), "filter": ("prepare", "generate"),
          "student": ("filter",), "pack": ("filter", "student"), "sft": ("student", "pack"),
          "rl": ("prepare", "sft"), "evaluate": ("prepare", "student", "sft", "rl", "generate")}


def made_run(root, thinking="Try 7-2=5. Wait, too low.", models=tuple(SKILL)):
    """{stage: folder} of a small whole run under `root`."""
    draw = random.Random(0)
    folders = {name: root / f"{name}-key" for name in INPUTS}
    problems = [{"problem_id": f"p{i}", "problem": f"Make {i} of 2 & 3.", "answer": f"{i}+0",
                 "kind": "gym", "source": "made", "split": "heldout", "meta": "{}"}
                for i in range(60)]
    tables.write(tables.Problem, pl.DataFrame(problems), folders["prepare"] / "heldout.parquet")
    judged = [trace(i, draw, thinking) for i in range(400)]
    tables.write(tables.Trace, pl.DataFrame(judged).select(list(tables.Trace.columns())),
                  folders["generate"] / "traces.parquet")
    tables.write(tables.Judged, pl.DataFrame(judged), folders["filter"] / "judged.parquet")
    write_scores(folders["evaluate"], problems, models, draw, thinking)
    for stage, rate in (("sft", 0.05), ("rl", 0.02)):
        write_log(folders[stage], rate, draw)
    for index, (name, inputs) in enumerate(INPUTS.items()):
        folders[name].mkdir(exist_ok=True)
        manifest = {"key": f"{name}-key", "inputs": {other: f"{other}-key" for other in inputs},
                    "seconds": 1.5 + 20 * index, "counts": {"tokens": 4321}, "finished": index,
                    "git_commit": "abc123", "python": "3.12.1", "libraries": {"trl": "1.16.0"}}
        (folders[name] / "manifest.json").write_text(json.dumps(manifest))
    return folders


def trace(index, draw, thinking):
    reason = draw.choices(["", "wrong", "cut_off", "duplicate"], [50, 35, 5, 10])[0]
    return {"problem_id": f"t{index // 4}", "sample": index % 4, "thinking": thinking,
            "answer": "1", "finish_reason": "stop", "complete": True, "prompt_tokens": 20,
            "completion_tokens": int(draw.lognormvariate(5 if reason else 4.7, 0.5)),
            "cost_usd": 0.01, "seconds": 0.1, "model": "m", "score": float(reason != "wrong"),
            "verdict": reason if reason in ("wrong", "cut_off") else "correct", "extracted": "1",
            "grader": "made", "source": "made", "judge_version": "1", "pass_rate": 0.5,
            "kept": not reason, "reason": reason}


def write_scores(folder, problems, models, draw, thinking):
    rows = []
    for model in models:
        for problem in problems:
            for sample in range(4):
                right = draw.random() < SKILL[model]
                rows.append({"problem_id": problem["problem_id"], "sample": sample,
                             "thinking": thinking * (1 + draw.randrange(20)),
                             "answer": thinking, "completion_tokens": draw.randrange(30, 400),
                             "score": float(right), "verdict": "correct" if right else "wrong",
                             "extracted": "1" if right else "2", "vote": "1" if right else "2",
                             "cut_off": False, "model": model, "benchmark": "heldout"})
    scores = {m: {"heldout": summarise([r for r in rows if r["model"] == m])} for m in models}
    folder.mkdir()
    (folder / "scores.json").write_text(json.dumps(scores))
    pl.DataFrame(rows).write_parquet(folder / "completions.parquet")


def write_log(folder, rate, draw):
    folder.mkdir()
    lines = []
    for step in range(1, 71):
        done = 1 - math.exp(-rate * step)
        noise = draw.gauss(0, 0.03)
        lines.append({"step": step, "loss": 6 - 5 * done + noise, "grad_norm": 1 + noise,
                      "num_tokens": 1000.0 * step, "mean_token_accuracy": 0.2 + 0.5 * done,
                      "reward": 0.4 + 0.3 * done + noise, "rewards/accuracy/mean": 0.4 + 0.3 * done,
                      "completions/mean_length": 90 + 30 * done, "reflection": 3 + done,
                      "frac_reward_zero_std": max(0, 0.5 - done / 3 + noise),
                      "completions/clipped_ratio": 0.0,
                      "entropy": math.nan if step == 9 else 1 - done / 2})
    lines.append({"step": 70, "train_runtime": 12.0})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
