"""Peak memory of the filter stage, a part of benchmarks/data.py. Needs Linux's /proc."""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

WORDS = ("let", "me", "check", "that", "sum", "again", "so", "x", "is", "y")


def filter_memory(scale: float) -> dict[str, dict[str, float]]:
    """Peak memory of the filter stage over 40 kB traces, every rule on; the judge is left out.

    Two sizes show that texts pass through; the decision on a million rows, which keeps a few
    numbers and a signature each, is run on made-up ones. Every step has a process of its own.
    """
    out: dict[str, dict[str, float]] = {}

    def apart(step: Callable[..., Any], *given: Any) -> Any:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(step, given)

    for count in (int(4000 * scale), int(16000 * scale)):
        with tempfile.TemporaryDirectory() as folder:
            apart(_make_traces, count, folder)
            out[f"{count:,} traces"] = apart(_filter, count, folder)
    out["decision on 1,000,000"] = apart(_decide, 1_000_000)
    return out


def peak_memory() -> float:
    """Most memory this process has had resident, in GB; unlike getrusage's, not its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e6


def _decide(count: int) -> dict[str, float]:
    """Decide on `count` made-up rows, near-duplicates and a selection included."""
    import polars as pl

    from pipeline.config.filter import FilterConfig
    from pipeline.curate import select

    rng = np.random.default_rng(0)
    signature = rng.integers(0, 1 << 32, (count, 128), np.uint32)
    table = pl.DataFrame({
        "problem_id": [f"problem-{i // 8}" for i in range(count)], "sample": np.arange(count) % 8,
        "completion_tokens": rng.integers(100, 9000, count), "verdict": ["correct"] * count,
        "score": rng.integers(0, 2, count).astype(float), "same": rng.integers(0, 1 << 62, count),
        "signature": pl.Series(signature, dtype=select.SIGNATURE)})
    del signature
    config = FilterConfig(near_duplicates=0.9, keep="0 < pass_rate < 1", per_source=10 ** 5,
                          select={"type": "best", "n": 4})
    began = time.perf_counter()
    decided = select.decide(table, config)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "kept": float(decided["kept"].sum()), "peak GB": peak_memory()}


def _make_traces(count: int, folder: str) -> None:
    """Write the inputs of the filter stage to `folder`."""
    import polars as pl

    from pipeline import tables

    rng = random.Random(0)
    pool = [" ".join(rng.choice(WORDS) + str(rng.randrange(10 ** 6)) for _ in range(20))
            for _ in range(3000)]
    problems = [{"problem_id": f"p{i}", "problem": "q", "answer": "42", "kind": "math",
                 "source": "s", "split": "problems", "meta": "{}"} for i in range(count // 4)]
    tables.write(tables.Problem, pl.DataFrame(problems),
                  Path(folder) / "prepare" / "problems.parquet")
    rows = [_trace(i, pool, rng) for i in range(count)]
    tables.write(tables.Trace, pl.DataFrame(rows),
                  Path(folder) / "generate" / "traces.parquet")


def _filter(count: int, folder: str) -> dict[str, float]:
    """Run the stage on the traces in `folder`, which are one row group: seconds, peak memory."""
    import polars as pl

    import pipeline.judge.table
    from pipeline.config import filter
    from stages import filter as stage

    verdict = {"score": 1.0, "verdict": "correct", "extracted": "42", "grader": "none",
               "judge_version": "0", "pass_rate": 1.0}
    pipeline.judge.table.judge_traces = lambda batch, problems, pool: batch.with_columns(
        **{name: pl.lit(value) for name, value in verdict.items()})
    before = peak_memory()
    config = filter.FilterConfig(rules=list(filter.Rule.__args__), near_duplicates=0.9)
    inputs = {name: Path(folder) / name for name in ("prepare", "generate")}
    began = time.perf_counter()
    experiment = SimpleNamespace(filter=config, runtime=SimpleNamespace(judge_workers=1))
    counts = stage.run(experiment, inputs, Path(folder) / "out")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "traces/s": count / seconds, "kept": float(counts["kept"]),
            "GB before": before, "peak GB": peak_memory()}


def _trace(index: int, pool: list[str], rng: random.Random) -> dict[str, Any]:
    text = "\n\n".join(rng.choices(pool, k=200))
    return {"problem_id": f"p{index // 4}", "sample": index % 4, "thinking": text,
            "answer": "So the answer is then \\boxed{42}.", "finish_reason": "stop",
            "complete": True, "prompt_tokens": 9, "completion_tokens": len(text) // 4,
            "cost_usd": 0.0, "seconds": 1.0, "model": "m"}
