"""GRPO refinement (DeepSeekMath, arXiv 2402.03300) by TRL's GRPOTrainer; rewards by the judge.

What TRL has is configured under its own names; ours are the rewards, the guard against NaN and
against a reward that never comes, and the count of reflection markers a step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pipeline.errors import UserError
from pipeline.rl.rewards import text_of
from pipeline.train.arguments import lora_config, trainer_arguments
from pipeline.train.fit import fit, load_student
from pipeline.train.guard import Guard

DEFAULTS: dict[str, Any] = {
    "gradient_checkpointing": False, "logging_steps": 1, "top_k": 0, "epsilon_high": 0.28,
    "lr_scheduler_type": "constant", "temperature": 1.0, "beta": 0.0,
    "num_completions_to_print": 0,
}
REFLECTION = re.compile(r"\b(wait|hmm|let me (?:re)?check|try again|alternatively|actually)\b",
                        re.IGNORECASE)


def arguments(given: dict[str, Any], out: Path, seed: int) -> Any:
    """The GRPOConfig that `rl.trainer` means."""
    from trl import GRPOConfig

    return trainer_arguments(GRPOConfig, "rl.trainer", {**DEFAULTS, **given}, out, seed)


class StopOnZeroReward(TrainerCallback):
    """Stops a run whose accuracy is 0 for its first `patience` steps: nothing can be learned."""

    def __init__(self, patience: int):
        self.patience, self.seen = patience, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen = any(map(self._right, state.log_history))    # what a resumed run saw before

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen = self.seen or self._right(logs or {})
        if not self.seen and state.global_step >= self.patience:
            raise UserError(
                f"rl: no completion was right in the first {state.global_step} steps, so GRPO has "
                "nothing to learn from; start from an SFT checkpoint, take easier problems, or "
                "raise rl.trainer.max_completion_length")

    @staticmethod
    def _right(logs: Mapping[str, Any]) -> bool:
        return float(logs.get("rewards/accuracy/mean", 0) or 0) > 0


def with_reflection(reward: Callable) -> Callable:
    """`reward`, which also logs the mean count of reflection markers a completion."""
    def logged(completions: list, log_metric: Callable | None = None, **columns: Any) -> list:
        texts = [text_of(completion) for completion in completions]
        if log_metric is not None:
            log_metric("reflection", sum(len(REFLECTION.findall(t)) for t in texts) / len(texts))
        return reward(completions=completions, log_metric=log_metric, **columns)

    return logged


def train(model: str, tokenizer: Any, prompts: list[dict[str, Any]], rewards: dict[str, Any],
          given: dict[str, Any], out: Path, seed: int, patience: int = 20,
          prepare: Callable[[Any], None] = lambda trainer: None,
          engine: Mapping[str, Any] | None = None,
          lora: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Refine `model` on `prompts` (rows with `prompt` messages and the judge's columns).

    `rewards` maps a name to (weight, function); `prepare` sees the trainer before the first step;
    `engine` goes to a colocated vllm.LLM, `lora` to peft. Writes out/model, out/log.jsonl.
    """
    from datasets import Dataset

    from pipeline.rl.dynamic_sampling import DynamicSamplingTrainer
    from pipeline.student.decode import keep_freed_memory

    keep_freed_memory()
    functions = []
    for index, (name, (_, function)) in enumerate(rewards.items()):
        function = with_reflection(function) if index == 0 else function
        function.__name__ = name
        functions.append(function)
    weights = [weight for weight, _ in rewards.values()]
    args = arguments({**given, "reward_weights": weights}, out, seed)
    peft = lora_config(lora, "rl.lora", model)
    student = load_student(model, args)
    guard = Guard("rl", out / "log.jsonl", zero_loss_is_wrong=False)
    trainer = DynamicSamplingTrainer(
        model=student, reward_funcs=functions, args=args, processing_class=tokenizer,
        train_dataset=Dataset.from_list(prompts), engine=engine,
        callbacks=[guard, *([StopOnZeroReward(patience)] if "accuracy" in rewards else [])],
        peft_config=peft)
    prepare(trainer)
    return fit(trainer, guard, out, tokenizer)
