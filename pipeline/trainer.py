"""What SFT and GRPO share round the library's trainers: arguments, guards, progress, resume."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from pipeline.errors import UserError
from pipeline.progress import progress, quiet_libraries

WHOLE = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


def trainer_arguments(kind: Any, section: str, given: Mapping[str, Any], out: Path,
                      seed: int) -> Any:
    """`kind` (SFTConfig or GRPOConfig) from the keys given, with the machine's device settings.

    Raises a UserError naming the key where the library's config class does not know or take it.
    """
    fields = set(kind.__dataclass_fields__)
    unknown = sorted(set(given) - fields)
    if unknown:
        raise UserError(f"{section}.{unknown[0]} is not a key of {kind.__name__}; "
                        f"see its documentation in TRL {_version('trl')}")
    quiet_libraries()
    cuda = torch.cuda.is_available()
    settings = {"output_dir": str(out / "checkpoints"), "logging_dir": None, "seed": seed,
                "bf16": cuda, "use_cpu": not cuda, "report_to": ["tensorboard"],
                "disable_tqdm": True, "logging_steps": 10, "save_strategy": "steps",
                "save_steps": 0.25, "save_total_limit": 2, **given}
    settings = {key: value for key, value in settings.items() if key in fields}
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}: {kind.__name__} refuses these settings: "
                        f"{str(error).splitlines()[0]}") from None


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint under `folder` that was written to its end, or None."""
    while folder.is_dir() and (found := get_last_checkpoint(str(folder))):
        if all((Path(found) / name).is_file() for name in WHOLE):
            return found
        Path(found).rename(Path(found).with_name("broken-" + Path(found).name))
    return None


class Guard(TrainerCallback):
    """Stops a run at a NaN; shows a progress bar; keeps every logged value in log.jsonl."""

    def __init__(self, label: str, log: Path, *, zero_loss_is_wrong: bool):
        self.label, self.log = label, log
        self.zero_loss_is_wrong = zero_loss_is_wrong
        self.stack = ExitStack()
        self.advance: Any = None
        self.note = ""

    def on_train_begin(self, args, state, control, **kwargs):
        self.advance = self.stack.enter_context(progress(self.label, state.max_steps))
        self.advance(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.advance(1, note=self.note)

    def on_train_end(self, args, state, control, **kwargs):
        self.stack.close()

    def on_log(self, args, state, control, logs=None, **kwargs):
        values = {key: float(value) for key, value in (logs or {}).items() if _is_number(value)}
        for key in ("loss", "grad_norm"):
            if not math.isfinite(values.get(key, 0.0)):
                self.stack.close()
                raise UserError(f"{self.label}: {key} is {values[key]} at step "
                                f"{state.global_step}; the run is stopped and not saved. Lower "
                                "the learning rate, or look at the rows of that step")
        if self.zero_loss_is_wrong and values.get("loss") == 0.0:
            self.stack.close()
            raise UserError(f"{self.label}: the loss is exactly 0 at step {state.global_step}; "
                            "no token is trained (check the loss mask and precision)")
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **values}) + "\n")
        shown = ("loss", "reward", "completions/mean_length")
        self.note = " ".join(f"{k.split('/')[-1]} {values[k]:.3g}" for k in shown if k in values)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def fit(trainer: Any, guard: Guard, out: Path, tokenizer: Any) -> dict[str, Any]:
    """Train from the last whole checkpoint, save model and tokenizer to `out/model`."""
    trainer.remove_callback(transformers.PrinterCallback)
    checkpoint = last_whole_checkpoint(out / "checkpoints")
    if checkpoint:
        print(f"{guard.label}: going on from {Path(checkpoint).name}", file=sys.stderr)
        _cut_log(guard.log, int(checkpoint.rsplit("-", 1)[1]))
    else:
        guard.log.unlink(missing_ok=True)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    bad = [name for name, p in trainer.model.named_parameters() if not torch.isfinite(p).all()]
    if bad:
        raise UserError(f"{guard.label}: weights {bad[0]} are not finite; nothing is saved")
    trainer.model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    return {"steps": trainer.state.global_step,
            "train_seconds": round(result.metrics.get("train_runtime", 0.0), 1)}


def _cut_log(log: Path, step: int) -> None:
    """Drop the log lines past the checkpoint that the run goes on from."""
    if log.is_file():
        lines = log.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
