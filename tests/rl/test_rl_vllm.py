"""Refinement with a colocated vLLM, whose place a fake takes: what it is told and when."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny_rl
import torch

from pipeline.errors import UserError
from pipeline.student.decode import decode
from pipeline.train.weight_sync import engine_options

OFF = {"vllm_importance_sampling_correction": False}


class Engine:
    """TRL's VLLMGeneration as far as it is used: samples from the trainer's model, notes the call.
    """

    wrong = 0.0

    def __init__(self, calls, model, accelerator, temperature, max_completion_length, logprobs,
                 generation_kwargs, **given):
        self.accelerator = accelerator
        self.calls, self.model, self.weights = calls, model, None
        self.mode, self.enable_sleep_mode = "colocate", False
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
        rows = decode(self.model, prompts, **self.sampling,
                      eos_token_ids=[self.model.generation_config.eos_token_id])
        logprobs = None if self.logprobs is None else [
            self.scored(*pair) for pair in zip(prompts, rows, strict=True)]
        return prompts, rows, logprobs, None

    @torch.no_grad()
    def scored(self, prompt, row):
        logits = self.model(torch.tensor([prompt + row])).logits[0, len(prompt) - 1:-1]
        logps = logits.log_softmax(-1).gather(-1, torch.tensor(row)[:, None])
        return (logps - self.wrong).tolist()


def refined(tmp_path, monkeypatch, calls, given, kind=Engine):
    from trl.trainer import grpo_trainer

    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", lambda **g: kind(calls, **g),
                        raising=False)
    tiny_rl.refined(tiny_rl.build(tmp_path), tmp_path / "out", held_out=range(3), evaluate_every=1,
                    trainer={"use_vllm": True, "vllm_mode": "colocate", "max_steps": 3, **given})


@pytest.mark.parametrize(("given", "told"), [
    ({}, (0, {})), (OFF, (None, {"detokenize": False})),
    ({**OFF, "generation_kwargs": {"stop": ["x"]}}, (None, {"detokenize": True, "stop": ["x"]}))])
def test_a_colocated_engine_samples_from_the_newest_weights_as_it_is_told(
        tmp_path, monkeypatch, given, told):
    calls: list[tuple] = []
    refined(tmp_path, monkeypatch, calls, given)
    assert calls[1:] == [(True, group, *told) for group in (1, 4, 1, 4, 1)]
    assert calls[0] == (True, 4, 0, given.get("generation_kwargs", {}))     # compared once


@pytest.mark.parametrize("given", [{}, OFF])
def test_an_engine_that_samples_from_another_model_is_noticed_before_the_first_step(
        tmp_path, monkeypatch, given):
    class Broken(Engine):
        wrong = 0.6

    with pytest.raises(UserError, match=r"differ by 0\.6 nats a token"):
        refined(tmp_path, monkeypatch, [], given, Broken)
    assert not (tmp_path / "out/model").exists()


def test_options_of_the_engine_reach_it_and_only_while_it_starts(monkeypatch):
    from trl.generation import vllm_generation

    def start(**given):
        return given

    monkeypatch.setattr(vllm_generation, "LLM", start, raising=False)
    with engine_options({"max_num_seqs": 7, "compilation_config": 3}):
        assert vllm_generation.LLM(model="m", max_num_seqs=4) == {
            "model": "m", "max_num_seqs": 7, "compilation_config": 3}
    assert vllm_generation.LLM is start
