"""SFT tokens a second on the same token rows: TRL as it stands, TRL at its best, limbeck.

  python benchmarks/sft.py --model FOLDER --rows rows.parquet [--batch 16 32] [--runs 3]
  accelerate launch --multi_gpu --num_processes 4 benchmarks/sft.py … --contender limbeck

Every run of a contender has a process of its own, since Liger's layers change the library in place;
the runs take turns. A JSON line for each run: tokens a second after the warm-up (as the trainer
counts them, of all processes), peak GB, the share of --tflops that 6 * parameters * tokens are, and
every step's loss. Batches are rows in their order; with packing, blocks of --pack tokens, as many
as hold about --batch rows. The last lines, and --out, give the median and the spread over the runs.
A contender whose loss is not finite is reported as such, not as fast.

flash_attention_4 needs the package flash-attn-4 and a Hopper GPU. Contenders that lay rows end to
end without it (SDPA) pay for a dense mask over all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from pipeline.config.sft import SftConfig, SftJob
from pipeline.errors import UserError
from pipeline.sft.target_store import TopKLogprobs, score_rows
from pipeline.sft.trainer import make_trainer
from pipeline.student.token_rows import Rows, read_rows

CUDA = torch.cuda.is_available()
OUTCOMES = 8
TUNED = {"gradient_checkpointing": False, "padding_free": True}
LIGER, FA4 = {"use_liger_kernel": True}, {"attention": "flash_attention_4"}
PACKED = {"gradient_checkpointing": False, "packing": True, "packing_strategy": "bfd"}
VARLEN = {"attention": "limbeck_varlen"}
CONTENDERS: dict[str, dict[str, Any]] = {
    "TRL defaults": {}, "TRL padding-free, no checkpointing": TUNED,
    "TRL with Liger layers": {**TUNED, **LIGER},
    "TRL with Liger layers, padded": {"gradient_checkpointing": False, **LIGER},
    "TRL padding-free, FA4": {**TUNED, **FA4},
    "TRL padding-free, FA4, Liger": {**TUNED, **FA4, **LIGER},
    "TRL packed bfd, FA4": {**PACKED, **FA4},
    "TRL packed bfd, FA4, Liger": {**PACKED, **FA4, **LIGER},
    "limbeck": VARLEN, "limbeck, FA4": FA4, "limbeck, SDPA": {"attention": "sdpa"},
    "limbeck, own head": {**VARLEN, "head": "limbeck"},
    "limbeck with Liger layers": {**VARLEN, **LIGER},
    "limbeck, FA4, Liger": {**FA4, **LIGER},
    "limbeck, compiled": {**VARLEN, "layers": "compiled"},
    "limbeck, compiled, own head": {**VARLEN, "layers": "compiled", "head": "limbeck"},
    "limbeck, FA4, compiled, own head": {**FA4, "layers": "compiled", "head": "limbeck"},
    "limbeck, compiled, stored top-k": {**VARLEN, "layers": "compiled", "stored": True},
    "limbeck, own head, stored top-k": {**VARLEN, "stored": True},
}


class Clock(TrainerCallback):
    """When each step ended, its loss, and the tokens up to it."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.tokens: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if CUDA:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.losses.append(float(logs["loss"]))
            self.tokens.append(float(logs["num_tokens"]))


def invented(rows: Rows, out: Path) -> Path:
    """A folder of stored distributions of no teacher: time counts alone, and the outcomes a token.

    Four hold 99.9 percent, as with a real one (results/gpu.json: 3.74).
    """
    draw = np.random.default_rng(0)
    logps = np.log(0.85 * 0.15 ** np.arange(OUTCOMES))

    def scorer(samples: Any) -> list[TopKLogprobs]:
        found = []
        for ids, at in samples:
            others = draw.integers(0, 32000, (len(at), OUTCOMES))
            others[:, 0] = ids[at]
            found.append(TopKLogprobs(others, np.tile(logps, (len(at), 1)),
                                      np.full(len(at), OUTCOMES * np.log(0.15))))
        return found

    folder = out / "logits"
    folder.mkdir()
    score_rows(rows, scorer, 0.999, 512, folder, {"temperature": 1.0}, lambda _: None)
    return folder


