"""Prompts a second of GRPO with a colocated vLLM: TRL's GRPOTrainer as it stands beside limbeck.

  python benchmarks/grpo.py --model FOLDER --problems FILE.jsonl [--steps 8] [--set KEY=VALUE]...

Both get the same model, problems, order, seed, sampling, group size and prompts a step, and a
process of their own. TRL keeps its defaults for everything else (batches of 8, gradient
checkpointing, importance-sampling correction, its own engine) and its accuracy_reward; limbeck
takes what configs/qwen-distill.yaml says. One JSON line each: prompts and completion tokens a
second after the warm-up, the shares of a step spent in generation and in verification, the share of
the time in which the GPU ran any kernel (nvidia-smi, five samples a second), peak GB.
"""

from __future__ import annotations

import argparse
import atexit
import json
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

PROMPTS, GROUP, LONGEST = 32, 8, 512
SHARED = {"use_vllm": True, "num_generations": GROUP, "max_completion_length": LONGEST,
          "temperature": 1.0, "learning_rate": 5e-6, "logging_steps": 1, "report_to": [],
          "save_strategy": "no", "seed": 0, "disable_tqdm": True, "vllm_max_model_length": 4096}
ROOT = Path(__file__).resolve().parents[1]


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
    """Samples (seconds, share of the time in which the GPU ran a kernel) until the program ends."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float]] = []

    def run(self) -> None:
        import torch

        if not torch.cuda.is_available() or not which("nvidia-smi"):
            return
        command = ["nvidia-smi", "-i", f"GPU-{torch.cuda.get_device_properties(0).uuid}", "-lms",
                   "200", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watched:
            atexit.register(watched.kill)
            for line in cast(IO[str], watched.stdout):
                self.samples.append((time.perf_counter(), float(line) / 100))

    def since(self, moment: float) -> float | None:
        shares = [share for at, share in self.samples if at >= moment]
        return round(sum(shares) / len(shares), 3) if shares else None


def prompts(path: Path) -> list[dict[str, Any]]:
    """The problems as chats, with the columns either reward reads."""
    from pipeline.problems import Source, load_rows
    from pipeline.prompts import chats

    rows = load_rows(Source(problems=str(path)), 0)
    asked = chats("boxed", rows)
    return [{"prompt": asked[row["problem_id"]], "solution": f"${row['answer']}$", **row}
            for row in rows]


def trl_trainer(given: argparse.Namespace, rows: list[dict], out: str, verify: list[float]) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.rewards import accuracy_reward

    args = GRPOConfig(output_dir=out, **SHARED, max_steps=given.steps,
                      gradient_accumulation_steps=PROMPTS * GROUP // 8, **options(given))
    return GRPOTrainer(model=given.model, reward_funcs=[timed(accuracy_reward, verify)], args=args,
                       train_dataset=Dataset.from_list(rows))


def our_trainer(given: argparse.Namespace, rows: list[dict], out: str, verify: list[float]) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer

    from pipeline.grpo import CompactGRPOTrainer
    from pipeline.rewards import accuracy_reward
    from pipeline.rl import arguments
    from pipeline.trainer import load_student
    from pipeline.verify import JudgePool

    config = yaml.safe_load((ROOT / "configs/qwen-distill.yaml").read_text(encoding="utf-8"))
    settings = {**config["rl"]["trainer"], **SHARED, "max_steps": given.steps, **options(given)}
    settings["gradient_accumulation_steps"] = \
        PROMPTS * GROUP // settings["per_device_train_batch_size"]
    pool = JudgePool(config["runtime"]["judge_workers"]).__enter__()
    pool.start()
    args = arguments(settings, Path(out), 0)
    return CompactGRPOTrainer(
        model=load_student(given.model, args), args=args,
        reward_funcs=[timed(accuracy_reward(pool), verify)], train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(given.model),
        engine=given.engine if given.engine is not None else config["runtime"]["vllm"])


def options(given: argparse.Namespace) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in given.set)}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of one contender, in this process."""
    import torch

    verify: list[float] = []
    generate: list[float] = []
    busy = Busy()
    make = {"TRL": trl_trainer, "limbeck": our_trainer}[given.contender]
    with tempfile.TemporaryDirectory() as out:
        trainer = make(given, prompts(given.problems), out, verify)
        trainer._generate_single_turn = timed(trainer._generate_single_turn, generate)
        busy.start()
        trainer.train()
        end = time.perf_counter()
    warm = given.steps // 3
    logs = [entry for entry in trainer.state.log_history if "step_time" in entry][warm:]
    wall = sum(entry["step_time"] for entry in logs)
    tokens = sum(entry["completions/mean_length"] for entry in logs) * PROMPTS * GROUP
    per_step = len(logs) * PROMPTS
    return {"contender": given.contender, "prompts_per_second": round(per_step / wall, 2),
            "completion_tokens_per_second": round(tokens / wall),
            "mean_length": round(tokens / per_step / GROUP, 1),
            "generation_share": round(sum(generate[warm:]) / wall, 3),
            "verification_share": round(sum(verify[warm:]) / wall, 4),
            "gpu_busy": busy.since(end - wall),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)
            if torch.cuda.is_available() else None,
            "rewards": [round(entry["reward"], 3) for entry in trainer.state.log_history
                        if "reward" in entry]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], help="a GRPOConfig key for both")
    parser.add_argument("--engine", type=json.loads, help="vllm.LLM options for limbeck, in JSON")
    parser.add_argument("--contender", choices=["TRL", "limbeck"], help="measure only this one")
    given = parser.parse_args()
    if given.contender:
        print(json.dumps(measure(given)), flush=True)
        return
    for name in ("TRL", "limbeck"):
        subprocess.run([sys.executable, *sys.argv, "--contender", name], check=False)


if __name__ == "__main__":
    main()
