"""Runs a trainer of TRL from the student's checkpoint to the saved model, and resumes it."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import is_peft_model
from safetensors import SafetensorError

from pipeline.errors import StoppedError, UserError
from pipeline.train import attention, checkpoints
from pipeline.train.guard import Guard, clock_of, non_finite_weight
from pipeline.train.layers import fuse_layers
from pipeline.train.stop import SaveAndStop, launched_request


def load_student(model: str | Path, args: Any, layers: str = "transformers") -> Any:
    """Load the model to train with the trainer's model_init_kwargs, in float32 by default.

    Raises UserError if its weights are missing or damaged, if a package is missing, or if it has no
    layers as the config names them.
    """
    attention.register()
    settings = {"dtype": torch.float32, **(args.model_init_kwargs or {})}
    args.model_init_kwargs = None       # TRL warns of them beside a loaded model
    try:
        student = transformers.AutoModelForCausalLM.from_pretrained(str(model), **settings)
    except (ImportError, OSError) as error:
        if getattr(error, "errno", None):
            raise                   # the machine's fault (a full disk), not the model's
        raise UserError(f"cannot load {model} with these settings: "
                        f"{str(error).splitlines()[0]}") from None
    except SafetensorError as error:
        raise UserError(f"the weights of {model} are damaged ({error}); copy it again") from None
    if layers == "compiled":
        fuse_layers(student)
    return student


def fit(trainer: Any, guard: Guard, out: Path, tokenizer: Any) -> dict[str, Any]:
    """Train from the last complete checkpoint and save model and tokenizer to `out/model`.

    Raises StoppedError, with a checkpoint saved, if a signal stops it.
    """
    trainer.remove_callback(transformers.PrinterCallback)
    if trainer.args.device.type == "cpu":
        _know_numbered_processors()
    first = trainer.is_world_process_zero()
    with trainer.accelerator.main_process_first():
        checkpoint = checkpoints.last_complete(out / "checkpoints")
    if first and checkpoint:
        print(f"{guard.label}: resuming from {checkpoint.name}", file=sys.stderr)
        _truncate_log(guard.log, int(checkpoint.name.rsplit("-", 1)[1]))
    elif first:
        guard.log.unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()         # every process reads the log as it is now
    if not (checkpoint and _finished(trainer, checkpoint)):
        _train(trainer, guard.label, checkpoint)
    if name := non_finite_weight(trainer.model):
        raise UserError(f"{guard.label}: weights {name} are not finite; nothing is saved")
    save_student(trainer, out / "model", tokenizer)
    processes = trainer.accelerator.num_processes
    return {"steps": trainer.state.global_step,
            "train_seconds": round(clock_of(trainer.state)["spent"], 1),
            # Each adds a batch of its own to a step, and how many there are is no part of the key.
            **({"processes": processes} if processes > 1 else {})}


@cache      # torch sorts what is registered, and cannot sort the same twice
def _know_numbered_processors() -> None:
    # accelerate calls the processors of several processes cpu:0, which torch.load does not know
    torch.serialization.register_package(
        30, lambda storage: None,
        lambda storage, place: storage if place.startswith("cpu:") else None)


def _train(trainer: Any, label: str, checkpoint: Path | None) -> None:
    with launched_request() as request:
        stop = SaveAndStop(request)
        trainer.add_callback(stop)      # the last, so that no other evaluates or ends a phase then
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except ImportError as error:        # of an optimizer, which is made here
            raise UserError(f"{label}: {str(error).splitlines()[0]}") from None
    if stop.stopped:
        step = trainer.state.global_step
        raise StoppedError(f"{label}: stopped after step {step} of {trainer.state.max_steps}, "
                           f"which is saved (checkpoint-{step}); the same command goes on from it")
    if request.asked():         # after the last step
        raise KeyboardInterrupt


def _finished(trainer: Any, checkpoint: Path) -> bool:
    """Whether `checkpoint` is of the last step; if so, load it into the trainer."""
    # transformers 5.17 would train one step more, as it checks for the end after each step. Sharded
    # weights (FSDP, DeepSpeed) are loaded only by its own loop, so for them the extra step remains.
    state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
            or state.global_step < state.max_steps):
        return False
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = state
    return True


def save_student(trainer: Any, folder: Path, tokenizer: Any) -> None:
    """Write the trainer's current model and `tokenizer` to `folder`; every process waits for it.

    A LoRA run writes the merged model, and the adapter to `folder`/adapter.
    """
    adapted = is_peft_model(trainer.model)
    saved = folder / "adapter" if adapted else folder
    trainer.save_model(str(saved))
    if trainer.is_world_process_zero():
        if adapted:
            _merge(saved, folder, trainer.model.config.get_text_config().vocab_size)
        tokenizer.save_pretrained(folder)
        (saved / "training_args.bin").unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()


def _merge(adapter: Path, folder: Path, width: int) -> None:
    """Merge `adapter` into its base model, saved to `folder`."""
    from peft import PeftConfig, PeftModel

    name = str(PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    if base.config.get_text_config().vocab_size != width:      # cut to a narrower teacher's width
        base.resize_token_embeddings(width)
    model: Any = PeftModel.from_pretrained(base, str(adapter))
    model.merge_and_unload().save_pretrained(folder)


def _truncate_log(log: Path, step: int) -> None:
    """Drop the log lines after `step`, an incomplete last line and the sum of a stopped run."""
    if log.is_file():
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line[-1:] == "}"]
        kept = [line for line in lines if (values := json.loads(line))["step"] <= step
                and "train_runtime" not in values]
        log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
