"""The trainers' and peft's own settings, checked before any work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import UserError
from pipeline.progress import quiet_libraries
from pipeline.student.tokenizer import check_hub

POSITIVE = ("per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs",
            "gradient_accumulation_steps", "num_generations", "max_completion_length",
            "temperature", "learning_rate")
"""Keys whose wrong value the library finds late or not at all."""


def trainer_arguments(kind: Any, section: str, given: Mapping[str, Any], out: Path,
                      seed: int) -> Any:
    """`kind` (SFTConfig or GRPOConfig) from the keys given, with the machine's device settings.

    Raises a UserError naming the key where the library's config class does not know or take it.
    """
    fields = set(kind.__dataclass_fields__)
    unknown = sorted(set(given) - fields)
    if unknown:
        raise UserError(f"{section}.{unknown[0]} is not a key of {kind.__name__}; "
                        f"see its documentation in TRL {version('trl')}")
    if "output_dir" in given:
        raise UserError(f"{section}.output_dir: checkpoints lie in the run's own folder, where it "
                        "goes on from; leave this out")
    hints = get_type_hints(kind)
    given = {key: _typed(hints[key], f"{section}.{key}", value) for key, value in given.items()}
    quiet_libraries()
    cuda = torch.cuda.is_available()
    settings = {"output_dir": str(out / "checkpoints"), "seed": seed, "bf16": cuda,
                "use_cpu": not cuda, "report_to": ["tensorboard"], "disable_tqdm": True,
                "logging_steps": 10, "save_strategy": "steps", "save_steps": 0.25,
                "save_total_limit": 2, **given}
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}: {kind.__name__} refuses these settings: "
                        f"{str(error).splitlines()[0]}") from None


def _typed(hint: Any, name: str, value: Any) -> Any:
    """`value` as the number or truth value that `hint` declares for `name`; others as they are."""
    if value is None or not set(get_args(hint) or [hint]) <= {bool, int, float, NoneType}:
        return value
    try:
        value = TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]["msg"].removeprefix("Input ")
        raise UserError(f"{name}={value!r} {wrong}") from None
    key = name.rpartition(".")[2]
    if (key in POSITIVE and value <= 0) or (key == "max_steps" and value == 0):
        raise UserError(f"{name}={value} must be above 0")
    return value


def lora_config(lora: Mapping[str, Any] | None, section: str, model: str | None = None) -> Any:
    """The peft LoraConfig that `lora`, a section of the config, means; None where it is None.

    Given `model`, a folder or hub id, each of target_modules must fit one of its layers.
    """
    if lora is None:
        return None
    from peft import LoraConfig

    if lora.get("r", 1) < 1:
        raise UserError(f"{section}.r={lora['r']} must be above 0")
    try:
        made = LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": "all-linear", **lora})
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}: LoraConfig refuses these settings: {error}") from None
    if model is not None and made.target_modules != "all-linear":
        _check_targets(made, section, model)
    return made


def _check_targets(lora: Any, section: str, model: str) -> None:
    """Refuse target_modules that peft cannot adapt in `model`, tried without its weights.

    Of several names peft passes over a wrong one, and TRL takes no adapter on the head. A model
    whose configuration needs code of its own is left to them.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    try:
        check_hub(model)
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError):
        return
    def names(*kinds: type) -> list[str]:
        return [f".{name}" for name, module in empty.named_modules()
                if isinstance(module, kinds) and module is not empty.get_output_embeddings()]

    there = {name.rpartition(".")[2] for name in names(torch.nn.Linear, Conv1D)}
    trial = replace(lora, init_lora_weights=False)
    try:
        inject_adapter_in_model(trial, empty)
        adapted = names(BaseTunerLayer)
        for name in [] if isinstance(trial.target_modules, str) else trial.target_modules or []:
            if not any(one.endswith(f".{name}") for one in adapted):
                raise ValueError(f"{name!r} is no layer that can be adapted")
    except (ValueError, re.error) as error:
        why = str(error).splitlines()[0].partition(". ")[0].rstrip("(.")
        raise UserError(f"{section}.target_modules: {why}; give a list of some of "
                        f"{', '.join(sorted(there))}, or all-linear") from None
