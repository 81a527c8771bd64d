"""How a trainer of TRL's samples from its student: by a lean colocated vLLM, or by student.decode.

Neither changes the samples' distribution. Where settings are ones that neither knows, TRL samples.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer
from trl.models.utils import disable_gradient_checkpointing

from pipeline.student.decode import decode
from pipeline.train.attention import lays_end_to_end
from pipeline.train.padding import rebalance
from pipeline.train.weight_sync import engine_options, sync_weights


class RolloutMixin(Trainer):
    """Mixed into TRL's GRPOTrainer and DistillationTrainer.

    `engine` holds options of vllm.LLM for a colocated engine, under its own names. A step's log
    has generation_time beside step_time (seconds), and what else was `timed`.
    """

    model: Any
    _metrics: Any
    _buffered_inputs: Any
    _last_loaded_step: int
    _step: int
    vllm_generation: Any
    eos_token_ids: list[int]
    max_completion_length: Any
    temperature: float
    top_p: float
    args: Any

    def __init__(self, *args: Any, engine: Mapping[str, Any] | None = None, **given: Any):
        self._seconds: defaultdict[str, float] = defaultdict(float)
        with engine_options(engine or {}):
            super().__init__(*args, **given)

    @contextmanager
    def timed(self, metric: str) -> Iterator[None]:
        """Counts seconds of a step towards `metric`, which the log has beside step_time."""
        begun = time.perf_counter()
        yield
        if self.model.training:
            self._seconds[metric] += time.perf_counter() - begun

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """TRL's; at the end of an update, what of its step_time the timed parts took."""
        times = self._metrics["train"]["step_time"]
        updates = len(times)
        loss = super().training_step(*args, **kwargs)
        if len(times) > updates:
            for metric, seconds in self._seconds.items():
                self._metrics["train"][metric].append(seconds)
            self._seconds.clear()
        return loss

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's; the micro-batches of a fresh rollout are those that `arranged` makes of them."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = self.arranged(self._buffered_inputs)
        return self._buffered_inputs[self._step % len(self._buffered_inputs)]

    def arranged(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches' rows dealt out again, so that little or nothing is padded."""
        return rebalance(batches, self.without_padding())

    def without_padding(self) -> bool:
        """Whether the student's attention knows samples laid end to end."""
        return lays_end_to_end(self.accelerator.unwrap_model(self.model))

    def colocated(self) -> bool:
        """Whether a vLLM engine in this process samples."""
        return self.args.use_vllm and self.args.vllm_mode == "colocate"

    def decoded(self) -> bool:
        """Whether the settings are ones that pipeline.student.decode knows."""
        args = self.args
        return bool(not args.use_vllm and self.accelerator.num_processes == 1 and not args.top_k
                    and args.min_p is None and args.repetition_penalty == 1.0
                    and not args.generation_kwargs and self.max_completion_length
                    and not getattr(args, "use_transformers_continuous_batching", False))

    def sampled(self, prompts: list[list[int]], group: int = 1) -> tuple[list[list[int]], Any]:
        """(completions as token ids, the engine's log-probabilities of them if it made any).

        `group` completions of one prompt stand in a row, the prompt with each.
        """
        if self.args.use_vllm:
            if self.state.global_step != self._last_loaded_step:
                sync_weights(self.vllm_generation)
                self._last_loaded_step = self.state.global_step
            return self.vllm_generation.generate(prompts, None, group)[1:3]
        model: Any = self.accelerator.unwrap_model(self.model_wrapped)
        # A checkpointing model in train mode drops the cache, and with it all but the last token.
        with disable_gradient_checkpointing(model, self.args.gradient_checkpointing_kwargs):
            return decode(model, prompts, max_tokens=self.max_completion_length,
                          temperature=self.temperature, top_p=self.top_p,
                          end=list(self.eos_token_ids)), None

    def make_no_logprobs(self) -> None:
        """From now on the engine makes neither log-probabilities nor text, unless `stop` reads it.

        Their objects cost vLLM half of a rollout's time.
        """
        given = self.vllm_generation.generation_kwargs
        self.vllm_generation.generation_kwargs = {"detokenize": "stop" in given, **given}
        self.vllm_generation.logprobs = None
