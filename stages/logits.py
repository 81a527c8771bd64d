"""logits: the teacher's distribution at every trained token of the token rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.recipe import Vllm
from pipeline.stage import Counts, Stage


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write shard-N.parquet: outcomes and their log-probabilities of every trained token."""
    from transformers import AutoConfig

    from pipeline.chat import load_tokenizer
    from pipeline.logits import score_rows
    from pipeline.progress import progress
    from pipeline.rows import read_rows
    from pipeline.scorer import check_vocabulary, make_scorer
    from pipeline.student import resolve

    config = experiment.logits
    rows = read_rows(inputs["pack"] / "rows.parquet")
    student = load_tokenizer(inputs["student"] / "tokenizer")
    check_vocabulary(load_tokenizer(config.teacher), student, config.teacher)
    width = AutoConfig.from_pretrained(resolve(inputs["student"])).get_text_config().vocab_size
    facts = {"teacher": config.teacher, "temperature": config.temperature}
    with progress("scoring", len(rows)) as advance:
        return score_rows(rows, make_scorer(config, width), config.mass, config.shard_rows, out,
                          facts, advance)


def check(experiment: Any) -> None:
    config = experiment.logits
    if not config.teacher:
        raise UserError("logits.teacher is empty; name the model that scores, e.g. "
                        "logits.teacher=Qwen/Qwen2.5-Coder-1.5B-Instruct")
    if isinstance(config.scorer, Vllm) and config.temperature != 1:
        raise UserError("vLLM gives prompt log-probabilities at temperature 1 only; set "
                        "logits.temperature=1 or logits.scorer.type=transformers")


def summary(counts: Counts) -> str:
    return (f"{counts['loss_tokens']:,} tokens, {counts['outcomes_per_token']} outcomes and "
            f"{counts['bytes_per_token']} bytes each, {counts['mean_rest']:.2%} in the rest; the "
            f"likeliest is the trace's in {counts['argmax_share']:.0%}")


STAGE = Stage(name="logits", run=run, check=check, needs=lambda e: ("student", "pack"),
              resumable=True, summary=summary)
