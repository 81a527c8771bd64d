"""The chat template as llama.cpp's Jinja and as Ollama's Go templates read it; the Modelfile."""

from __future__ import annotations

import json
import re
from typing import Any

from pipeline.errors import UserError
from pipeline.student.template import render

_GENERATION = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
MARK = "\ufdd0"
"""A Unicode noncharacter, which no template holds."""


def jinja_template(tokenizer: Any) -> str:
    """Return the chat template without TRL's generation blocks, which llama.cpp does not know."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()))
    # A comment keeps the dashes, which take away the blanks around it.
    template = _GENERATION.sub(r"{#\1 \2#}", template)
    # llama.cpp gives every model a first token, and turns thinking off in templates that do not
    # take it apart from the answer: what the student never saw.
    absent = {} if tokenizer.bos_token else {"bos_token": '""'}
    settled = {**absent, "enable_thinking": "true"}
    return "".join(f"{{%- set {name} = {value} -%}}" for name, value in settled.items()
                   if name in template) + template


def go_template(tokenizer: Any) -> str | None:
    """Return Ollama's template of a chat; None if the chat template is no chain of equal turns."""
    try:
        head, default, turns, last = _parts(tokenizer)
    except (UserError, ValueError):     # no system message, or a turn told by its neighbours
        return None
    branches = "".join(
        f'{{{{ {"else " if place else ""}if eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}'
        f"{_go(after)}" for place, (role, (before, after)) in enumerate(turns.items()))
    missing = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{_go(default)}{{{{ end }}}}'
    return (f"{_go(head)}{missing if default else ''}{{{{ range .Messages }}}}{branches}"
            f"{{{{ end }}}}{{{{ end }}}}{_go(last)}")


def _go(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


Turns = dict[str, tuple[str, str]]
"""What stands before and after the content of each role."""


def _parts(tokenizer: Any) -> tuple[str, str, Turns, str]:
    """Return what comes first, what stands for a missing system message, turns, and the prompt.

    Raises ValueError if put together they do not give what the template renders.
    """
    chat = [{"role": role, "content": f"{MARK}{place}{MARK}"}
            for place, role in enumerate(("system", "user", "assistant", "user"))]
    between = re.compile(f"{MARK}[0-3]{MARK}")
    first, after_user = between.split(render(tokenizer, chat[1:2]))
    before_assistant, after_assistant = between.split(render(tokenizer, chat[1:3]))[1:]
    before_user = _less(between.split(render(tokenizer, chat[1:]))[2], after_assistant)
    whole = render(tokenizer, chat)
    before_system, after_system = between.split(whole)[:2]
    bos = tokenizer.bos_token or ""
    head = bos if before_system.startswith(bos) else ""
    turns = {"system": (before_system[len(head):], after_system.removesuffix(before_user)),
             "user": (before_user, after_user),
             "assistant": (_less(before_assistant, after_user), after_assistant)}
    put = head + "".join(turns[one["role"]][0] + one["content"] + turns[one["role"]][1]
                         for one in chat)
    if put != whole or not first.endswith(before_user):
        raise ValueError("the turns do not make up the chat")
    last = _less(render(tokenizer, chat, add_generation_prompt=True), whole)
    return head, _less(first.removesuffix(before_user), head), turns, last


def _less(text: str, start: str) -> str:
    """`text` without `start`. Raises ValueError if it does not start so."""
    if not text.startswith(start):
        raise ValueError(f"{text!r} does not start with {start!r}")
    return text[len(start):]


def modelfile(file: str, tokenizer: Any, stops: list[str], temperature: float, top_p: float,
              num_ctx: int) -> str:
    """Return the text of Ollama's Modelfile for the GGUF `file` beside it."""
    template = go_template(tokenizer)
    lines = [f"FROM ./{file}"]
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines += [f"PARAMETER temperature {temperature:g}", f"PARAMETER top_p {top_p:g}",
              f"PARAMETER num_ctx {num_ctx}"]
    return "\n".join(lines) + "\n"


