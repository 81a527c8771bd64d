"""Whether the models that a config names are there and fit, before anything is spent on them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.config.student import StudentConfig
from pipeline.config.teacher import Sampling
from pipeline.errors import UserError
from pipeline.prompts import ROOT, chat_template_path

SAMPLED_BY = ("max_tokens", "seed", "temperature", "top_p")
"""Sampling parameters that a teacher in this process takes."""


def check_sampling(sampling: Sampling) -> None:
    """Raise UserError if `sampling` sets what a teacher in this process does not take."""
    if unknown := sorted(sampling.identity().keys() - set(SAMPLED_BY)):
        raise UserError(f"generate.sampling.{unknown[0]} is for endpoints; a teacher of type "
                        f"transformers takes {', '.join(SAMPLED_BY)}")


def check_folder(what: str, model: str) -> None:
    """Raise UserError if `model` is meant as a folder that holds no weights.

    A hub id is left to the hub.
    """
    if not is_folder(model):
        return
    if not any(path.suffix in (".safetensors", ".bin") for path in Path(model).glob("*")):
        raise UserError(f"{what}, {model}, is no folder with a checkpoint's weights (.safetensors "
                        "or .bin); name one that holds model and tokenizer, or a hub id")


def is_folder(model: str) -> bool:
    """Whether `model` is meant as a folder: it is one, or it cannot be a hub id."""
    return (Path(model).is_dir() or model.startswith(("/", ".", "~"))
            or model.count("/") > 1 or model.endswith("/"))


def known_template(config: StudentConfig) -> str | None:
    """The text of an own chat template where no tokenizer is needed to know it; else None."""
    path = chat_template_path(config.chat_template, config.model)
    if path is not None:
        own = path.is_file() and not path.is_relative_to(ROOT)      # the shipped ones are tested
        return path.read_text(encoding="utf-8") if own else None
    folder = Path(config.model)
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    if (file := folder / "tokenizer_config.json").is_file():
        template = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
        return template if isinstance(template, str) else None      # several have names
    return None


def without_tokenizer(template: str) -> Any:
    """What of a tokenizer the rendering of a conversation by `template` takes."""
    special: dict[str, Any] = {name: f"<|{name}|>" for name in (
        "bos_token", "eos_token", "pad_token", "unk_token")}

    def apply_chat_template(messages: Any, tokenize: bool, **options: Any) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template([messages], chat_template=template,
                                              **{**special, **options})
        return rendered[0][0]

    return SimpleNamespace(apply_chat_template=apply_chat_template, get_added_vocab=dict,
                           **special)


def check_same_vocabulary(teacher: str, student: StudentConfig) -> None:
    """Raise UserError if `teacher` splits text in another way than the student."""
    from pipeline.student.tokenizer import bare_tokenizer, check_vocabulary

    check_vocabulary(bare_tokenizer(teacher), bare_tokenizer(student.model), teacher)
