"""The vLLM engine that samples for a trainer: its options, and whether it runs the same model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType
from peft import PeftModel

from pipeline.errors import UserError
from pipeline.serving.engine_group import start_engines

WHOLE = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
"""Training in which every process holds all weights."""
FAR = 0.5
"""Nats a token; rounding and kernels make up a hundredth, another model several."""


@contextmanager
def engine_options(options: Mapping[str, Any]) -> Iterator[None]:
    """While the block runs, TRL starts its colocated vLLM engine with `options` as well.

    TRL 1.16 hands eleven of vllm.LLM's arguments through and no others (compilation_config, ...).
    `engines` among them is how many engines sample side by side (serving.engine_group).
    """
    from trl.generation import vllm_generation

    engine = getattr(vllm_generation, "LLM", None)
    if engine is None or not options:
        yield
        return
    vllm_generation.LLM = lambda **given: start_engines(engine, {**given, **options})
    try:
        yield
    finally:
        vllm_generation.LLM = engine


def sync_weights(generation: Any) -> None:
    """VLLMGeneration.sync_weights of a colocated engine in one call, as vLLM loads a checkpoint.

    TRL 1.16 makes one call a tensor, each of which walks the whole model. What is gathered or
    merged for the engine's sake comes one by one.
    """
    if generation.mode != "colocate" or generation.enable_sleep_mode:
        generation.sync_weights()
        return
    runner = generation.llm.llm_engine.model_executor.driver_worker.model_runner
    weights = generation._iter_named_params()
    stand = (generation.accelerator.distributed_type in WHOLE
             and not isinstance(generation.model, PeftModel))
    runner.model.load_weights(list(weights) if stand else weights)
    generation.llm.reset_prefix_cache()


def check_engine_matches_trainer(trainer: Any, batch: Mapping[str, Any]) -> None:
    """Raise a UserError where the engine's log-probabilities of a rollout are not the trainer's.

    `batch` is what TRL makes of a rollout: `sampling_per_token_logps` [rows, columns] are the
    engine's.
    """
    mask, ours = batch["completion_mask"], batch.get("old_per_token_logps")
    if ours is None:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        with torch.no_grad():
            ours, *_ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, torch.cat([batch["prompt_mask"], mask], 1), mask.shape[1],
                trainer.args.per_device_train_batch_size)
    check_logprob_gap((ours - batch["sampling_per_token_logps"])[mask.bool()], trainer, "rl")


def check_logprob_gap(apart: torch.Tensor, trainer: Any, stage: str) -> None:
    """Raise a UserError where log-probabilities are `apart` [tokens] as one model's never are.

    Their mean is taken over the tokens of all processes.
    """
    far = trainer.accelerator.gather(apart.abs().nanmean()).nanmean().item()
    if far > FAR:
        options = "runtime.vllm, rl.server" if stage == "rl" else "runtime.vllm"
        raise UserError(
            f"{stage}: vLLM and the trainer differ by {far:.2g} nats a token on the first "
            "completions, so vLLM does not sample from the model that is trained; leave out engine "
            f"options that change it ({options}), or set {stage}.trainer.use_vllm=false")
