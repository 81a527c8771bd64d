"""What llama.cpp must be told of a checkpoint: its architecture, its sizes, its tensors' names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
import torch

from pipeline.errors import UserError

ARCHITECTURES = {"Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
                 "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
                 "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA}
"""The only list of architectures: a new one is a line here, if its sizes have these names."""
ROPE_FREQS = "rope_freqs.weight"


def architecture(model: Any) -> gguf.MODEL_ARCH:
    """Return llama.cpp's architecture. Raises UserError if it is none that export writes."""
    name, config = type(model).__name__, model.config
    if name not in ARCHITECTURES:
        raise UserError(f"export writes {', '.join(ARCHITECTURES)}, and this model is a {name}; "
                        "use a student of one of those families")
    refused = {
        "use_sliding_window": bool(getattr(config, "use_sliding_window", False)),
        "hidden_act": getattr(config, "hidden_act", "silu") != "silu",
        "quantization_config": getattr(config, "quantization_config", None) is not None,
        "partial_rotary_factor": _rope(config).get("partial_rotary_factor", 1.0) != 1.0}
    if found := [key for key, bad in refused.items() if bad]:
        raise UserError(f"{name} with {found[0]}={_shown(config, found[0])} has no form in "
                        "llama.cpp; export a checkpoint without it")
    _rope_type(config)
    return ARCHITECTURES[name]


def _shown(config: Any, key: str) -> Any:
    return _rope(config).get(key, getattr(config, key, None))


def head_size(config: Any) -> int:
    """Return the size of an attention head, which need not be hidden size over heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the sizes, the norm's epsilon and the rotary embedding of `config`."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head_size(config))
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = _rope_type(config)
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.get("original_max_position_embeddings")
                                             or config.max_position_embeddings)


def _rope(config: Any) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {"rope_theta": 10000.0}


def _rope_type(config: Any) -> str:
    """Return the kind of rotary scaling. Raises UserError if llama.cpp has none such."""
    rope = _rope(config)
    kind = rope.get("rope_type") or "default"
    own = {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise UserError(f"rotary scaling of type {kind!r} has no form in llama.cpp; export a "
                        "checkpoint with default, linear, yarn or llama3")
    if kind == "yarn" and (set_here := sorted(key for key in own if rope.get(key) is not None)):
        raise UserError(f"yarn with its own {set_here[0]} is not written to GGUF; remove it from "
                        "the checkpoint's config.json")
    return kind


def tensors(model: Any, arch: gguf.MODEL_ARCH) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name in GGUF, weights) of `model`, layer by layer; a tied output matrix once.

    Raises UserError if a tensor has no name there.
    """
    config = model.config
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for key, weights in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UserError(f"tensor {key} has no name in GGUF's {arch.name}; merge adapters into "
                            "the checkpoint, and export the language model alone")
        yield name, _permuted(name, weights, config) if arch == gguf.MODEL_ARCH.LLAMA else weights
    if _rope_type(config) == "llama3":
        yield ROPE_FREQS, torch.from_numpy(llama3_factors(config))


def _permuted(name: str, weights: torch.Tensor, config: Any) -> torch.Tensor:
    """Reorder rows of Llama's queries and keys: llama.cpp rotates neighbours, not halves."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(
        name.split(".")[-2])
    if heads is None:
        return weights
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def llama3_factors(config: Any) -> np.ndarray:
    """Return what llama.cpp divides each frequency by: Llama 3.1's smooth scaling [head / 2]."""
    rope, size = _rope(config), head_size(config)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    length = rope["original_max_position_embeddings"]
    factors = []
    for index in range(0, size, 2):
        turns = length / (2 * math.pi * rope["rope_theta"] ** (index / size))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)
