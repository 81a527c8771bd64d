"""Samples a trainer's completions by a lean colocated vLLM or by student.decode.

Both keep the sampling distribution; settings that neither supports fall back to TRL's generation.
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
from pipeline.train.attention import uses_varlen_attention
from pipeline.train.padding import rebalance
from pipeline.train.weight_sync import engine_options, sync_weights


class GenerationRows:
    """The rows of a generation on their way through a loader, which leaves them as they are."""

    # Pinned and sent to the GPU, a list of 1,024 dicts is walked and copied, once a micro-batch: 80
    # ms of one core. It is no Sequence, since pin_memory asks for that first.
    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def to(self, *args: Any, **kwargs: Any) -> GenerationRows:
        return self

    def pin_memory(self, *args: Any) -> GenerationRows:
        return self


class RolloutMixin(Trainer):
    """Mixed into TRL's GRPOTrainer and DistillationTrainer; `engine` are options of vllm.LLM."""

    model: Any
    data_collator: Any
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

    def __init__(self, *args: Any, engine: Mapping[str, Any] | None = None, **kwargs: Any):
        self._seconds: defaultdict[str, float] = defaultdict(float)
        with engine_options(engine or {}):
            super().__init__(*args, **kwargs)
        rows: Any = self.train_dataset
        # Each micro-batch fetches a whole generation of rows, which a Dataset makes anew each time.
        self.train_dataset, self.data_collator = list(rows), GenerationRows

    @contextmanager
    def timed(self, metric: str) -> Iterator[None]:
        """Add the block's seconds of a training step to `metric`, logged beside step_time."""
        start = time.perf_counter()
        yield
        if self.model.training:
            self._seconds[metric] += time.perf_counter() - start

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run TRL's step; logs the timed seconds at the end of an update."""
        times = self._metrics["train"]["step_time"]
        updates = len(times)
        loss = super().training_step(*args, **kwargs)
        if len(times) > updates:
            for metric, seconds in self._seconds.items():
                self._metrics["train"][metric].append(seconds)
            self._seconds.clear()
        return loss

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Run TRL's rollout and arrange its micro-batches."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch.rows)
        if self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = self.arrange(self._buffered_inputs)
        return self._buffered_inputs[self._step % len(self._buffered_inputs)]

    def arrange(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Redistribute the rows over the micro-batches for little padding."""
        return rebalance(batches, self.without_padding())

    def without_padding(self) -> bool:
        """Whether the student's attention takes samples end to end."""
        return uses_varlen_attention(self.accelerator.unwrap_model(self.model))

    def colocated(self) -> bool:
        """Whether a vLLM engine in this process samples."""
        return self.args.use_vllm and self.args.vllm_mode == "colocate"

    def decodes_itself(self) -> bool:
        """Whether student.decode samples: in one process, with settings that it supports."""
        args = self.args
        return bool(not args.use_vllm and self.accelerator.num_processes == 1 and not args.top_k
                    and args.min_p is None and args.repetition_penalty == 1.0
                    and not args.generation_kwargs and self.max_completion_length
                    and not getattr(args, "use_transformers_continuous_batching", False))

    def sample_completions(self, prompts: list[list[int]], group: int = 1,
                           batch: int | None = None) -> tuple[list[list[int]], Any]:
        """Return (completions as token ids, the engine's log-probabilities or None).

        A prompt is repeated for each of its `group` completions, which are consecutive. Without
        vLLM, `batch` rows (default all) are sampled at once.
        """
        if self.args.use_vllm:
            self.load_newest_weights()
            return self.vllm_generation.generate(prompts, None, group)[1:3]
        model: Any = self.accelerator.unwrap_model(self.model_wrapped)
        step = batch or max(1, len(prompts))
        rows: list[list[int]] = []
        # A checkpointing model in train mode drops the cache, and with it all but the last token.
        with disable_gradient_checkpointing(model, self.args.gradient_checkpointing_kwargs):
            for start in range(0, len(prompts), step):
                rows += decode(model, prompts[start:start + step],
                               max_tokens=int(self.max_completion_length),
                               temperature=self.temperature, top_p=self.top_p,
                               eos_token_ids=list(self.eos_token_ids))
        return rows, None

    def load_newest_weights(self) -> None:
        """Load the weights of this step into the engine, unless it has them."""
        if self.state.global_step != self._last_loaded_step:
            sync_weights(self.vllm_generation)
            self._last_loaded_step = self.state.global_step

    def disable_logprobs(self, keep: bool = False) -> None:
        """Turn off the engine's text, unless `stop` needs it, and log-probabilities unless `keep`.
        """
        # Their objects cost vLLM half of a rollout's time.
        kwargs = self.vllm_generation.generation_kwargs
        self.vllm_generation.generation_kwargs = {"detokenize": "stop" in kwargs, **kwargs}
        if not keep:
            self.vllm_generation.logprobs = None
