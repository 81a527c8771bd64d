"""Prompts a second of GRPO with a colocated vLLM: TRL's GRPOTrainer beside limbeck.

  python benchmarks/grpo.py --model FOLDER --problems FILE.jsonl [--steps 8] [--set KEY=VALUE]...
  accelerate launch --multi_gpu --num_processes 4 benchmarks/grpo.py … --contender limbeck

All get the same model, problems, order, seed, sampling, group size and prompts a step, and a
process of their own; with --runs they take turns. `TRL` keeps its defaults for everything else
(batches of 8, gradient checkpointing, importance-sampling correction, its own engine) and its
accuracy_reward; limbeck takes what configs/qwen-distill.yaml says. `TRL best` does neither
checkpointing nor correction, has limbeck's micro-batches, Liger's layers and the engine awake;
TRL 1.16 has no padding-free GRPO, computes the loss by its own fused head whatever Liger offers,
and hands no compilation option to vLLM. `ahead` samples for four updates at once, which makes three
of four off-policy. `rows 64` has micro-batches of 64, `compiled` those and rl.layers. TRL's
async_grpo has its attention from the hub's kernels and is not among them. Several processes share
a step's problems; what is said of a GPU or of shares of a step is then the first one's.

One JSON line each: prompts and completion tokens a second after the warm-up, the shares of a step
spent in generation and in verification, the share of the time in which the GPU ran any kernel and
the most memory in use on it (nvidia-smi, five samples a second), and reward, tokens and seconds of
every step. With ten steps or more a last line says what each spent until the mean reward of ten
steps reached what all reached. --out gets the lines, with medians and spread.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import IO, Any, cast

import yaml

GROUP, LONGEST, WINDOW = 8, 512, 10
LENGTH = "completions/mean_length"
SHARED = {"use_vllm": True, "num_generations": GROUP, "max_completion_length": LONGEST,
          "temperature": 1.0, "learning_rate": 5e-6, "logging_steps": 1, "report_to": [],
          "save_strategy": "no", "seed": 0, "disable_tqdm": True, "vllm_max_model_length": 4096}
ROOT = Path(__file__).resolve().parents[1]
BEST = {"gradient_checkpointing": False, "per_device_train_batch_size": 32,
        "vllm_importance_sampling_correction": False, "use_liger_kernel": True}
COMPILED = {"per_device_train_batch_size": 64, "layers": "compiled"}
CONTENDERS: dict[str, dict[str, Any]] = {
    "TRL": {}, "TRL best": BEST,
    "TRL best, FA4": {**BEST, "model_init_kwargs": {"attn_implementation": "flash_attention_4"}},
    "TRL best, rows 64": {**BEST, "per_device_train_batch_size": 64},
    "TRL best, ahead": BEST, "limbeck": {}, "limbeck, rows 64": {"per_device_train_batch_size": 64},
    "limbeck, compiled": COMPILED, "limbeck, compiled, 4 engines": {**COMPILED, "engines": 4}}
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
"""Of the launched run that this one is of."""
AHEAD = 4
"""Updates that `TRL best, ahead` samples for at once."""


def timed(call: Callable, spent: list[float]) -> Callable:
    """`call`, whose seconds go to `spent`."""
    def run(*args: Any, **given: Any) -> Any:
        begun = time.perf_counter()
        try:
            return call(*args, **given)
        finally:
            spent.append(time.perf_counter() - begun)

    run.__name__ = getattr(call, "__name__", "reward")
    return run


class Busy(threading.Thread):
    """Samples (seconds, share of the time in which the GPU ran a kernel) until the program ends.

    `most` is the largest memory in use seen, in GB, that of all processes.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float]] = []
        self.most = 0.0

    def run(self) -> None:
        import torch

        if not torch.cuda.is_available() or not which("nvidia-smi"):
            return
        command = ["nvidia-smi", "-i", f"GPU-{torch.cuda.get_device_properties(0).uuid}", "-lms",
                   "200", "--query-gpu=utilization.gpu,memory.used",
                   "--format=csv,noheader,nounits"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watched:
            atexit.register(watched.kill)
            for line in cast(IO[str], watched.stdout):
                share, mib = map(float, line.split(","))
                self.samples.append((time.perf_counter(), share / 100))
                self.most = max(self.most, mib * 2**20 / 1e9)

    def since(self, moment: float) -> float | None:
        shares = [share for at, share in self.samples if at >= moment]
        return round(sum(shares) / len(shares), 3) if shares else None


def prompts(path: Path) -> list[dict[str, Any]]:
    """The problems as chats, with the columns either reward reads."""
    from pipeline.config.problems import Source
    from pipeline.problems.sources import load_rows
    from pipeline.prompts import chats

    rows = load_rows(Source(problems=str(path)), 0)
    asked = chats("boxed", rows)
    return [{"prompt": asked[row["problem_id"]], "solution": f"${row['answer']}$", **row}
            for row in rows]


def trl_trainer(given: argparse.Namespace, rows: list[dict], out: str, verify: list[float]) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.rewards import accuracy_reward

    settings = {**SHARED, **CONTENDERS[given.contender], **options(given)}
    size = settings.get("per_device_train_batch_size", 8)
    settings["gradient_accumulation_steps"] = given.prompts * GROUP // size // PROCESSES
    if "ahead" in given.contender:
        settings["steps_per_generation"] = AHEAD * settings["gradient_accumulation_steps"]
    args = GRPOConfig(output_dir=out, max_steps=given.steps, **settings)
    return GRPOTrainer(model=given.model, reward_funcs=[timed(accuracy_reward, verify)], args=args,
                       train_dataset=Dataset.from_list(rows))


def our_trainer(given: argparse.Namespace, rows: list[dict], out: str, verify: list[float]) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer

    from pipeline.config.rl import RlConfig
    from pipeline.judge import JudgePool
    from pipeline.rl.grpo_trainer import PaddingFreeGRPOTrainer
    from pipeline.rl.rewards import accuracy_reward
    from pipeline.rl.schedule import grpo_config, phase_settings
    from pipeline.train.fit import load_student

    config = yaml.safe_load((ROOT / "configs/qwen-distill.yaml").read_text(encoding="utf-8"))
    settings = {**config["rl"]["trainer"], **SHARED, "max_steps": given.steps,
                **CONTENDERS[given.contender], **options(given)}
    layers, engines = settings.pop("layers", "transformers"), settings.pop("engines", 0)
    settings["gradient_accumulation_steps"] = \
        given.prompts * GROUP // settings["per_device_train_batch_size"] // PROCESSES
    pool = JudgePool(config["runtime"]["judge_workers"]).__enter__()
    pool.start()
    args = grpo_config(phase_settings(RlConfig(trainer=settings))[0], Path(out), 0)
    return PaddingFreeGRPOTrainer(
        model=load_student(given.model, args, layers), args=args,
        reward_funcs=[timed(accuracy_reward(pool), verify)], train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(given.model),
        engine={**config["runtime"]["vllm"], "engines": engines or config["runtime"]["engines"],
                **given.engine})


def options(given: argparse.Namespace) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in given.set)}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of one contender, in this process."""
    verify: list[float] = []
    generate: list[float] = []
    busy = Busy()
    make = our_trainer if given.contender.startswith("limbeck") else trl_trainer
    with tempfile.TemporaryDirectory() as out:
        trainer = make(given, prompts(given.problems), out, verify)
        trainer._generate_single_turn = timed(trainer._generate_single_turn, generate)
        busy.start()
        trainer.train()
        end = time.perf_counter()
    warm = given.steps // 3
    logged = carried([entry for entry in trainer.state.log_history if "step_time" in entry])
    logs = logged[warm:]
    wall = sum(entry["step_time"] for entry in logs)
    tokens = sum(entry[LENGTH] for entry in logs) * given.prompts * GROUP
    per_step = len(logs) * given.prompts
    first = warm // (AHEAD if "ahead" in given.contender else 1)
    return {"contender": given.contender, "processes": PROCESSES,
            "prompts_per_second": round(per_step / wall, 2),
            "completion_tokens_per_second": round(tokens / wall),
            "mean_length": round(tokens / per_step / GROUP, 1),
            "generation_share": round(sum(generate[first:]) / wall, 3),
            "verification_share": round(sum(verify[first:]) / wall, 4),
            "gpu_busy": busy.since(end - wall),
            "peak_gb": round(busy.most, 1),
            "rewards": [round(entry["reward"], 3) for entry in logged],
            "tokens": [round(entry[LENGTH] * given.prompts * GROUP) for entry in logged],
            "seconds": [round(entry["step_time"], 2) for entry in logged]}


def carried(logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`logged` with the reward and length of the generation that a step was trained on."""
    kept: dict[str, Any] = {}
    out = []
    for entry in logged:
        kept |= {key: entry[key] for key in ("reward", LENGTH) if key in entry}
        out.append({**kept, **entry})
    return out


