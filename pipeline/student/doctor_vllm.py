"""Checks that a model served by vLLM sees the tokens it is trained on (`limbeck doctor --vllm`).

Compares the prompt's token ids, which vLLM 0.11 and later return with `return_token_ids`.
"""

from __future__ import annotations

import json
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pipeline.completion import CLOSE, OPEN
from pipeline.errors import UserError
from pipeline.serving.vllm_server import vllm_server
from pipeline.student import template
from pipeline.student.doctor import ANSWER, ASK, THINKING, Check
from pipeline.student.tokenizer import load_tokenizer
from pipeline.teacher.answer import MalformedReplyError
from pipeline.teacher.dialects import read_json

OPTIONS = {"enforce_eager": True, "max_model_len": 2048}


def examine_served(model: str, chat_template: Path | None = None) -> list[Check]:
    """Serve `model` by `vllm serve` with the student's template and run the checks."""
    try:
        tokenizer = load_tokenizer(model, chat_template)
        with tempfile.TemporaryDirectory() as folder:
            template_file = Path(folder) / "template.jinja"
            template_file.write_text(tokenizer.chat_template, encoding="utf-8")
            options = {**OPTIONS, "chat_template": str(template_file)}
            with vllm_server(model, options, log=Path(folder) / "vllm.log") as url:
                return [_prompt(tokenizer, model, url), _thinking(tokenizer, model, url)]
    except (UserError, MalformedReplyError) as error:
        return [Check("vllm", False, str(error))]


def _served_prompt_ids(url: str, model: str, messages: list[dict[str, str]],
                       **options: Any) -> list[int]:
    """Return vLLM's prompt token ids; raises MalformedReplyError if the reply is unreadable."""
    body = {"model": model, "messages": messages, "max_tokens": 1, "return_token_ids": True,
            **options}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            reply = json.loads(response.read())
    except urllib.error.URLError as error:
        raise MalformedReplyError(f"vllm serve refused a chat completion: {error}") from None
    read_json(reply)
    ids = reply.get("prompt_token_ids")
    if ids is None:
        raise MalformedReplyError("this vLLM does not return token ids; install 0.11 or later")
    return ids


def _prompt(tokenizer: Any, model: str, url: str) -> Check:
    served, trained = _served_prompt_ids(url, model, ASK), template.prompt_ids(tokenizer, ASK)
    if served == trained:
        return Check("vllm prompt", True, f"the same {len(trained)} tokens as in training")
    return Check("vllm prompt", False, f"vLLM's prompt is {tokenizer.decode(served)!r}, training's "
                 f"is {tokenizer.decode(trained)!r}; save the template with the checkpoint, or set "
                 "serve's chat_template to student.chat_template")


def _thinking(tokenizer: Any, model: str, url: str) -> Check:
    """Check that an assistant's turn with thinking has the tokens of its training row."""
    turn = {"role": "assistant", "content": f"{OPEN}\n{THINKING}\n{CLOSE}\n{ANSWER}"}
    served = _served_prompt_ids(url, model, [*ASK, turn], add_generation_prompt=False)
    trained, _ = template.training_row(tokenizer, ASK, THINKING, ANSWER)
    if served[:len(trained)] == trained:
        return Check("vllm thinking", True, "a turn with thinking has its training row's tokens")
    text = tokenizer.decode(served)
    fault = "changes its tokens" if THINKING in text else "loses the thinking"
    return Check("vllm thinking", False, f"vLLM {fault}: {text[:120]!r}…; set "
                 "student.chat_template to one of prompts/chat_templates/")