def contender(name: str, given: argparse.Namespace, batch: int, rows: Rows, out: Path) -> Any:
    """A trainer ready to train, with the settings that `name` stands for."""
    settings = dict(CONTENDERS[name])
    model = {"attn_implementation": settings.pop("attention")} if "attention" in settings else {}
    shared = {"per_device_train_batch_size": batch, "max_steps": given.steps,
              "logging_steps": 1, "learning_rate": 1e-5, "train_sampling_strategy": "sequential",
              "save_strategy": "no", "lr_scheduler_type": "constant", "bf16": CUDA,
              "logging_nan_inf_filter": False, "ddp_find_unused_parameters": False}
    if name.startswith("limbeck"):
        stored = settings.pop("stored", False)
        recipe = SftConfig(held_out=0, head=settings.pop("head", "trl"),
                           layers=settings.pop("layers", "transformers"),
                           method={"type": "logits" if stored else "sequence"},
                           trainer={**shared, **settings, "padding_free": True,
                                    "model_init_kwargs": model})
        return make_trainer(SftJob(sft=recipe, model=given.model, tokenizer=Path(given.model),
                                   rows=given.rows, out=out,
                                   logits=invented(rows, out) if stored else None))[0]
    if settings.get("packing"):
        tokens = batch * sum(map(len, rows.ids)) / len(rows)
        shared["per_device_train_batch_size"] = max(1, round(tokens / given.pack))
        shared["max_length"] = given.pack
    args = SFTConfig(output_dir=str(out), report_to=[], use_cpu=not CUDA, disable_tqdm=True,
                     **{"max_length": None, **shared, **settings})
    data = Dataset.from_dict({"input_ids": [ids.tolist() for ids in rows.ids],
                              "labels": [labels.tolist() for labels in rows.labels]})
    student = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32, **model)
    return SFTTrainer(model=student, args=args, train_dataset=data,
                      processing_class=AutoTokenizer.from_pretrained(given.model))


def measure(name: str, given: argparse.Namespace, batch: int, rows: Rows) -> dict[str, Any]:
    """The figures of one run of a contender, in this process."""
    clock, who = Clock(), {"contender": name, "batch": batch}
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer = contender(name, given, batch, rows, Path(folder))
            trainer.add_callback(clock)
            trainer.train()
        except (ImportError, UserError, ValueError, torch.OutOfMemoryError) as error:
            return {**who, "failed": str(error).splitlines()[0]}
    warm = given.steps // 3
    rate = (clock.tokens[-1] - clock.tokens[warm - 1]) / (clock.ends[-1] - clock.ends[warm - 1])
    processes = trainer.accelerator.num_processes
    parameters = sum(p.numel() for p in trainer.model.parameters())
    return {**who, "processes": processes, "tokens_per_second": round(rate),
            "tokens_a_step": round(clock.tokens[-1] / len(clock.tokens)),
            "finite": all(map(math.isfinite, clock.losses)),
            "flop_share": round(6 * parameters * rate / (given.tflops * 1e12 * processes), 4),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if CUDA else None,
            "losses": [round(loss, 4) for loss in clock.losses]}


def run_alone(name: str, given: argparse.Namespace) -> None:
    """Print a JSON line for each batch size, measured in this process."""
    rows = read_rows(given.rows)
    for batch in given.batch:
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        line = measure(name, given, batch, rows)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(line), flush=True)


def summary(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median, least and most tokens a second of each contender and batch size, fastest first."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["batch"], line["contender"]), []).append(line)
    out = []
    for (batch, name), runs in groups.items():
        rates = [run["tokens_per_second"] for run in runs if run.get("finite")]
        if rates:
            out.append({"batch": batch, "contender": name, "runs": len(rates),
                        "median": statistics.median(rates), "low": min(rates), "high": max(rates),
                        "flop_share": statistics.median(r["flop_share"] for r in runs if
                                                        r.get("finite")),
                        "peak_gb": runs[-1].get("peak_gb")})
    return sorted(out, key=lambda row: (row["batch"], -row["median"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[16], help="rows a step")
    parser.add_argument("--pack", type=int, default=3072, help="tokens a block of packed rows")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="begin no run after so many")
    parser.add_argument("--tflops", type=float, default=798.0, help="what counts as 100 percent")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--contender", choices=list(CONTENDERS), help="in this process, once")
    parser.add_argument("--out", type=Path, help="JSON of all runs and their summary")
    given = parser.parse_args()
    if given.contender:
        run_alone(given.contender, given)
        return
    begun, lines = time.monotonic(), list[dict[str, Any]]()
    for _ in range(given.runs):
        for name in given.only:
            if given.minutes and time.monotonic() - begun > 60 * given.minutes:
                continue
            done = subprocess.run([sys.executable, *sys.argv, "--contender", name], check=False,
                                  stdout=subprocess.PIPE, text=True)
            print(done.stdout, end="", flush=True)
            lines += [json.loads(line) for line in done.stdout.splitlines()
                      if line.startswith('{"contender"')]
            if given.out:
                given.out.write_text(json.dumps({"summary": summary(lines), "runs": lines}))
    for row in summary(lines):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
