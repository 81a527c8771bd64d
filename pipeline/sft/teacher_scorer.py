"""Loads the teacher, and scores token rows by it with transformers or vLLM."""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.config.sft import LogitsConfig, Transformers, Vllm
from pipeline.errors import UserError
from pipeline.sft.target_store import Scorer, TopKLogprobs, tail_logprobs

Sample = tuple[np.ndarray, np.ndarray]
"""(token ids, positions of the trained tokens)."""


def load_teacher(name: str, dtype: str, attention: str | None = None) -> torch.nn.Module:
    """Load the teacher, frozen and in evaluation mode, to the GPU if there is one."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype,
                                                     attn_implementation=attention)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load teacher {name!r}: {str(error).splitlines()[0]}; name a "
                        "checkpoint folder or a hub id you can reach") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().requires_grad_(False).to(device=torch.device(device))


def unwrap_model(model: Any) -> Any:
    """Return the causal model inside adapters and wrappers (DDP, FSDP)."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the states [batch, length, H] that enter `model`'s output matrix."""
    states: list[torch.Tensor] = []
    hook = unwrap_model(model).base_model.register_forward_hook(
        lambda module, args, output: states.append(output.last_hidden_state))
    try:
        # A wrapped model must be called itself; it computes the logits of one position only.
        model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    return states[0]


def output_layer(model: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (weight, bias) of the output matrix, gathered if sharded.

    Raises UserError if the model scales or caps its logits, which the losses here do not support.
    """
    causal_model = unwrap_model(model)
    config = causal_model.config.get_text_config()
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier",
                "output_multiplier"):
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise UserError(f"limbeck's own losses cannot train or score a {config.model_type} "
                            f"model ({key} is set); set sft.method.type=sequence, or on_policy "
                            "without attn_implementation: limbeck_varlen")
    layer = causal_model.get_output_embeddings()
    return _gathered(layer.weight), _gathered(getattr(layer, "bias", None))


def _gathered(x: Any) -> Any:
    return x.full_tensor() if hasattr(x, "full_tensor") else x      # sharded by FSDP2


def make_scorer(config: LogitsConfig, vocabulary: int) -> Scorer:
    """Make the scorer of `config` over the first `vocabulary` outcomes (the student's width)."""
    if isinstance(config.scorer, Vllm):
        return VllmScorer(config, config.scorer.engine, vocabulary)
    return TransformersScorer(config, vocabulary)


class TransformersScorer:
    """Scores with a transformers model, longest samples first, in batches of similar length."""

    def __init__(self, config: LogitsConfig, vocabulary: int):
        assert isinstance(config.scorer, Transformers)
        self.model = load_teacher(config.teacher, config.scorer.dtype)
        self.config, self.budget = config, config.scorer.batch_tokens
        self.vocabulary = vocabulary

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[TopKLogprobs]:
        scored: dict[int, TopKLogprobs] = {}
        for batch in self._batches(samples):
            states = self._states([samples[i] for i in batch])
            for i, sample_states in zip(batch, states, strict=True):
                scored[i] = self._top_k(sample_states)
        return [scored[i] for i in range(len(samples))]

    def _batches(self, samples: Sequence[Sample]) -> Iterator[list[int]]:
        """Yield indices in batches of at most `budget` padded tokens."""
        batch: list[int] = []
        longest = 0
        for i in sorted(range(len(samples)), key=lambda i: -len(samples[i][0])):
            longest = longest or len(samples[i][0])
            if batch and longest * (len(batch) + 1) > self.budget:
                yield batch
                batch, longest = [], len(samples[i][0])
            batch.append(i)
        if batch:
            yield batch

    def _states(self, samples: list[Sample]) -> list[torch.Tensor]:
        """Return for each sample the states [n, H] that predict its trained tokens."""
        device = next(self.model.parameters()).device
        rows = [torch.tensor(ids, device=device) for ids, _ in samples]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True)
        states = hidden_states(self.model, {"input_ids": ids, "attention_mask": mask})
        return [state[torch.tensor(positions - 1, device=device)]
                for state, (_, positions) in zip(states, samples, strict=True)]

    def _top_k(self, states: torch.Tensor) -> TopKLogprobs:
        """Compute the likeliest outcomes at states [n, H], 1,024 tokens at a time."""
        weight, bias = output_layer(self.model)
        weight, bias = weight[:self.vocabulary], bias if bias is None else bias[:self.vocabulary]
        k = min(self.config.top_k, len(weight))
        chunks = []
        for chunk in states.split(1024):
            s = torch.log_softmax(torch.nn.functional.linear(chunk, weight, bias).float()
                                  / self.config.temperature, -1)
            logps, ids = s.topk(k, -1)
            tail = s.scatter_(1, ids, -torch.inf).logsumexp(-1)
            chunks.append([x.cpu().numpy() for x in (ids, logps, tail)])
        return TopKLogprobs(*(np.concatenate(column) for column in zip(*chunks, strict=True)))


class VllmScorer:
    """Scores with vLLM's `prompt_logprobs`, for one generated token."""

    def __init__(self, config: LogitsConfig, engine: dict[str, Any], vocabulary: int):
        from vllm import LLM, SamplingParams

        from pipeline.serving.engine_group import start_engines

        self.engine = start_engines(LLM, {"model": config.teacher, "enable_prefix_caching": False,
                                          "max_logprobs": config.top_k, **engine})
        # Or its threads are cut off inside C++ when the interpreter ends, which aborts the process.
        atexit.register(self.engine.llm_engine.engine_core.shutdown)
        self.k, self.vocabulary = config.top_k, vocabulary
        self.params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=config.top_k,
                                     flat_logprobs=True, detokenize=False)

    def __call__(self, samples: Sequence[Sample]) -> list[TopKLogprobs]:
        prompts = [{"prompt_token_ids": ids.tolist()} for ids, _ in samples]
        outputs = self.engine.generate(prompts, self.params)
        return [self._top_k(output.prompt_logprobs, positions)
                for output, (_, positions) in zip(outputs, samples, strict=True)]

    def _top_k(self, flat: Any, positions: np.ndarray) -> TopKLogprobs:
        """Return a sample's outcomes: the first k ranks at each position."""
        ids = np.zeros((len(positions), self.k), np.int64)
        logps = np.full((len(positions), self.k), -np.inf, np.float32)
        token_ids, values, ranks = (np.asarray(x) for x in (flat.token_ids, flat.logprobs,
                                                            flat.ranks))
        for row, position in enumerate(positions):
            entries = slice(flat.start_indices[position], flat.end_indices[position])
            # The prompt's own token is listed too, twice if it is among the likeliest.
            by_rank = {rank: (token, value) for token, value, rank
                       in zip(token_ids[entries], values[entries], ranks[entries], strict=True)
                       if rank <= self.k and token < self.vocabulary}
            for rank, (token, value) in by_rank.items():
                ids[row, rank - 1], logps[row, rank - 1] = token, value
        return TopKLogprobs(ids, logps, tail_logprobs(logps))
