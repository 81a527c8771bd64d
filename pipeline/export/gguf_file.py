"""Writes a checkpoint as one GGUF file, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from pipeline.export import architecture
from pipeline.export.chat_format import jinja_template
from pipeline.export.quantise import FORMATS, pack, packed_shape, tensor_type
from pipeline.export.vocabulary import vocabulary
from pipeline.student.template import encode, render_prompt


def write_gguf(path: Path, model: Any, tokenizer: Any, form: str, *, name: str,
               ends: list[int], sampling: Mapping[str, float], lineage: Mapping[str, Any]) -> None:
    """Write `model` in format `form` to `path`, with everything that a runner must know.

    `ends` are the end-of-turn tokens; `sampling` (temperature, top_p) the advised defaults;
    `lineage` what the model was made from. Raises UserError if llama.cpp has no form for it.
    """
    arch = architecture.architecture(model)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(FORMATS[form][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_sampling_temp(sampling["temperature"])
    writer.add_sampling_top_p(sampling["top_p"])
    writer.add_string("limbeck.lineage", json.dumps(lineage, ensure_ascii=False))
    architecture.add_sizes(writer, model.config)
    _add_tokenizer(writer, tokenizer, model.get_input_embeddings().weight.shape[0], ends)
    _write_tensors(writer, model, arch, form)
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, rows: int, ends: list[int]) -> None:
    vocabulary(tokenizer, rows).write(writer)
    writer.add_eos_token_id(ends[0])
    for add, index in zip((writer.add_eot_token_id, writer.add_eom_token_id), ends[1:],
                          strict=False):
        add(index)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    # The template writes the first token; llama.cpp takes it off the text and adds it again.
    prompt = encode(tokenizer, render_prompt(tokenizer, [{"role": "user", "content": "x"}]))
    writer.add_add_bos_token(prompt[:1] == [tokenizer.bos_token_id])
    writer.add_add_space_prefix(False)
    writer.add_chat_template(jinja_template(tokenizer))


def _write_tensors(writer: gguf.GGUFWriter, model: Any, arch: gguf.MODEL_ARCH, form: str) -> None:
    config = model.config
    named = list(architecture.tensors(model, arch))
    kinds = {name: tensor_type(form, name, tuple(tensor.shape), config.num_hidden_layers,
                               config.tie_word_embeddings) for name, tensor in named}
    for name, tensor in named:
        kind, shape = kinds[name], tuple(tensor.shape)
        in_bytes = packed_shape(shape, kind)
        if kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), int(np.prod(in_bytes)))
        else:
            writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), int(np.prod(in_bytes)), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in named:
        values = tensor.detach().float().cpu().numpy()
        packed = kinds[name] != gguf.GGMLQuantizationType.F32
        writer.write_tensor_data(pack(values, kinds[name]) if packed else values)
