"""Refinement with a colocated vLLM, whose place a fake takes: what it is told and when."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny_rl
import torch

from pipeline.config.experiment import Runtime
from pipeline.config.rl import RlConfig
from pipeline.errors import UserError
from pipeline.rl.dynamic_sampling import DynamicSamplingTrainer
from pipeline.student.decode import decode
from pipeline.train.weight_sync import engine_options
from stages.rl import _check_overlap

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


def copied(model):
    """A model of its own with the weights of `model`, whose methods TRL has replaced."""
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config = model.generation_config
    return fresh.eval()


@torch.no_grad()
def logprobs_of(model, inputs):
    ids, mask = (torch.cat([inputs[f"prompt_{part}"], inputs[f"completion_{part}"]], 1)
                 for part in ("ids", "mask"))
    logits = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    width = inputs["completion_ids"].shape[1]
    return logits[:, -width - 1:-1].gather(-1, ids[:, -width:, None])[..., 0]


class Apart(Engine):
    """Engines in processes of their own: they keep their weights while the trainer goes on."""

    def load_weights(self, weights):
        if self.weights is None:
            self.trained, self.model = self.model, copied(self.model)
        super().load_weights(list(weights))
        self.model.load_state_dict(self.trained.state_dict())


@pytest.mark.parametrize("corrected", [False, True])
def test_completions_sampled_ahead_are_weighed_by_the_weights_they_came_from(
        tmp_path, monkeypatch, corrected):
    from trl.trainer import grpo_trainer

    policies, gaps, loss = [], [], DynamicSamplingTrainer._compute_loss

    def spy(self, model, inputs):
        policies.append(copied(model))
        now, before = (logprobs_of(policy, inputs) for policy in (policies[-1], policies[-2:][0]))
        told = inputs["importance_sampling_ratio"].log() if corrected else \
            now - inputs["old_per_token_logps"]
        mask = inputs["completion_mask"]
        assert ((told - (now - before)).abs() * mask).max() < 1e-4
        gaps.append(((now - before).abs() * mask).max().item())
        return loss(self, model, inputs)

    calls: list[tuple] = []
    monkeypatch.setattr(DynamicSamplingTrainer, "_compute_loss", spy)
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", lambda **g: Apart(calls, **g),
                        raising=False)
    tiny_rl.refined(tiny_rl.build(tmp_path), tmp_path / "out", overlap=True, trainer={
        "use_vllm": True, "vllm_mode": "colocate", "temperature": 1.0,
        "vllm_importance_sampling_correction": corrected,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 100.0})
    assert len(calls) == 5 and all(logprobs == 0 for _, _, logprobs, _ in calls)
    assert gaps[0] == 0 and max(gaps[1:]) > 1e-2


@pytest.mark.parametrize(("given", "named"), [
    ({"trainer": {"use_vllm": True}}, "runtime.engines=2"), ({}, "set rl.server"),
    ({"server": {}, "server_gpus": "1", "dynamic_sampling": 1}, "rl.dynamic_sampling waits")])
def test_sampling_ahead_is_refused_where_it_cannot_be(given, named):
    experiment = SimpleNamespace(runtime=Runtime(), rl=RlConfig(overlap=True, **given))
    with pytest.raises(UserError, match=named):
        _check_overlap(experiment)


def test_options_of_the_engine_reach_it_and_only_while_it_starts(monkeypatch):
    from trl.generation import vllm_generation

    def start(**given):
        return given

    monkeypatch.setattr(vllm_generation, "LLM", start, raising=False)
    with engine_options({"max_num_seqs": 7, "compilation_config": 3}):
        assert vllm_generation.LLM(model="m", max_num_seqs=4) == {
            "model": "m", "max_num_seqs": 7, "compilation_config": 3}
    assert vllm_generation.LLM is start
