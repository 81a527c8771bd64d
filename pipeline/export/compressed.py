"""A checkpoint folder of compressed weights, as vLLM serves it: written, and run for the proof."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from pipeline.config.evaluate import CALIBRATED
from pipeline.errors import UserError
from pipeline.export.llama_cpp import Step
from pipeline.hub import lineage as lineages
from pipeline.student.decode import decode
from pipeline.student.template import prompt_ids
from pipeline.student.tokenizer import load_tokenizer

SCHEMES = {"fp8": "FP8_DYNAMIC", "w4a16": "W4A16", "gptq": "W4A16",
           "awq": "W4A16_ASYM"}     # AWQ's scales leave weights that are not centred
GROUPS = (128, 64, 32)
"""Weights that share a scale: the sizes that vLLM's kernels have."""
CALIBRATION_TOKENS = 2048
"""Tokens of a row that calibration reads at most."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep llmcompressor's log and bars from the terminal."""
    with redirect_stderr(io.StringIO()), patch.dict(
            os.environ, {"LLM_COMPRESSOR_LOG_DISABLED": "true"}):   # it reads it again and again
        from loguru import logger

        logger.disable("compressed_tensors")
        # Its warning is of torch's own names, and its handler has the terminal from before.
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
        yield


def group_size(model: Any) -> int:
    """Return the largest group that every compressed row is a multiple of. Raises UserError."""
    head = model.get_output_embeddings()
    rows = {one.in_features for one in model.modules()
            if isinstance(one, torch.nn.Linear) and one is not head}
    found = next((size for size in GROUPS if not any(row % size for row in rows)), None)
    if found is None:
        raise UserError(f"4 bits are packed in groups of {GROUPS[-1]} weights and this model has "
                        f"rows of {min(row for row in rows if row % GROUPS[-1])}; name fp8 instead")
    return found


def _recipe(form: str, model: Any) -> list[Any]:
    """llmcompressor's modifiers of a format, in order."""
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    scheme = preset_name_to_scheme(SCHEMES[form], ["Linear"])
    if form != "fp8":
        scheme.weights.group_size = group_size(model)
    rounding = GPTQModifier if form == "gptq" else QuantizationModifier
    # "both" tries scales with and without the weights' own sizes, and keeps the better.
    return [*([AWQModifier(duo_scaling="both")] if form == "awq" else []),
            rounding(config_groups={"group_0": scheme}, ignore=["lm_head"])]


def _batches(learnt: Sequence[Sequence[int]]) -> Any:
    """A row a batch, as llmcompressor reads them."""
    rows = [torch.tensor(row[:CALIBRATION_TOKENS]) for row in learnt]
    batches: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    return torch.utils.data.DataLoader(batches)


@contextmanager
def _unpinned() -> Iterator[None]:
    """Keep AWQ from pinning memory where there is no accelerator to pin it for."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
    else:
        with patch.object(IntermediatesCache, "pin_memory"):
            yield


def write_folder(folder: Path, checkpoint: str, model: Any, tokenizer: Any, form: str, *,
                 ends: list[int], sampling: Mapping[str, float],
                 lineage: Mapping[str, Any], learnt: Sequence[Sequence[int]] = ()) -> None:
    """Compress `model`, loaded from `checkpoint`, in place; write it with all that serves it.

    `learnt` holds token rows of what the model learnt from, for the CALIBRATED formats.
    """
    if form in CALIBRATED:
        print(f"export: calibrating {form} on {len(learnt):,} rows", file=sys.stderr)
    with _quiet():
        from llmcompressor import oneshot

        if model.dtype == torch.float32:
            model.to(torch.bfloat16)        # vLLM's kernels have 16 bits for the rest
        model.config._name_or_path = checkpoint     # llmcompressor reads the config there
        with _unpinned():
            oneshot(model=model, recipe=_recipe(form, model), log_dir=None,
                    dataset=_batches(learnt) if form in CALIBRATED else None)
        settings = model.generation_config
        settings.eos_token_id, settings.do_sample = ends, sampling["temperature"] > 0
        if settings.do_sample:
            settings.temperature, settings.top_p = sampling["temperature"], sampling["top_p"]
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lineages.write_file(folder, lineage)


class CompressedFolder:
    """Runs a folder by transformers, which rounds activations as the format does."""

    def __init__(self, folder: Path):
        from transformers import AutoModelForCausalLM

        self.tokenizer = load_tokenizer(str(folder))
        with _quiet():
            self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
            self._logits([0, 0], 1)         # unpacks the weights

    @torch.no_grad()
    def _logits(self, ids: list[int], count: int) -> torch.Tensor:
        """Logits [count, vocabulary] of the tokens after the last `count` of `ids`."""
        tokens = torch.tensor([ids], device=self.model.device)
        return self.model(input_ids=tokens, logits_to_keep=count).logits[0].float().cpu()

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens that a chat is answered from: the folder's template and tokenizer."""
        return prompt_ids(self.tokenizer, list(messages))

    def follow(self, prompt: Sequence[int], answer: Sequence[int], most: int) -> list[Step]:
        """Return the folder's choice at each token of `answer`."""
        scores = self._logits([*prompt, *answer][:-1], len(answer)).log_softmax(-1)
        likeliest = scores.topk(most)
        return [Step(token, ids[0], dict(zip(ids, values, strict=True)))
                for token, ids, values in zip(answer, likeliest.indices.tolist(),
                                              likeliest.values.tolist(), strict=True)]

    def complete(self, prompt: Sequence[int], max_tokens: int) -> dict[str, Any]:
        """Return tokens and timings of one greedy completion."""
        start = time.perf_counter()
        [tokens] = decode(self.model, [list(prompt)], max_tokens=max_tokens, temperature=0,
                          eos_token_ids=[])
        spent = time.perf_counter() - start
        return {"tokens": tokens, "timings": {"predicted_per_second": len(tokens) / spent}}
