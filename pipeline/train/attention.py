"""Attention over samples laid end to end in one row: `attn_implementation: limbeck_varlen`.

PyTorch includes the variable-length kernel of FlashAttention-2 (arXiv 2307.08691): no further
package, and no [length, length] mask as for SDPA. In float32 or without a GPU every sample goes
through SDPA on its own. Padded batches and generation use SDPA.
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
UNSUPPORTED = ("sliding_window", "softcap", "s_aux")
"""Kinds of attention that the kernel or SDPA would silently ignore."""


def varlen_attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor,
                     value: torch.Tensor, attention_mask: torch.Tensor | None,
                     cu_seq_lens_q: torch.Tensor | None = None, max_length_q: int = 0,
                     scaling: float | None = None, **options: Any) -> tuple[torch.Tensor, None]:
    """Attend from `query` [1, heads, length, d] to [1, length, heads, d]; grouped heads allowed.

    `cu_seq_lens_q` are the samples' bounds in int32, as token_rows.Collator gives them.
    """
    if unsupported := [name for name in UNSUPPORTED if options.get(name) is not None]:
        raise UserError(f"{NAME} does not support {unsupported[0]}, which this model's attention "
                        "has; set attn_implementation: sdpa (with packing or padding_free off) or "
                        "flash_attention_2")
    if cu_seq_lens_q is None or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling,
                                      **options)
    dtype = kernel_dtype(query)
    if query.is_cuda and dtype is not None:
        rows = [x[0].transpose(0, 1).to(dtype) for x in (query, key, value)]
        # The public varlen_attn takes grouped heads from PyTorch 2.12 on only, by an argument that
        # 2.11 does not have.
        out = torch.ops.aten._flash_attention_forward(
            *rows, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, 0.0, True, False,
            scale=scaling)[0]
        return out[None], None
    samples = [sdpa_attention_forward(module, query[:, :, a:b], key[:, :, a:b], value[:, :, a:b],
                                      None, scaling=scaling, **options)[0]
               for a, b in pairwise(cu_seq_lens_q.tolist())]
    return torch.cat(samples, 1), None


def uses_varlen_attention(model: Any) -> bool:
    return model.config._attn_implementation == NAME


def kernel_dtype(query: torch.Tensor) -> torch.dtype | None:
    """Return the half precision in which the kernel runs, or None if the inputs are not in one."""
    # Under autocast the rotary embedding leaves `query` in float32, though the products around
    # it are in half precision, as SDPA would be.
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


def varlen_mask(*sizes: Any, attention_mask: torch.Tensor | None = None,
                **options: Any) -> torch.Tensor | None:
    """Return SDPA's mask for padded batches, None for samples end to end."""
    return None if attention_mask is None else \
        sdpa_mask(*sizes, attention_mask=attention_mask, **options)


def register() -> None:
    """Register NAME with transformers."""
    AttentionInterface.register(NAME, varlen_attention)
    AttentionMaskInterface.register(NAME, varlen_mask)
