"""Resolves the settings of TRL's trainers and peft, and checks them before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, Protocol, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline.config.job import SHARED_TRAINER_DEFAULTS
from pipeline.config.trainer_keys import check_trainer_keys
from pipeline.errors import LackingError, UserError
from pipeline.progress import quiet_libraries
from pipeline.student.tokenizer import check_hub

POSITIVE_KEYS = ("per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs",
                 "gradient_accumulation_steps", "num_generations", "max_completion_length",
                 "temperature", "learning_rate")
"""Keys whose wrong value the library reports late or not at all."""


class TrainerSection(Protocol):
    """The sft or rl section of the config."""

    @property
    def trainer(self) -> dict[str, Any]: ...

    def trainer_defaults(self) -> dict[str, Any]: ...


def trainer_settings(section: TrainerSection) -> dict[str, Any]:
    """Return the trainer's keys of a config section: its defaults, overridden by the user's."""
    return {**section.trainer_defaults(), **section.trainer}


def trainer_arguments(kind: Any, section: str, settings: Mapping[str, Any], out: Path,
                      seed: int) -> Any:
    """Build `kind` (SFTConfig, DistillationConfig, GRPOConfig) from `settings` and this machine.

    Raises UserError, naming the key, if the library's config class does not know or accept it.
    """
    check_trainer_keys(kind.__name__, section, settings)
    if "output_dir" in settings:
        raise UserError(f"{section}.output_dir: checkpoints go to the run's own folder, from which "
                        "an interrupted run resumes; remove this key")
    if settings.get("push_to_hub"):
        raise UserError(f"{section}.push_to_hub: checkpoints are pushed nowhere; remove this key "
                        "and upload the finished model: hf upload NAME FOLDER/model, with the "
                        "folder that `limbeck path` prints")
    import torch

    _check_scheduler()
    _check_trackers(settings.get("report_to"), section.removesuffix(".trainer"))
    hints = get_type_hints(kind)
    typed = {key: _typed(hints[key], f"{section}.{key}", value) for key, value in settings.items()}
    quiet_libraries()
    cuda = torch.cuda.is_available()
    machine = {"output_dir": str(out / "checkpoints"), "seed": seed, "bf16": cuda,
               "use_cpu": not cuda, "report_to": ["tensorboard"], "disable_tqdm": True,
               # A causal model uses all it trains; the library's default walks the graph for more.
               "ddp_find_unused_parameters": False}
    try:
        return kind(**{**machine, **SHARED_TRAINER_DEFAULTS, **typed})
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"{section}: {kind.__name__} refuses these settings: "
                        f"{str(error).splitlines()[0]}") from None


def _check_scheduler() -> None:
    """Raise UserError if RANK is set as for one of several processes, but their address is not."""
    ranks = [name for name in ("RANK", "LOCAL_RANK") if name in os.environ]
    if ranks and "MASTER_ADDR" not in os.environ:
        raise LackingError(f"{ranks[0]}={os.environ[ranks[0]]} is set, as a scheduler sets it for "
                           "one of several processes, but MASTER_ADDR is not; unset RANK, "
                           "LOCAL_RANK and WORLD_SIZE (limbeck starts its own processes: "
                           "runtime.launch)")


TRACKER_PACKAGES = {"azure_ml": "azureml", "flyte": "flytekit", "kubeflow": "kubeflow.training",
                    "dagshub": "mlflow"}
"""Packages of transformers' trackers that have another name."""


