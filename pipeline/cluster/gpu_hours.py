"""Hours and dollars of a recipe's GPU work on described GPUs, from tokens and floating-point work.

A token costs 6 operations a parameter to train on, 2 to score (Kaplan et al. 2020, section 2.1).
What share of a GPU's peak that work reaches was measured by this project (results/); each row says
which of its figures were counted and which are assumed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

PEAK = {"a100": 312e12, "h100": 989e12, "h200": 989e12, "b200": 2250e12, "l40s": 362e12,
        "a10g": 70e12, "rtx4090": 165e12}
"""Dense bf16 operations a second, from NVIDIA's data sheets."""
TRAIN_SHARE, SMALL_TRAIN_SHARE, FULL_SIZE = 0.347, 0.229, 1.5e9
"""Share of the peak in SFT at 32 rows: a model from FULL_SIZE parameters, and one of 0.5e9
(results/sft-peers.json; smaller models wait for kernels to be launched)."""
SAMPLE_SHARE = 0.066
"""Share of the peak that vLLM reaches in sampling a thousand completions at once: 65,000 tokens a
second of a 0.5B model on an H200 (results/qwen-seeds.json)."""
ANOTHER_GPU = 0.95
"""Speed of each further GPU beside the first; 3.35 x with four were measured in SFT."""


@dataclass(frozen=True)
class Work:
    """What one stage computes: parameters, and tokens trained on, scored and sampled."""

    stage: str
    parameters: float
    trained: float = 0
    scored: float = 0
    sampled: float = 0
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gpus:
    """GPUs of one kind, their price, and rates in tokens/s a GPU that a calibration gave."""

    count: int = 1
    kind: str = "h100"
    usd: float | None = None
    train_rate: float | None = None
    sample_rate: float | None = None

    def peak(self) -> float:
        """Operations a second of one. Raises UserError if the kind is unknown."""
        if self.kind.lower() not in PEAK:
            raise UserError(f"the speed of GPU {self.kind!r} is not known; name one of "
                            f"{', '.join(PEAK)}, or measure --train-rate and --sample-rate")
        return PEAK[self.kind.lower()]

    def speed(self) -> float:
        """How many times one GPU's work all do together."""
        return self.count * (ANOTHER_GPU if self.count > 1 else 1.0)


def train_share(parameters: float) -> float:
    """Share of the peak that training a model of `parameters` reaches."""
    # A power law through the two measured sizes.
    slope = 0.378
    return min(TRAIN_SHARE, SMALL_TRAIN_SHARE * (parameters / 0.5e9) ** slope)


def hours(work: Work, gpus: Gpus) -> float:
    """Wall-clock hours of `work` on `gpus`."""
    def seconds(tokens: float, operations: float, share: float, rate: float | None) -> float:
        if not tokens:
            return 0.0
        return tokens / (rate or share * gpus.peak() / (operations * work.parameters))

    share = train_share(work.parameters)
    scoring = gpus.train_rate and 3 * gpus.train_rate
    total = (seconds(work.trained, 6, share, gpus.train_rate)
             + seconds(work.scored, 2, share, scoring)
             + seconds(work.sampled, 2, SAMPLE_SHARE, gpus.sample_rate))
    return total / gpus.speed() / 3600


def parameters_of(model: str) -> tuple[float, str]:
    """Parameters of a checkpoint folder or of a name like Qwen2.5-7B, and where they are from.

    Raises UserError if neither says.
    """
    folder = Path(model)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        size = json.loads(index.read_text(encoding="utf-8"))["metadata"]["total_size"]
        return size / 2, "bf16 weights"
    if (single := folder / "model.safetensors").is_file():
        return _header_parameters(single), "weights"
    if found := re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)\s?[bB](?![a-zA-Z])", model):
        return float(found[-1]) * 1e9, "name"
    raise UserError(f"neither the name nor a folder says how large the model {model!r} is; give "
                    "--student-billions")


def _header_parameters(path: Path) -> float:
    """Count the values that a safetensors file holds, by its header alone."""
    with path.open("rb") as file:
        header: Mapping[str, dict] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return float(sum(math.prod(tensor["shape"]) for name, tensor in header.items()
                     if name != "__metadata__"))
