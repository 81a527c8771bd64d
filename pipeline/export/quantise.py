"""Which type each tensor gets in a format, as llama.cpp mixes them, and the packing itself."""

from __future__ import annotations

import ctypes
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

Q = GGMLQuantizationType
FORMATS: dict[str, tuple[Q, LlamaFileType]] = {
    "f32": (Q.F32, LlamaFileType.ALL_F32),
    "f16": (Q.F16, LlamaFileType.MOSTLY_F16), "bf16": (Q.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Q.Q8_0, LlamaFileType.MOSTLY_Q8_0), "q6_k": (Q.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    "q5_k_m": (Q.Q5_K, LlamaFileType.MOSTLY_Q5_K_M),
    "q4_k_m": (Q.Q4_K, LlamaFileType.MOSTLY_Q4_K_M)}
"""The type of most tensors and the file's type, of each format."""
FALLBACK = {Q.Q4_K: Q.Q5_0, Q.Q5_K: Q.Q5_1, Q.Q6_K: Q.Q8_0}
"""For rows that no block of 256 divides; where 32 does not divide them either, F16."""
ROWS_A_TASK = 1024


def tensor_type(form: str, name: str, shape: tuple[int, ...], layers: int, tied: bool) -> Q:
    """Return the type of tensor `name` [.., row length], as llama-quantize of llama.cpp mixes."""
    most: Q = FORMATS[form][0]
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return Q.F32
    if most in (Q.F32, Q.F16, Q.BF16):
        return most
    row, kind = shape[-1], FORMATS[form][0]
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        kind = Q.Q8_0 if most == Q.Q8_0 or row % 256 else Q.Q6_K
    elif form.endswith("_m") and re.search(r"\.(attn_v|ffn_down)\.", name):
        kind = Q.Q6_K if _more_bits(int(name.split(".")[1]), layers) else most
    if row % GGML_QUANT_SIZES[kind][0]:
        kind = FALLBACK.get(kind, Q.F16)
    return kind if row % GGML_QUANT_SIZES[kind][0] == 0 else Q.F16


def _more_bits(layer: int, layers: int) -> bool:
    """Whether a layer's value and down projections get Q6_K: the ends, and each third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def packed_shape(shape: tuple[int, ...], kind: Q) -> tuple[int, ...]:
    """Return the shape in bytes of a tensor of type `kind`."""
    block, size = GGML_QUANT_SIZES[kind]
    return (*shape[:-1], shape[-1] // block * size)


def pack(values: np.ndarray, kind: Q) -> np.ndarray:
    """Quantise `values` [.., row length] in float32 to bytes by ggml, on every core."""
    rows = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, values.shape[-1])
    out = np.empty(packed_shape(rows.shape, kind), dtype=np.uint8)
    chunk = _ggml()

    def part(start: int) -> None:
        some, into = rows[start:start + ROWS_A_TASK], out[start:start + ROWS_A_TASK]
        chunk(int(kind), some.ctypes.data, into.ctypes.data, 0, len(some), rows.shape[1], None)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(part, range(0, len(rows), ROWS_A_TASK)))
    return out.reshape(packed_shape(values.shape, kind))


@cache
def _ggml() -> Any:
    """ggml_quantize_chunk(type, source, destination, start, rows, row length, importance)."""
    # gguf itself reads K-quants and cannot write them.
    spec = find_spec("libggml")
    assert spec is not None and spec.submodule_search_locations
    library = next(Path(spec.submodule_search_locations[0]).glob("lib*/libggml-base.*"))
    function = ctypes.CDLL(str(library)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
                         ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return function
