"""Does a model served by vLLM see the tokens that training gives it? `limbeck doctor MODEL --vllm`.

A request's own prompt comes back with `return_token_ids` (vLLM 0.11 and later), so that what its
template and tokenizer make of a chat is compared, not what an untrained model happens to say.
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
from pipeline.student import template as chat
from pipeline.student.doctor import ANSWER, ASK, THINKING, Check
from pipeline.student.tokenizer import load_tokenizer
from pipeline.teacher.answer import MalformedReplyError
from pipeline.teacher.dialects import read_json

OPTIONS = {"enforce_eager": True, "max_model_len": 2048}


def examine_served(model: str, chat_template: Path | None = None) -> list[Check]:
    """Serve `model` by `vllm serve` with the student's template; checks, as doctor.examine's."""
    try:
        tokenizer = load_tokenizer(model, chat_template)
        with tempfile.TemporaryDirectory() as folder:
            template = Path(folder) / "template.jinja"
            template.write_text(tokenizer.chat_template, encoding="utf-8")
            options = {**OPTIONS, "chat_template": str(template)}
            with vllm_server(model, options, log=Path(folder) / "vllm.log") as url:
                return [_prompt(tokenizer, model, url), _thinking(tokenizer, model, url)]
    except (UserError, MalformedReplyError) as error:
        return [Check("vllm", False, str(error))]


def _ask(url: str, model: str, messages: list[dict[str, str]], **more: Any) -> list[int]:
    """The prompt's token ids as vLLM says them, of a chat completion that must be readable."""
    body = {"model": model, "messages": messages, "max_tokens": 1, "return_token_ids": True, **more}
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
    theirs, ours = _ask(url, model, ASK), chat.prompt_ids(tokenizer, ASK)
    if theirs == ours:
        return Check("vllm prompt", True, f"the same {len(ours)} tokens as in training")
    return Check("vllm prompt", False, f"vLLM asks with {tokenizer.decode(theirs)!r}, training "
                 f"with {tokenizer.decode(ours)!r}; save the template with the checkpoint, or set "
                 "serve's chat_template to student.chat_template")


def _thinking(tokenizer: Any, model: str, url: str) -> Check:
    """Whether a turn of the assistant keeps its thinking, token for token."""
    spoken = {"role": "assistant", "content": f"{OPEN}\n{THINKING}\n{CLOSE}\n{ANSWER}"}
    theirs = _ask(url, model, [*ASK, spoken], add_generation_prompt=False)
    ours, _ = chat.training_row(tokenizer, ASK, THINKING, ANSWER)
    if theirs[:len(ours)] == ours:
        return Check("vllm thinking", True, "a turn that thinks has the tokens of its training row")
    text = tokenizer.decode(theirs)
    lost = "changes its tokens" if THINKING in text else "loses the thinking"
    return Check("vllm thinking", False, f"vLLM {lost}: {text[:120]!r}…; set "
                 "student.chat_template to one of prompts/chat_templates/")
