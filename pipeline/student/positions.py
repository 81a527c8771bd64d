"""Holds lengths against the positions that a student was made for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SCALED = ("yarn", "linear", "dynamic", "longrope", "su")
"""Kinds of rope scaling by whose factor a model takes longer texts."""


def positions(model: str, settings: Mapping[str, Any] | None = None) -> int | None:
    """Return the tokens that `model`, with `settings` (model_init_kwargs), was made for.

    None if its configuration cannot be read or names no limit.
    """
    from transformers import AutoConfig

    from pipeline.student.tokenizer import check_hub

    try:
        check_hub(model)
        config = AutoConfig.from_pretrained(model).get_text_config().to_dict()
    except (OSError, ValueError, AttributeError):
        return None
    config = {**config, **(settings or {})}
    limit = config.get("max_position_embeddings")
    if not isinstance(limit, int):
        return None
    rope = (settings or {}).get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in SCALED or not rope.get("factor"):
        return limit
    return max(limit, int(rope["factor"] * (rope.get("original_max_position_embeddings") or limit)))


def row_lengths(path: Path) -> np.ndarray:
    """Return the length in tokens of every sample in the token rows at `path`."""
    import polars as pl

    rows = pl.scan_parquet(path)
    if "seq_lengths" in rows.collect_schema():
        return rows.select(pl.col("seq_lengths").explode()).collect().to_series().to_numpy()
    return rows.select(pl.col("input_ids").list.len()).collect().to_series().to_numpy()


REMEDY = ("a longer max_position_embeddings, with rope_parameters that reach it, in "
          "sft.trainer.model_init_kwargs")


def rows_beyond(path: Path, model: str, settings: Mapping[str, Any] | None) -> str | None:
    """Say how many token rows at `path` are longer than `model` was made for; None if none is."""
    limit = positions(model, settings)
    lengths = row_lengths(path)
    if limit is None or not len(lengths) or lengths.max() <= limit:
        return None
    return (f"{(lengths > limit).sum():,} of {len(lengths):,} rows are longer than the {limit:,} "
            f"positions that {model} was made for (the longest has {lengths.max():,} tokens); "
            f"set {REMEDY}, or lower pack.max_tokens")


def sampling_beyond(model: str, prompt: int, new: int, key: str,
                    settings: Mapping[str, Any] | None = None) -> str | None:
    """Say that `prompt` and `new` tokens (config key `key`) go beyond `model`'s positions."""
    limit = positions(model, settings)
    if limit is None or prompt + new <= limit:
        return None
    return (f"prompts of up to {prompt:,} and completions of up to {new:,} tokens go beyond the "
            f"{limit:,} positions that {model} was made for; lower {key}, or "
            f"train it with {REMEDY}")


def say(stage: str, sentence: str | None) -> None:
    """Print `sentence`, if there is one, as a warning of `stage`."""
    if sentence:
        print(f"{stage}: {sentence}", file=sys.stderr)
