"""Refinement with a colocated vLLM, whose place a fake takes: what it is told, when it gets weights.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny_rl
import torch

from pipeline.decode import decode
from pipeline.grpo import engine_options

OFF = {"vllm_importance_sampling_correction": False}


class Engine:
    """TRL's VLLMGeneration as far as it is used: samples from the trainer's model, notes the call.
    """

    def __init__(self, calls, model, temperature, max_completion_length, logprobs,
                 generation_kwargs, **given):
        self.calls, self.model, self.weights = calls, model, None
        self.enable_sleep_mode = False
        engine: object = self
        for name in ("model", "model_runner", "driver_worker", "model_executor", "llm_engine"):
            engine = SimpleNamespace(**{name: engine})
        self.llm = engine
        self.llm.reset_prefix_cache = lambda: None
        self.sampling = {"temperature": temperature, "max_tokens": max_completion_length}
        self.logprobs, self.generation_kwargs = logprobs, generation_kwargs or {}

    def _iter_named_params(self):
        return self.model.named_parameters()

    def sync_weights(self):
        self.load_weights(self._iter_named_params())

    def load_weights(self, weights):
        self.weights = [weight.detach().clone() for _, weight in weights]

    def generate(self, prompts, images, num_generations, profiler=None):
        fresh = all(map(torch.equal, self.weights, self.model.parameters()))
        self.calls.append((fresh, num_generations, self.logprobs, self.generation_kwargs))
        rows = decode(self.model, prompts, end=[self.model.generation_config.eos_token_id],
                      **self.sampling)
        logprobs = None if self.logprobs is None else [[[-1.0] for _ in row] for row in rows]
        return prompts, rows, logprobs, None


@pytest.mark.parametrize(("given", "told"), [
    ({}, (0, {})), (OFF, (None, {"detokenize": False})),
    ({**OFF, "generation_kwargs": {"stop": ["x"]}}, (None, {"detokenize": True, "stop": ["x"]}))])
def test_a_colocated_engine_samples_from_the_newest_weights_as_it_is_told(
        tmp_path, monkeypatch, given, told):
    from trl.trainer import grpo_trainer

    calls: list[tuple] = []
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", lambda **g: Engine(calls, **g),
                        raising=False)
    start = tiny_rl.build(tmp_path)
    tiny_rl.refined(start, tmp_path / "out", held_out=range(3), evaluate_every=1,
                    trainer={"use_vllm": True, "vllm_mode": "colocate", "max_steps": 3, **given})
    assert calls == [(True, group, *told) for _ in range(3) for group in (4, 1)]


def test_options_of_the_engine_reach_it_and_only_while_it_starts(monkeypatch):
    from trl.generation import vllm_generation

    def start(**given):
        return given

    monkeypatch.setattr(vllm_generation, "LLM", start, raising=False)
    with engine_options({"max_num_seqs": 7, "compilation_config": 3}):
        assert vllm_generation.LLM(model="m", max_num_seqs=4) == {
            "model": "m", "max_num_seqs": 7, "compilation_config": 3}
    assert vllm_generation.LLM is start
