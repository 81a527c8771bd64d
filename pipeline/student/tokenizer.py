"""Loads tokenizers and compares the vocabularies of two models."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from pipeline.errors import LackingError, UserError
from pipeline.student.template import encode

PARALLELISM = "TOKENIZERS_PARALLELISM"


def bare_tokenizer(model: str | Path) -> Any:
    """Load a tokenizer that need have neither chat template nor end of turn (a scoring teacher)."""
    from transformers import AutoTokenizer

    try:
        check_hub(str(model))
        tokenizer = AutoTokenizer.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        kind = UserError if Path(model).is_dir() or not is_offline(error) else LackingError
        raise kind(f"no tokenizer for {str(model)!r}: {str(error).splitlines()[0]}; "
                   "name a checkpoint folder or a hub id you can reach") from None
    if not encode(tokenizer, "a"):
        raise UserError(f"the tokenizer of {str(model)!r} encodes no text; copy its "
                        "tokenizer.json there too")
    return tokenizer


def load_tokenizer(model: str | Path, chat_template: Path | None = None) -> Any:
    """Load a student's tokenizer, with `chat_template` instead of its own if given."""
    tokenizer = bare_tokenizer(model)
    if chat_template is not None:
        try:
            tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"chat template {str(chat_template)!r} cannot be read ({error}); name "
                            "one of prompts/chat_templates/ or a Jinja file") from None
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {str(model)!r} has no chat template; "
                        "set student.chat_template to one of prompts/chat_templates/")
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {str(model)!r} has no end-of-turn token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def on_every_core() -> Iterator[None]:
    """Let tokenizers encode many texts on every core in the block."""
    # Elsewhere it is off, since a process that has done so must not fork.
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "true"
    try:
        yield
    finally:
        os.environ.pop(PARALLELISM)
        os.environ.update({} if before is None else {PARALLELISM: before})


def is_offline(error: BaseException) -> bool:
    """Whether `error` is for want of a connection, so that elsewhere the same may work."""
    from huggingface_hub import constants

    chain = [error, error.__cause__, error.__context__]
    return constants.HF_HUB_OFFLINE or any(isinstance(one, ConnectionError) for one in chain)


def check_hub(model: str) -> None:
    """Raise ConnectionError if `model` is no folder, not cached, and the hub is unreachable."""
    # huggingface_hub would retry twelve times in a minute and print two lines each time.
    from huggingface_hub import constants, try_to_load_from_cache

    if (Path(model).exists() or constants.HF_HUB_OFFLINE or getproxies()
            or try_to_load_from_cache(model, "tokenizer_config.json")):
        return
    hub = urlsplit(constants.ENDPOINT)
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((hub.hostname, port), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"{constants.ENDPOINT} cannot be reached ({error})") from None


def check_vocabulary(teacher: Any, student: Any, name: str) -> None:
    """Raise UserError if an id has two meanings or only one tokenizer has a text token.

    The output matrices' widths may differ (they are padded for speed), and special tokens too.
    """
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    special = set(teacher.all_special_ids) | set(student.all_special_ids) | \
        set(teacher.added_tokens_decoder) | set(student.added_tokens_decoder)
    token_of = {index: token for token, index in theirs.items()}
    for token, index in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != index and (index in token_of or index not in special):
            raise _mismatch(name, f"token {index} is {token!r} to the student and "
                                  f"{token_of.get(index)!r} to the teacher")
    for token, index in theirs.items():
        if token not in ours and index not in special:
            raise _mismatch(name, f"the student has no token {token!r}")


def _mismatch(name: str, why: str) -> UserError:
    return UserError(f"the vocabulary of teacher {name!r} is not the student's ({why}); set "
                     "sft.method.type=sequence, or cross_tokenizer, which aligns two tokenizers, "
                     "or use a teacher of the student's family")
