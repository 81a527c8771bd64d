"""Seconds of a GRPO rollout by engines on one GPU, with vLLM's scheduler and with DecodeScheduler.

  python -m benchmarks.rollouts --model FOLDER --problems FILE.jsonl [--engines 1 2 4]

An EngineGroup samples a group of completions of each problem, as rl.trainer.use_vllm does, without
training. The first round warms up; the last is greedy, and greedy_equal is the share of completions
that both schedulers gave alike. One JSON line for each setting.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.decode_steps import OURS
from benchmarks.grpo import prompts
from pipeline.serving.engine_group import EngineGroup

VLLM = {"dtype": "bfloat16", "max_model_len": 4096, "max_num_seqs": 1024,
        "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY",
                               "max_cudagraph_capture_size": 1024}}
SCHEDULERS: dict[str, dict[str, Any]] = {"vLLM": {}, "limbeck": {"scheduler_cls": OURS}}


def measure(given: argparse.Namespace, asked: list[list[int]], stops: list[int], engines: int,
            scheduler: str) -> tuple[dict[str, Any], list[list[int]]]:
    """The figures of a setting and its greedy completions."""
    from vllm import SamplingParams

    begun = time.perf_counter()
    group = EngineGroup(engines, {**VLLM, "model": given.model, "seed": 0,
                                  "kv_cache_memory_bytes": given.cache, **SCHEDULERS[scheduler],
                                  **given.engine})
    started, seconds, tokens = time.perf_counter() - begun, [], []
    for index in range(given.rounds + 2):
        greedy = index == given.rounds + 1
        params = SamplingParams(temperature=0.0 if greedy else 1.0, max_tokens=given.longest,
                                detokenize=False, stop_token_ids=stops)
        begun = time.perf_counter()
        rows = [list(output.outputs[0].token_ids) for output in group.generate(
            [{"prompt_token_ids": prompt} for prompt in asked], params)]
        seconds.append(time.perf_counter() - begun)
        tokens.append(sum(map(len, rows)))
        group.reset_prefix_cache()
    group.close()
    measured = seconds[1:-1]
    return {"engines": engines, "scheduler": scheduler,
            "start_s": round(started, 1), "seconds": [round(value, 2) for value in seconds],
            "median": round(statistics.median(measured), 2), "low": round(min(measured), 2),
            "high": round(max(measured), 2), "tokens": tokens,
            "tokens_per_second": round(sum(tokens[1:-1]) / sum(measured))}, rows


def main() -> None:
    from transformers import AutoTokenizer

    from pipeline.student.template import prompt_ids

    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--longest", type=int, default=512, help="tokens of a completion")
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--schedulers", nargs="+", choices=list(SCHEDULERS), default=SCHEDULERS,
                        help="DecodeScheduler needs vLLM 0.24")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=int, default=8_000_000_000, help="bytes of each engine's")
    parser.add_argument("--engine", type=json.loads, default={}, help="vllm.LLM options, in JSON")
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    asked = [prompt_ids(tokenizer, row["prompt"])
             for row in prompts(given.problems)[:given.prompts] for _ in range(given.group)]
    for engines in given.engines:
        said: dict[str, list[list[int]]] = {}
        for name in given.schedulers:
            line, said[name] = measure(given, asked, [tokenizer.eos_token_id], engines, name)
            if len(said) > 1:
                line["greedy_equal"] = round(statistics.mean(
                    map(list.__eq__, said["vLLM"], said["limbeck"])), 4)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
