"""The trainers' and peft's own settings, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import UserError
from pipeline.progress import quiet_libraries

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


def lora_config(lora: Mapping[str, Any] | None, section: str) -> Any:
    """The peft LoraConfig that `lora`, a section of the config, means; None where it is None."""
    if lora is None:
        return None
    from peft import LoraConfig

    if lora.get("r", 1) < 1:
        raise UserError(f"{section}.r={lora['r']} must be above 0")
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": "all-linear", **lora})
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}: LoraConfig refuses these settings: {error}") from None
