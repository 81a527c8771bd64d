"""TRL's config of each sft.method, and what of the sft section cannot work."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.config.sft import CrossTokenizerMethod, LogitsMethod, OnPolicyMethod, SftConfig
from pipeline.config.trainer_keys import check_trainer_keys
from pipeline.errors import LackingError, UserError
from pipeline.train.arguments import (
    check_layers,
    check_schedule,
    lora_config,
    trainer_arguments,
    trainer_settings,
)


def arguments(sft: SftConfig, out: Path, seed: int) -> Any:
    """Build TRL's config of the method; raises UserError for settings that cannot work."""
    from trl import DistillationConfig, SFTConfig

    from pipeline.sft.divergence import check_beta
    from pipeline.train import attention

    check_settings(sft)
    if isinstance(sft.method, LogitsMethod | CrossTokenizerMethod):
        check_beta(sft.method.beta)
    lora_config(sft.lora, "sft.lora")
    computed = {"report_to": ["tensorboard", *sft.report_to],
                "eval_strategy": "steps" if sft.held_out else "no"}
    settings = {**trainer_settings(sft), **computed}
    if isinstance(sft.method, OnPolicyMethod):
        return trainer_arguments(DistillationConfig, "sft.trainer", settings, out, seed)
    args = trainer_arguments(SFTConfig, "sft.trainer", {**settings, **sft.FIXED_KEYS}, out, seed)
    model_kwargs = args.model_init_kwargs
    if "padding_free" not in sft.trainer and isinstance(model_kwargs, dict):
        args.padding_free = model_kwargs.get("attn_implementation") == attention.NAME
    return args


def check_settings(sft: SftConfig) -> None:
    """Raise UserError for keys of `sft` that are unknown, belong elsewhere or lack a package."""
    kind = "DistillationConfig" if isinstance(sft.method, OnPolicyMethod) else "SFTConfig"
    for key in sft.trainer:
        if key in sft.KEYS_SET_ELSEWHERE:
            raise UserError(f"sft.trainer.{key} does not apply, because the rows are ready-made; "
                            f"set {sft.KEYS_SET_ELSEWHERE[key]} instead")
    check_trainer_keys(kind, "sft.trainer", sft.trainer)
    if sft.trainer.get("train_sampling_strategy") == "batch_rebalance":
        raise UserError("sft.trainer.train_sampling_strategy=batch_rebalance reads texts, and the "
                        "rows are ready-made; remove it: processes without padding get equal "
                        "tokens of each step anyway")
    check_layers(sft, "sft")
    check_schedule(sft, "sft")
    if sft.method.type in ("logits", "cross_tokenizer") or sft.head == "limbeck":
        for key in {"loss_type", "label_smoothing_factor"} & set(sft.trainer):
            raise UserError(f"sft.trainer.{key} needs sft.method.type=sequence and sft.head=trl; "
                            "set these or remove it")
    if sft.trainer.get("use_liger_kernel") and not find_spec("liger_kernel"):
        raise LackingError("sft.trainer.use_liger_kernel needs the liger-kernel package; pip "
                           "install liger-kernel, or remove it (the loss is chunked without it)")
