"""What SFT and GRPO share round the library's trainers: arguments, guards, progress, resume."""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import broadcast_object_list, is_peft_model
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from pipeline import attention, checkpoints
from pipeline.errors import UserError
from pipeline.progress import progress


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


def bad_weights(model: Any) -> str | None:
    """The name of the first parameter that holds a NaN or an infinity, or None."""
    for name, weight in model.named_parameters():
        local = weight.to_local() if hasattr(weight, "to_local") else weight
        if not torch.isfinite(local).all():
            return name
    return None


class Clock(TrainerCallback, ExportableState):
    """Counts the seconds of training, which each checkpoint holds: a resumed run counts on.

    Ends it after so many minutes where it is told any, so that two runs get the same time.
    """

    def __init__(self, minutes: float | None = None):
        self.minutes, self.start, self.spent = minutes, 0.0, 0.0

    def state(self) -> dict[str, Any]:
        return {"args": {"minutes": self.minutes}, "attributes": {"spent": self.spent}}

    def on_train_begin(self, args, state, control, **kwargs):
        kept = state.stateful_callbacks.setdefault("Clock", self.state())
        self.start = time.monotonic() - kept["attributes"]["spent"]

    def on_step_end(self, args, state, control, **kwargs):
        self.spent = time.monotonic() - self.start
        state.stateful_callbacks["Clock"] = self.state()
        if self.minutes is None:
            return
        late = [self.spent >= 60 * self.minutes]
        broadcast_object_list(late)         # the first process's clock holds for all
        if late[0]:
            control.should_training_stop = True


class Guard(TrainerCallback):
    """Stops a run before bad weights are saved; marks checkpoints whole; shows and logs progress.

    Every logged value goes to log.jsonl. A trainer that can, checks each step's loss as well.
    """

    def __init__(self, label: str, log: Path, *, zero_loss_is_wrong: bool):
        self.label, self.log = label, log
        self.zero_loss_is_wrong = zero_loss_is_wrong
        self.stack = ExitStack()
        self.advance: Any = lambda steps=1, note="": None
        self.note, self.keep = "", 0

    def on_init_end(self, args, state, control, **kwargs):
        # The trainer would drop the older checkpoint before the newer is marked whole.
        self.keep, args.save_total_limit = args.save_total_limit or 0, None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._refuse(model, "are not finite before the first step; take another checkpoint")
        if state.is_world_process_zero:
            self.advance = self.stack.enter_context(progress(self.label, state.max_steps))
            self.advance(state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.advance(1, note=self.note)
        if control.should_save:
            self._refuse(model, f"are not finite after step {state.global_step}; the run is "
                                "stopped and they are not saved. Lower the learning rate")

    def on_save(self, args, state, control, **kwargs):
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            checkpoints.mark_whole(folder / f"checkpoint-{state.global_step}")
            if self.keep > 0:
                checkpoints.rotate(folder, self.keep)

    def on_train_end(self, args, state, control, **kwargs):
        self.stack.close()

    def on_log(self, args, state, control, logs=None, **kwargs):
        values = {key: float(value) for key, value in (logs or {}).items() if _is_number(value)}
        for key in ("loss", "grad_norm", "eval_loss"):
            if not math.isfinite(values.get(key, 0.0)):
                self.stop(f"{key} is {values[key]} at step {state.global_step}; the run is stopped "
                          "and not saved. Lower the learning rate, or look at that step's rows")
        if self.zero_loss_is_wrong and values.get("loss") == 0.0:
            self.stop(f"the loss is exactly 0 at step {state.global_step}; no token is trained "
                      "(check the loss mask and precision)")
        if state.is_world_process_zero:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **values}) + "\n")
        shown = ("loss", "reward", "completions/mean_length")
        self.note = " ".join(f"{k.split('/')[-1]} {values[k]:.3g}" for k in shown if k in values)

    def stop(self, sentence: str) -> None:
        """Close the progress bar and raise a UserError."""
        self.stack.close()
        raise UserError(f"{self.label}: {sentence}")

    def _refuse(self, model: Any, sentence: str) -> None:
        if name := bad_weights(model):
            self.stop(f"weights {name} {sentence}")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def fit(trainer: Any, guard: Guard, out: Path, tokenizer: Any) -> dict[str, Any]:
    """Train from the last whole checkpoint, save model and tokenizer to `out/model`.

    train_seconds are those of every step, by the trainer's Clock.
    """
    trainer.remove_callback(transformers.PrinterCallback)
    if trainer.args.device.type == "cpu":
        # accelerate calls the processors of several processes cpu:0, which torch.load does not know
        torch.serialization.register_package(
            30, lambda storage: None,
            lambda storage, place: storage if place.startswith("cpu:") else None)
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
