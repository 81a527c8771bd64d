"""Knows the keys of TRL's and vLLM's config classes without importing them, which takes seconds."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import UserError

CLASSES = {
    "SFTConfig": "trl/trainer/sft_config.py",
    "GRPOConfig": "trl/trainer/grpo_config.py",
    "DistillationConfig": "trl/trainer/distillation_config.py",
    "_BaseConfig": "trl/trainer/base_config.py",
    "TrainingArguments": "transformers/training_args.py",
    "EngineArgs": "vllm/engine/arg_utils.py"}
"""Where each class and those it inherits from are defined."""
OF_LLM = {"chat_template"}
"""What vllm.LLM takes besides."""


def check_trainer_keys(kind: str, section: str, keys: Collection[str], by: str = "TRL") -> None:
    """Raise UserError if the config class `kind` of package `by` does not know one of `keys`."""
    known = keys_of(kind)
    for key in sorted(set(keys) - known):
        close = difflib.get_close_matches(key, sorted(known), n=1)
        hint = f"did you mean {close[0]!r}? S" if close else "s"
        release = ""
        with suppress(PackageNotFoundError):        # a build of another name
            release = f" {version(by.lower())}"
        raise UserError(f"{section}.{key} is not a key of {kind}; {hint}ee its documentation in "
                        f"{by}{release}")


def has_vllm() -> bool:
    """Whether vLLM is installed, without importing it; a folder of that name is not."""
    found = find_spec("vllm")
    return found is not None and found.origin is not None


def check_engine_keys(section: str, keys: Collection[str]) -> None:
    """Raise UserError if vLLM is installed and has no engine option of a name in `keys`."""
    if keys and has_vllm():
        check_trainer_keys("EngineArgs", section, set(keys) - OF_LLM, "vLLM")


@cache
def keys_of(kind: str) -> frozenset[str]:
    """The fields of the config class `kind` and of those it inherits from, read from their text."""
    if kind not in CLASSES:
        return frozenset()
    package, _, rest = CLASSES[kind].partition("/")
    found = find_spec(package)
    assert found is not None and found.origin is not None       # required, or has_vllm
    tree = ast.parse((Path(found.origin).parent / rest).read_text(encoding="utf-8"))
    (defined,) = (node for node in tree.body
                  if isinstance(node, ast.ClassDef) and node.name == kind)
    own = {node.target.id for node in defined.body
           if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    return frozenset(own).union(*(keys_of(base.id) for base in defined.bases
                                  if isinstance(base, ast.Name)))
