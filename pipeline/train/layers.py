"""Decoder layers as two compiled functions around attention: `sft.layers`, `rl.layers`.

Under autocast transformers' layers cast the input of every product, and run each norm, rotary
embedding, SwiGLU and residual as several kernels: a small student waits for their launches. Here
torch.compile fuses them, queries, keys and values come from one product, gates and ups from
another. Weights stay float32 and are cast once a forward pass; sums along the residual and in the
norms are in float32, as under autocast. All layers share the functions, which take the weights as
arguments, so each is compiled once; generation with a cache takes the layer as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch.nn.functional import linear, silu
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.errors import UserError

SUPPORTED = ("LlamaDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""Layers of the same plan: RMS norms, rotary embedding, SwiGLU, norms of heads or none."""
Tensor = torch.Tensor


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm in float32 over the last axis."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x` [1, heads, length, d]."""
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


def joined(weights: tuple[Tensor | None, ...], dtype: torch.dtype) -> Tensor | None:
    """The weights, or biases, of several products as those of one."""
    present = [weight for weight in weights if weight is not None]
    return torch.cat(present).to(dtype) if present else None


def before_attention(x: Tensor, weight: Tensor, epsilon: float, matrices: tuple[Tensor, ...],
                     biases: tuple[Tensor | None, ...], head_norms: tuple[Tensor, ...],
                     cos: Tensor, sin: Tensor, head: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values [1, heads, length, head] in `dtype` of `x` [1, length, width]."""
    matrix = joined(matrices, dtype)
    assert matrix is not None
    flat = linear(norm(x, weight, epsilon).to(dtype), matrix, joined(biases, dtype))
    parts = [part.unflatten(-1, (-1, head))
             for part in flat.split([len(matrix) for matrix in matrices], -1)]
    for index, scale in enumerate(head_norms):
        parts[index] = norm(parts[index], scale, epsilon)
    query, key, value = (part.transpose(1, 2) for part in parts)
    return [rotate(query, cos, sin).to(dtype), rotate(key, cos, sin).to(dtype), value]


def after_attention(x: Tensor, attended: Tensor, output: Tensor, bias: Tensor | None,
                    weight: Tensor, epsilon: float, gate: Tensor, up: Tensor, down: Tensor,
                    dtype: torch.dtype) -> Tensor:
    """The layer's result: `x` with what was `attended` to [1, length, width] and the SwiGLU."""
    bias = bias if bias is None else bias.to(dtype)
    x = x + linear(attended, output.to(dtype), bias)
    both = joined((gate, up), dtype)
    assert both is not None
    gates, ups = linear(norm(x, weight, epsilon).to(dtype), both).chunk(2, -1)
    return x + linear(silu(gates) * ups, down.to(dtype))


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True)


def mark_lengths(*tensors: Tensor) -> None:
    """Let torch.compile treat axis 1, the tokens, as one that changes from batch to batch."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 1)  # type: ignore[no-untyped-call]


class FusedForward:
    """The forward of a decoder layer; `original` is the layer's own, for generation."""

    def __init__(self, original: Callable[..., Any], compile_on_cpu: bool = False):
        self.original, self.compile_on_cpu = original, compile_on_cpu

    def __call__(self, layer: Any, hidden_states: Tensor, attention_mask: Tensor | None = None,
                 position_ids: Tensor | None = None, past_key_values: Any = None,
                 use_cache: bool | None = False,
                 position_embeddings: tuple[Tensor, Tensor] | None = None, **options: Any) -> Any:
        if past_key_values is not None or position_embeddings is None:
            return self.original(
                hidden_states, attention_mask=attention_mask, position_ids=position_ids,
                past_key_values=past_key_values, use_cache=use_cache,
                position_embeddings=position_embeddings, **options)
        kind = hidden_states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else \
            hidden_states.dtype
        run = compiled if kind == "cuda" or self.compile_on_cpu else _as_it_is
        with torch.autocast(kind, enabled=False):
            heads = self._heads(run, layer, hidden_states, position_embeddings, dtype)
            attended = attend(layer.self_attn, heads, attention_mask, options)
            return self._rest(run, layer, hidden_states, attended, dtype)

    def _heads(self, run: Any, layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor],
               dtype: torch.dtype) -> list[Tensor]:
        own = layer.self_attn
        mark_lengths(x, *rotary)
        products = (own.q_proj, own.k_proj, own.v_proj)
        norms = tuple(getattr(own, name).weight for name in ("q_norm", "k_norm")
                      if hasattr(own, name))
        first = layer.input_layernorm
        return run(before_attention)(
            x, first.weight, first.variance_epsilon, tuple(p.weight for p in products),
            tuple(p.bias for p in products), norms, *rotary, own.head_dim, dtype)

    def _rest(self, run: Any, layer: Any, x: Tensor, attended: Tensor, dtype: torch.dtype) -> Any:
        mark_lengths(x, attended)
        output, second, mlp = layer.self_attn.o_proj, layer.post_attention_layernorm, layer.mlp
        return run(after_attention)(
            x, attended, output.weight, output.bias, second.weight, second.variance_epsilon,
            mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, dtype)


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def attend(module: Any, heads: list[Tensor], mask: Tensor | None,
           options: dict[str, Any]) -> Tensor:
    """Attention as transformers' layers call it, [1, length, heads * head]."""
    function = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
    attended = function(module, *heads, mask, scaling=module.scaling,
                        dropout=module.attention_dropout if module.training else 0.0,
                        sliding_window=getattr(module, "sliding_window", None), **options)[0]
    return attended.flatten(2)


def fuse_layers(model: Any, compile_on_cpu: bool = False) -> None:
    """Give every decoder layer of `model` the fused forward.

    Raises UserError if its layers have another plan.
    """
    layers = getattr(model.base_model, "layers", [])
    kinds = {type(layer).__name__ for layer in layers}
    fault = next((kind for kind in kinds if kind not in SUPPORTED), None) if kinds else "none"
    plain = getattr(model.config, "hidden_act", None) == "silu" and not any(
        getattr(model.config, name, False) for name in ("mlp_bias",))
    if fault or not plain or model.config._attn_implementation == "eager":
        raise UserError(f"layers=compiled knows {', '.join(SUPPORTED)} with SwiGLU and an "
                        f"attention other than eager, not {fault or model.config.model_type}; "
                        "set layers=transformers")
    for layer in layers:
        layer.forward = MethodType(FusedForward(layer.forward, compile_on_cpu), layer)