def _check_trackers(names: Any, section: str) -> None:
    """Raise UserError if a tracker of `report_to` is unknown or not installed."""
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    for name in [names] if isinstance(names, str) else names or []:
        if name in ("all", "none"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(f"{section}.report_to names {name!r}, which is no tracker; there are "
                            f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        package = TRACKER_PACKAGES.get(name, name).partition(".")[0]
        if not find_spec(package):
            raise LackingError(f"{section}.report_to names {name}, which is not installed; pip "
                               f"install {package}, or remove it")


def _typed(hint: Any, name: str, value: Any) -> Any:
    """Convert `value` to the number or truth value that `hint` declares, or raise UserError."""
    if value is None or not set(get_args(hint) or [hint]) <= {bool, int, float, NoneType}:
        return value
    try:
        value = TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]["msg"].removeprefix("Input ")
        raise UserError(f"{name}={value!r} {fault}") from None
    key = name.rpartition(".")[2]
    if (key in POSITIVE_KEYS and value <= 0) or (key == "max_steps" and value == 0):
        raise UserError(f"{name}={value} must be above 0")
    return value


def check_layers(section: Any, name: str) -> None:
    """Raise UserError if `layers: compiled` of the sft or rl section meets what it cannot fuse."""
    if section.layers != "compiled":
        return
    for key, value in (("lora", section.lora),
                       ("trainer.use_liger_kernel", section.trainer.get("use_liger_kernel")),
                       ("trainer.torch_compile", section.trainer.get("torch_compile"))):
        if value:
            raise UserError(f"{name}.layers=compiled uses the layers' weights by itself, past "
                            f"{name}.{key}; remove one of the two")


def check_schedule(section: Any, name: str) -> None:
    """Raise UserError if `schedule: minutes` of the sft or rl section has no limit or no fall."""
    if section.schedule == "steps":
        return
    if section.minutes is None:
        raise UserError(f"{name}.schedule=minutes needs a time limit; set {name}.minutes")
    turns = [trainer_settings(section)]
    turns += [{**turns[0], **phase.trainer} for phase in getattr(section, "phases", [])]
    for kind in (turn["lr_scheduler_type"] for turn in turns):
        if kind.startswith("constant") or kind in ("reduce_lr_on_plateau", "greedy"):
            raise UserError(f"{name}.trainer.lr_scheduler_type={kind} falls with no clock; set "
                            f"cosine or linear for {name}.schedule=minutes")


def check_whole_layers(section: Any, name: str, launch: Mapping[str, Any]) -> None:
    """Raise UserError if `layers: compiled` meets a launch that keeps layers in parts."""
    if section.layers == "compiled" and (sharding := _sharding(launch)):
        raise UserError(f"{name}.layers=compiled reads whole weights past the modules that "
                        f"{sharding} gathers; set {name}.layers=transformers, or launch "
                        "without sharding")


def _sharding(launch: Mapping[str, Any]) -> str | None:
    """What shards the model over processes: an option of accelerate, or one of its config file."""
    file = Path(str(launch.get("config_file")))
    kind = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    named = {"FSDP": "use_fsdp", "DEEPSPEED": "use_deepspeed"}.get(
        str((kind or {}).get("distributed_type")))
    options = [option for option in ("use_fsdp", "use_deepspeed") if launch.get(option)]
    return f"runtime.launch.{options[0]}" if options else named and f"{file} ({named})"


def lora_config(lora: Mapping[str, Any] | None, section: str, model: str | None = None) -> Any:
    """Build peft's LoraConfig from the config section `lora`; None for None.

    Raises UserError if peft refuses it, or if target_modules name no layer of `model`.
    """
    if lora is None:
        return None
    from peft import LoraConfig

    if lora.get("r", 1) < 1:
        raise UserError(f"{section}.r={lora['r']} must be above 0")
    try:
        config = LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": "all-linear", **lora})
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}: LoraConfig refuses these settings: {error}") from None
    if model is not None and config.target_modules != "all-linear":
        _check_target_modules(config, section, model)
    return config


def _check_target_modules(lora: Any, section: str, model: str) -> None:
    """Raise UserError if peft cannot adapt one of target_modules in `model` (without weights)."""
    import torch
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    try:
        check_hub(model)
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError):       # a model with code of its own is left to peft
        return

    def names(*kinds: type) -> list[str]:
        return [f".{name}" for name, module in empty.named_modules()
                if isinstance(module, kinds) and module is not empty.get_output_embeddings()]

    # peft skips a wrong name among several, and TRL takes no adapter on the head.
    adaptable = {name.rpartition(".")[2] for name in names(torch.nn.Linear, Conv1D)}
    trial = replace(lora, init_lora_weights=False)
    try:
        inject_adapter_in_model(trial, empty)
        adapted = names(BaseTunerLayer)
        for name in [] if isinstance(trial.target_modules, str) else trial.target_modules or []:
            if not any(layer.endswith(f".{name}") for layer in adapted):
                raise ValueError(f"{name!r} is not a layer that can be adapted")
    except (ValueError, re.error) as error:
        why = str(error).splitlines()[0].partition(". ")[0].rstrip("(.")
        raise UserError(f"{section}.target_modules: {why}; give a list of some of "
                        f"{', '.join(sorted(adaptable))}, or all-linear") from None
