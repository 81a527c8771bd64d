"""The teacher as a scorer of token rows, and beside the student: transformers or vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.config.sft import LogitsConfig, Transformers, Vllm
from pipeline.errors import UserError
from pipeline.sft.target_store import Scorer, TopKLogprobs

Sample = tuple[np.ndarray, np.ndarray]


def load_teacher(name: str, dtype: str, attention: str | None = None) -> torch.nn.Module:
    """The teacher as a frozen model in evaluation mode on the accelerator, if there is one."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype,
                                                     attn_implementation=attention)
    except (OSError, ValueError) as error:
        raise UserError(f"no teacher {name!r}: {str(error).splitlines()[0]}; name a checkpoint "
                        "folder or a hub id you can reach") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().requires_grad_(False).to(device=torch.device(device))


def backbone(model: Any) -> Any:
    """The causal model itself, out of adapters and wrappers round it."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The states [batch, length, H] that `model`'s output matrix is applied to.

    `model` may be wrapped (DDP, FSDP, adapters), so it is called as a whole; of its logits only
    the last position's are computed.
    """
    kept: list[torch.Tensor] = []
    hook = backbone(model).base_model.register_forward_hook(
        lambda module, given, output: kept.append(output.last_hidden_state))
    try:
        model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    return kept[0]


def output_layer(model: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(weight, bias) of the output matrix, gathered where it is sharded.

    A UserError where the model scales or caps its logits: the losses here do neither.
    """
    inner = backbone(model)
    config = inner.config.get_text_config()
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier",
                "output_multiplier"):
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise UserError(f"sft.method.type=logits cannot train or score a {config.model_type} "
                            f"model ({key} is set); set sft.method.type=sequence")
    layer = inner.get_output_embeddings()
    return _gathered(layer.weight), _gathered(getattr(layer, "bias", None))


def _gathered(x: Any) -> Any:
    """A whole tensor where `x` is sharded (FSDP2)."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def make_scorer(config: LogitsConfig, vocabulary: int) -> Scorer:
    """The scorer `config` names, over the first `vocabulary` outcomes (the student's width)."""
    if isinstance(config.scorer, Vllm):
        return VllmScorer(config, config.scorer.engine, vocabulary)
    return TransformersScorer(config, vocabulary)


class TransformersScorer:
    """Scores with a transformers model, the longest samples first, in batches of like length."""

    def __init__(self, config: LogitsConfig, vocabulary: int):
        assert isinstance(config.scorer, Transformers)
        self.model = load_teacher(config.teacher, config.scorer.dtype)
        self.config, self.budget = config, config.scorer.batch_tokens
        self.vocabulary = vocabulary

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[TopKLogprobs]:
        done: dict[int, TopKLogprobs] = {}
        for batch in self._batches(samples):
            states = self._states([samples[i] for i in batch])
            for i, rows in zip(batch, states, strict=True):
                done[i] = self._top(rows)
        return [done[i] for i in range(len(samples))]

    def _batches(self, samples: Sequence[Sample]) -> Iterator[list[int]]:
        """Indices in batches of at most the budget's padded tokens."""
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
        """Per sample the states [n, H] that predict its trained tokens."""
        device = next(self.model.parameters()).device
        rows = [torch.tensor(ids, device=device) for ids, _ in samples]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True)
        states = hidden_states(self.model, {"input_ids": ids, "attention_mask": mask})
        return [state[torch.tensor(places - 1, device=device)]
                for state, (_, places) in zip(states, samples, strict=True)]

    def _top(self, states: torch.Tensor) -> TopKLogprobs:
        """The likeliest outcomes at states [n, H], 1,024 tokens at a time."""
        weight, bias = output_layer(self.model)
        weight, bias = weight[:self.vocabulary], bias if bias is None else bias[:self.vocabulary]
        k = min(self.config.top_k, len(weight))
        found = []
        for part in states.split(1024):
            s = torch.log_softmax(torch.nn.functional.linear(part, weight, bias).float()
                                  / self.config.temperature, -1)
            logps, ids = s.topk(k, -1)
            rest = s.scatter_(1, ids, -torch.inf).logsumexp(-1)
            found.append([x.cpu().numpy() for x in (ids, logps, rest)])
        return TopKLogprobs(*(np.concatenate(column) for column in zip(*found, strict=True)))


class VllmScorer:
    """Scores with vLLM: one generated token, `prompt_logprobs` for the sample's own."""

    def __init__(self, config: LogitsConfig, engine: dict[str, Any], vocabulary: int):
        from vllm import LLM, SamplingParams

        settings = {"enable_prefix_caching": False, "max_logprobs": config.top_k, **engine}
        self.engine = LLM(model=config.teacher, **settings)
        self.k, self.vocabulary = config.top_k, vocabulary
        self.params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=config.top_k,
                                     flat_logprobs=True, detokenize=False)

    def __call__(self, samples: Sequence[Sample]) -> list[TopKLogprobs]:
        prompts = [{"prompt_token_ids": ids.tolist()} for ids, _ in samples]
        outputs = self.engine.generate(prompts, self.params)
        return [self._top(output.prompt_logprobs, places)
                for output, (_, places) in zip(outputs, samples, strict=True)]

    def _top(self, flat: Any, places: np.ndarray) -> TopKLogprobs:
        """A sample's outcomes: of each place the first k ranks, the prompt's own token aside."""
        ids = np.zeros((len(places), self.k), np.int64)
        logps = np.full((len(places), self.k), -np.inf, np.float32)
        token_ids, values, ranks = (np.asarray(x) for x in (flat.token_ids, flat.logprobs,
                                                            flat.ranks))
        for row, place in enumerate(places):
            part = slice(flat.start_indices[place], flat.end_indices[place])
            # The token of the prompt is listed as well, twice where it is among the likeliest.
            chosen = {rank: (token, value) for token, value, rank
                      in zip(token_ids[part], values[part], ranks[part], strict=True)
                      if rank <= self.k and token < self.vocabulary}
            for rank, (token, value) in chosen.items():
                ids[row, rank - 1], logps[row, rank - 1] = token, value
        with np.errstate(divide="ignore"):
            rest = np.log(np.clip(1 - np.exp(logps.astype(np.float64)).sum(1), 1e-9, 1))
        return TopKLogprobs(ids, logps, rest)
