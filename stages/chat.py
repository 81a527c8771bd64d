"""Finds the model that `limbeck chat` names and talks to it, or serves it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.export.chat import HELP, Talk, converse, served
from pipeline.student.tiny import resolve
from stages.graph import MAKER, MODELS, plans


def chat(experiment: Experiment, model: str | None, *, serve: bool, host: str, port: int,
         name: str | None, settings: Mapping[str, Any]) -> None:
    """Talk to `model` until the input ends, or serve it until Ctrl-C."""
    checkpoint, tokenizer = _found(experiment, model or experiment.exported())
    with served(checkpoint, tokenizer, host=host, port=port,
                vllm=experiment.runtime.vllm) as (url, opened):
        if serve:
            print(f"{checkpoint} answers at {url}; Ctrl-C ends it", flush=True)
            while True:
                time.sleep(3600)
        talk = Talk(url, os.environ.get("LIMBECK_API_KEY", ""), name, dict(settings), opened)
        if sys.stdin.isatty():
            print(f"{talk.model}: {HELP}", file=sys.stderr)
        converse(talk, lambda: input("\n> " if sys.stdin.isatty() else ""))


def _found(experiment: Experiment, model: str) -> tuple[str, str]:
    """Return checkpoint and tokenizer of a model of the run, or `model` itself.

    Raises UserError if there is nothing of that name.
    """
    made = MAKER.get(model, model)
    step, _, stage = made.rpartition(".")
    if stage in MODELS and not Path(model).exists():
        chain = plans(experiment, made)
        if chain[made].manifest is None:
            asked = f"{stage} --step {step}" if step else stage
            raise UserError(f"{model} is not made yet for this config; run `limbeck {asked}`, or "
                            "name a checkpoint folder, a .gguf file or an address")
        student = chain[f"{step}.student" if step else "student"]
        return resolve(chain[made].fetched()), str(student.fetched() / "tokenizer")
    local = model.startswith(("http://", "https://")) or Path(model).exists()
    if not local and model.count("/") != 1:
        raise UserError(f"there is no model {model!r}; name a model of the run (untrained, sft, "
                        "rl), a checkpoint folder, a .gguf file, a hub id or an address with /v1")
    return model, model
