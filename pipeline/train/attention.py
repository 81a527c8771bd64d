"""Attention over samples laid end to end, each alone: `attn_implementation: limbeck_varlen`.

PyTorch carries the variable-length kernel of FlashAttention-2 (arXiv 2307.08691) itself, so no
further package is needed, and no [length, length] mask is made, as SDPA needs for such rows. In
float32 or without a GPU every sample goes through SDPA on its own. Batches with padding, and
generation, go through SDPA as usual.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pipeline.errors import UserError

NAME = "limbeck_varlen"
UNKNOWN = ("sliding_window", "softcap", "s_aux")
"""Kinds of attention that the kernel or SDPA would silently leave out."""


def varlen_attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor,
                     value: torch.Tensor, attention_mask: torch.Tensor | None,
                     cu_seq_lens_q: torch.Tensor | None = None, max_length_q: int = 0,
                     scaling: float | None = None, **given: Any) -> tuple[torch.Tensor, None]:
    """[1, length, heads, d] of `query` [1, heads, length, d] and keys, values of as many or fewer.

    `cu_seq_lens_q` are the samples' bounds in int32, as `rows.Collator` gives them.
    """
    if odd := [name for name in UNKNOWN if given.get(name) is not None]:
        raise UserError(f"{NAME} knows no {odd[0]}, which this model's attention has; set "
                        "attn_implementation: sdpa (with packing or padding_free off) or "
                        "flash_attention_2")
    if cu_seq_lens_q is None or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling,
                                      **given)
    half = kernel_dtype(query)
    if query.is_cuda and half is not None:
        rows = [x[0].transpose(0, 1).to(half) for x in (query, key, value)]
        out = torch.ops.aten._flash_attention_forward(
            *rows, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, 0.0, True, False,
            scale=scaling)[0]
        return out[None], None
    parts = [sdpa_attention_forward(module, query[:, :, a:b], key[:, :, a:b], value[:, :, a:b],
                                    None, scaling=scaling, **given)[0]
             for a, b in pairwise(cu_seq_lens_q.tolist())]
    return torch.cat(parts, 1), None


def lays_end_to_end(model: Any) -> bool:
    """Whether `model`'s attention is this one."""
    return model.config._attn_implementation == NAME


def kernel_dtype(query: torch.Tensor) -> torch.dtype | None:
    """The half precision that the kernel is to run in; None: its inputs are of another.

    Under autocast the rotary embedding leaves `query` in float32, though the products round it are
    in half precision, as SDPA would be.
    """
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


def varlen_mask(*sizes: Any, attention_mask: torch.Tensor | None = None,
                **given: Any) -> torch.Tensor | None:
    """SDPA's mask for padded batches; none for samples end to end, whose bounds say it all."""
    return None if attention_mask is None else \
        sdpa_mask(*sizes, attention_mask=attention_mask, **given)


def register() -> None:
    """Make NAME known to transformers."""
    AttentionInterface.register(NAME, varlen_attention)
    AttentionMaskInterface.register(NAME, varlen_mask)
