"""The local vLLM teacher beside vLLM's own offline `LLM.chat`: tokens a second on the same prompts.

  python benchmarks/teacher_vllm.py offline --config FILE... --out offline.json [KEY=VALUE]...
  python benchmarks/teacher_vllm.py report --offline offline.json --artifacts FOLDER --out FILE.json

`offline` asks the same chats, with the same samples and sampling, of the same model with the same
engine options, through LLM.chat in one call. `report` lays the generate stage's own count beside
it: tokens, seconds from the first request to the last answer (starting the server or the engine is
left out on both sides and stated apart), and the yields by verdict of the filter stage.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.problems.chats import teacher_chats
from stages.graph import plans

SERVER_ONLY = {"api_server_count"}


def offline(files: list[Path], overrides: list[str], out: Path) -> None:
    """One LLM.chat call over every chat of the experiment."""
    from vllm import LLM, SamplingParams

    experiment: Any = load(Experiment, files, overrides)
    prepared = plans(experiment, "prepare")["prepare"].folder
    problems = tables.read(tables.Problem, prepared / "problems.parquet")
    asked = list(teacher_chats(experiment.generate, problems.iter_rows(named=True)).values())
    teacher, sampling = experiment.generate.teacher, experiment.generate.sampling
    begun = time.monotonic()
    llm = LLM(teacher.model, **{k: v for k, v in teacher.vllm.items() if k not in SERVER_ONLY})
    started = time.monotonic()
    outputs = llm.chat(asked, SamplingParams(n=experiment.generate.samples, **sampling.body()))
    ended = time.monotonic()
    tokens = sum(len(choice.token_ids) for output in outputs for choice in output.outputs)
    prompt = sum(len(output.prompt_token_ids or []) for output in outputs)
    out.write_text(json.dumps({
        "samples": sum(len(output.outputs) for output in outputs), "completion_tokens": tokens,
        "prompt_tokens": prompt, "seconds": round(ended - started, 2),
        "start_seconds": round(started - begun, 2),
        "tokens_per_second": round(tokens / (ended - started))}, indent=1) + "\n")


def report(beside: Path, artifacts: Path, out: Path) -> None:
    """The newest generate and filter artifacts' figures beside LLM.chat's."""
    newest = {stage: max(artifacts.glob(f"{stage}-*/manifest.json"),
                         key=lambda path: path.stat().st_mtime) for stage in ("generate", "filter")}
    made = {stage: json.loads(path.read_text()) for stage, path in newest.items()}
    counts, seconds = made["generate"]["counts"], made["generate"]["counts"]["asking_seconds"]
    rate, alone = counts["completion_tokens"] / seconds, json.loads(beside.read_text())
    out.write_text(json.dumps({
        "limbeck": {"samples": counts["traces"], "completion_tokens": counts["completion_tokens"],
                    "prompt_tokens": counts["prompt_tokens"], "seconds": seconds,
                    "start_seconds": round(made["generate"]["seconds"] - seconds, 2),
                    "tokens_per_second": round(rate), "failed": counts["failed"],
                    "retries": counts["retries"], "cut_off": counts["cut_off"]},
        "LLM.chat": alone, "ratio": round(rate / alone["tokens_per_second"], 3),
        "filter": made["filter"]["counts"], "filter_seconds": made["filter"]["seconds"],
        "libraries": made["generate"]["libraries"]}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["offline", "report"])
    parser.add_argument("--config", type=Path, action="append", default=[])
    parser.add_argument("--offline", type=Path)
    parser.add_argument("--artifacts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    if given.what == "offline":
        offline(given.config, given.overrides, given.out)
    else:
        report(given.offline, given.artifacts, given.out)


if __name__ == "__main__":
    main()
