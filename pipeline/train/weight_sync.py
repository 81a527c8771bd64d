"""Starts a trainer's colocated vLLM engine, loads its weights and checks its log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType
from peft import PeftModel

from pipeline.errors import UserError
from pipeline.serving.engine_group import start_engines

REPLICATED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
"""Kinds of training in which every process holds all weights."""
MAX_LOGPROB_GAP = 0.5
"""Nats a token: rounding and kernels cause about 0.01, another model several."""


@contextmanager
def engine_options(options: Mapping[str, Any]) -> Iterator[None]:
    """Add `options` of vllm.LLM to those with which TRL starts its colocated engine.

    The option `engines` is how many engines sample side by side (serving.engine_group).
    """
    # TRL 1.16 passes eleven of vllm.LLM's arguments and no others (compilation_config, ...).
    from trl.generation import vllm_generation

    engine = getattr(vllm_generation, "LLM", None)
    if engine is None or not options:
        yield
        return
    vllm_generation.LLM = lambda **trl_options: start_engines(engine, {**trl_options, **options})
    try:
        yield
    finally:
        vllm_generation.LLM = engine


def sync_weights(generation: Any) -> None:
    """Load the trainer's weights into TRL's VLLMGeneration, a colocated engine in one call."""
    # TRL 1.16 makes one call a tensor, each of which walks the whole model.
    if generation.mode != "colocate" or generation.enable_sleep_mode:
        generation.sync_weights()
        return
    runner = generation.llm.llm_engine.model_executor.driver_worker.model_runner
    weights = generation._iter_named_params()
    # Weights that are gathered or merged for the engine come one by one, to save memory.
    in_memory = (generation.accelerator.distributed_type in REPLICATED
                 and not isinstance(generation.model, PeftModel))
    runner.model.load_weights(list(weights) if in_memory else weights)
    generation.llm.reset_prefix_cache()


def check_engine_matches_trainer(trainer: Any, batch: Mapping[str, Any]) -> None:
    """Raise UserError if the engine's log-probabilities of a rollout are not the trainer's.

    `batch` is TRL's of a rollout, with the engine's `sampling_per_token_logps` [rows, columns].
    """
    mask, ours = batch["completion_mask"], batch.get("old_per_token_logps")
    if ours is None:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        with torch.no_grad():
            ours, *_ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, torch.cat([batch["prompt_mask"], mask], 1), mask.shape[1],
                trainer.args.per_device_train_batch_size)
    check_logprob_gap((ours - batch["sampling_per_token_logps"])[mask.bool()], trainer, "rl")


def check_logprob_gap(gaps: torch.Tensor, trainer: Any, stage: str) -> None:
    """Raise UserError if the mean gap [tokens] of all processes is above MAX_LOGPROB_GAP."""
    mean_gap = trainer.accelerator.gather(gaps.abs().nanmean()).nanmean().item()
    if mean_gap > MAX_LOGPROB_GAP:
        options = "runtime.vllm, rl.server" if stage == "rl" else "runtime.vllm"
        raise UserError(
            f"{stage}: vLLM and the trainer differ by {mean_gap:.2g} nats a token on the first "
            "completions, so vLLM does not sample from the model that is trained; remove engine "
            f"options that change it ({options}), or set {stage}.trainer.use_vllm=false")