def means(values: list[float]) -> list[float]:
    """The mean of each WINDOW values in a row."""
    return [sum(values[i - WINDOW:i]) / WINDOW for i in range(WINDOW, len(values) + 1)]


def compared(contenders: list[dict[str, Any]]) -> dict[str, Any]:
    """What each spent up to the highest reward, a mean of WINDOW steps, that all reached."""
    reward = min(max(means(one["rewards"])) for one in contenders)
    out: dict[str, Any] = {"reward": round(reward, 3)}
    for one in contenders:
        steps = WINDOW + next(i for i, mean in enumerate(means(one["rewards"])) if mean >= reward)
        out[one["contender"]] = {"steps": steps, "tokens": sum(one["tokens"][:steps]),
                                 "seconds": round(sum(one["seconds"][:steps]), 1)}
    return out


def summary(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median, least and most prompts a second of each contender, fastest first."""
    rates: dict[str, list[float]] = {}
    for line in lines:
        rates.setdefault(line["contender"], []).append(line["prompts_per_second"])
    out = [{"contender": name, "runs": len(some), "median": statistics.median(some),
            "low": min(some), "high": max(some)} for name, some in rates.items()]
    return sorted(out, key=lambda row: -row["median"])


def in_turn(given: argparse.Namespace) -> str:
    """The JSON lines of --runs rounds of the contenders, each in a process of its own."""
    said, begun = "", time.monotonic()
    for name in given.only * given.runs:
        if given.minutes and time.monotonic() - begun > 60 * given.minutes:
            break
        done = subprocess.run([sys.executable, *sys.argv, "--contender", name], check=False,
                              stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        said += done.stdout
        if given.out:
            found = parsed([said])
            given.out.write_text(json.dumps({"summary": summary(found), "runs": found}))
    return said


def parsed(said: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for text in said for line in text.splitlines()
            if line.startswith('{"contender"')]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--problems", type=Path)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=32, help="problems a step")
    parser.add_argument("--set", action="append", default=[], help="a GRPOConfig key for all")
    parser.add_argument("--engine", type=json.loads, default={},
                        help="vllm.LLM options for limbeck beside the recipe's, in JSON")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=["TRL", "limbeck"])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="begin no run after so many")
    parser.add_argument("--contender", choices=list(CONTENDERS), help="measure only this one, here")
    parser.add_argument("--out", type=Path, help="JSON of all runs and their summary")
    parser.add_argument("--compare", nargs="+", type=Path, metavar="FILE",
                        help="measure nothing; compare the JSON lines in these")
    given = parser.parse_args()
    if not given.compare and not (given.model and given.problems):
        parser.error("--model and --problems are needed, or --compare")
    if given.contender:
        measured = measure(given)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(measured), flush=True)
        return
    contenders = parsed([path.read_text(encoding="utf-8") for path in given.compare]
                        if given.compare else [in_turn(given)])
    for row in summary(contenders):
        print(json.dumps(row), flush=True)
    once = list({one["contender"]: one for one in contenders}.values())
    if len(once) > 1 and all(len(one["rewards"]) >= WINDOW for one in once):
        print(json.dumps(compared(once)), flush=True)


if __name__ == "__main__":
    main()
