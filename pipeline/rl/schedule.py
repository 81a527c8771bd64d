"""The trainer's settings in each phase: defaults, then rl.trainer, then the phase's own.

Phases follow DeepScaleR, which raised the context from 8k to 16k and 24k as completions began to
be truncated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.rl import RlConfig
from pipeline.config.trainer_keys import check_trainer_keys
from pipeline.errors import UserError
from pipeline.train.arguments import trainer_arguments, trainer_settings


def phase_settings(config: RlConfig) -> list[dict[str, Any]]:
    """The GRPOConfig keys of each phase; its `max_steps` counts the steps of all phases so far."""
    trainer = trainer_settings(config)
    if config.report_to:
        trainer["report_to"] = ["tensorboard", *config.report_to]
    if not config.phases:
        return [trainer]
    total = trainer.get("max_steps", -1)
    ends = [*(phase.until_step or total for phase in config.phases[:-1]), total]
    return [{**trainer, **phase.trainer, "max_steps": end}
            for phase, end in zip(config.phases, ends, strict=True)]


def grpo_config(settings: Mapping[str, Any], out: Path, seed: int) -> Any:
    """The GRPOConfig of a phase's `settings`; raises UserError on a key that TRL does not take."""
    from trl import GRPOConfig

    return trainer_arguments(GRPOConfig, "rl.trainer", settings, out, seed)


def check_phases(config: RlConfig) -> None:
    """Raise UserError unless each phase ends after the one before, by rl.trainer.max_steps."""
    phases, total = config.phases, config.trainer.get("max_steps", -1)
    for index, keys in enumerate((config.trainer, *(phase.trainer for phase in phases))):
        section = f"rl.phases[{index - 1}].trainer" if index else "rl.trainer"
        check_trainer_keys("GRPOConfig", section, keys)
    if config.report_to and any(
            "report_to" in keys for keys in (config.trainer, *(phase.trainer for phase in phases))):
        raise UserError("rl.trainer.report_to and rl.report_to both name trackers; keep the second")
    if not phases:
        return
    if any("max_steps" in phase.trainer for phase in phases):
        raise UserError("rl.phases: a phase ends at until_step, not at trainer.max_steps")
    if total < 1:
        raise UserError("rl.phases needs rl.trainer.max_steps: the step where the last phase ends")
    for index, phase in enumerate(phases[:-1]):
        if phase.until_step is None and phase.until_cut_off is None:
            raise UserError(f"rl.phases[{index}] never ends; give until_step or until_cut_off")
    if phases[-1].until_step is not None or phases[-1].until_cut_off is not None:
        raise UserError("the last of rl.phases ends at rl.trainer.max_steps; remove its until_*")
    ends = [phase.until_step for phase in phases if phase.until_step is not None] + [total]
    if sorted(set(ends)) != ends:
        raise UserError("rl.phases: until_step must rise and stay below rl.trainer.max_steps, "
                        f"not {', '.join(map(str, ends))}")
