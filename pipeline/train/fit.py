"""What SFT and GRPO share round the library's trainers: arguments, guards, progress, resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import is_peft_model
from safetensors import SafetensorError

from pipeline.errors import UserError
from pipeline.train import attention, checkpoints
from pipeline.train.guard import Clock, Guard, bad_weights


def load_student(model: str | Path, args: Any) -> Any:
    """The model to train, by the trainer's model_init_kwargs, which are then used up; float32
    unless they say otherwise."""
    attention.register()
    settings = {"dtype": torch.float32, **(args.model_init_kwargs or {})}
    args.model_init_kwargs = None
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(str(model), **settings)
    except (ImportError, OSError) as error:    # an attention not installed, weights not there
        if getattr(error, "errno", None):
            raise                   # the machine's fault, a full disk for one, and not the model's
        raise UserError(f"{model} cannot be loaded so: {str(error).splitlines()[0]}") from None
    except SafetensorError as error:
        raise UserError(f"the weights of {model} are damaged ({error}); copy it anew") from None


def fit(trainer: Any, guard: Guard, out: Path, tokenizer: Any) -> dict[str, Any]:
    """Train from the last whole checkpoint, save model and tokenizer to `out/model`.

    train_seconds are those of every step, by the trainer's Clock.
    """
    trainer.remove_callback(transformers.PrinterCallback)
    main = trainer.is_world_process_zero()
    with trainer.accelerator.main_process_first():
        checkpoint = checkpoints.last_whole(out / "checkpoints")
    if main and checkpoint:
        print(f"{guard.label}: going on from {checkpoint.name}", file=sys.stderr)
        _cut_log(guard.log, int(checkpoint.name.rsplit("-", 1)[1]))
    elif main:
        guard.log.unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()         # every process reads the log as it is now
    if not (checkpoint and _finished(trainer, checkpoint)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if name := bad_weights(trainer.model):
        raise UserError(f"{guard.label}: weights {name} are not finite; nothing is saved")
    save_student(trainer, out / "model", tokenizer)
    clock = trainer.state.stateful_callbacks.get("Clock", Clock().state())
    return {"steps": trainer.state.global_step,
            "train_seconds": round(clock["attributes"]["spent"], 1)}


def _finished(trainer: Any, checkpoint: Path) -> bool:
    """Whether `checkpoint` is of the last step; then the trainer has its weights.

    transformers 5.17 would train a step more, as it looks for the end after each step only. Sharded
    weights (FSDP, DeepSpeed) are loaded by its own loop alone, so there the step more remains.
    """
    state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
            or state.global_step < state.max_steps):
        return False
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = state
    return True


def save_student(trainer: Any, folder: Path, tokenizer: Any) -> None:
    """Write the trainer's current model and `tokenizer` to `folder`, as a stage hands them on.

    Of a LoRA run that is the merged model, with the adapter in `folder`/adapter. Every process
    waits until all is written.
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
    """Write an ordinary checkpoint of `adapter` and the model it was trained on to `folder`.

    `width` is that of the output matrix in training, which a narrower teacher may have cut.
    """
    from peft import PeftConfig, PeftModel

    name = str(PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    if base.config.get_text_config().vocab_size != width:
        base.resize_token_embeddings(width)
    model: Any = PeftModel.from_pretrained(base, str(adapter))
    model.merge_and_unload().save_pretrained(folder)


def _cut_log(log: Path, step: int) -> None:
    """Drop the log lines past the checkpoint that the run goes on from, and a torn last one."""
    if log.is_file():
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line[-1:] == "}"]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
