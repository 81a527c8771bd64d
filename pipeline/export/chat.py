"""Talks to a model in the terminal: thinking dimmed, answers as they come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.export.export_files import check_extra
from pipeline.export.thinking_stream import Part, ThinkingStream

HELP = "/fold hides or shows thinking, /think shows the last, /new forgets the talk, Ctrl-D ends"
LOADING = 1 << 13
"""Tokens of context that a GGUF is given."""


class Served(NamedTuple):
    """A model at an address, and whether its prompt opens the thinking that its answers then lack.
    """

    url: str
    opened: bool = False


@contextmanager
def served(model: str, tokenizer: str, *, host: str = "127.0.0.1", port: int = 0,
           vllm: Mapping[str, Any] = MappingProxyType({})) -> Iterator[Served]:
    """Serve a checkpoint folder, hub id or GGUF, or pass an address on; `vllm` holds its options.
    """
    if model.startswith(("http://", "https://")):
        yield Served(model.rstrip("/"))
    elif model.endswith(".gguf"):
        from pipeline.export.llama_cpp import llama_server

        check_extra(["q8_0"])
        if not Path(model).is_file():
            raise UserError(f"there is no file {model}; `limbeck path export` prints the folder "
                            "of exported ones")
        with llama_server(Path(model), context=LOADING, slots=2, host=host, port=port) as address:
            yield Served(f"{address}/v1", _opens_in_prompt(address))
    else:
        with _checkpoint(model, tokenizer, host, port, vllm) as found:
            yield found


def _opens_in_prompt(address: str) -> bool:
    """Whether a llama.cpp server's template opens the thinking."""
    from pipeline.completion import OPEN
    from pipeline.export.llama_cpp import LlamaCpp

    chat = {"messages": [{"role": "user", "content": "x"}]}
    prompt = LlamaCpp(address).post("/apply-template", chat)["prompt"]
    return prompt.rstrip().endswith(OPEN)


@contextmanager
def _checkpoint(model: str, tokenizer: str, host: str, port: int,
                vllm: Mapping[str, Any]) -> Iterator[Served]:
    """Serve a checkpoint by vLLM if there is a GPU for it, else by transformers."""
    from pipeline.serving.processes import gpu_count
    from pipeline.serving.vllm_server import has_vllm, vllm_server

    if gpu_count() and has_vllm():
        from pipeline.student.template import opens_thinking
        from pipeline.student.tokenizer import load_tokenizer

        opened = opens_thinking(load_tokenizer(tokenizer))
        options = {**vllm, "tokenizer": tokenizer, "host": host, **({"port": port} if port else {})}
        with vllm_server(model, options, log=Path("vllm.log")) as url:
            yield Served(url, opened)
        return
    from pipeline.export.checkpoint_server import checkpoint_server

    with checkpoint_server(model, tokenizer, host=host, port=port) as address:
        yield Served(f"{address}/v1")      # it says what is thinking itself


class Talk:
    """One conversation with the model at an address."""

    def __init__(self, url: str, key: str, name: str | None, settings: dict[str, Any],
                 opened: bool = False):
        from openai import OpenAI, OpenAIError

        self.client = OpenAI(base_url=url, api_key=key or "none", max_retries=0)
        try:
            self.model = name or next(iter(self.client.models.list())).id
        except (OpenAIError, StopIteration) as error:
            raise UserError(f"{url} does not answer as an OpenAI endpoint ({error}); check the "
                            "address, which ends in /v1, or name the model with --name") from None
        self.settings, self.opened, self.folded = settings, opened, False
        self.messages: list[dict[str, str]] = []
        self.thinking = ""

    def ask(self, question: str, show: Callable[[Part], None]) -> str:
        """Show the answer to `question` as it comes; returns a line on its length and speed.

        Ctrl-C ends this answer alone; what came of it stays in the talk.
        """
        self.messages.append({"role": "user", "content": question})
        answer, self.thinking, count, began = "", "", 0, time.monotonic()
        usage: int | None = None
        note = ""
        stream = self._stream()
        try:
            for chunk, told in stream:
                usage = told or usage
                for kind, text in chunk:
                    began = began if count else time.monotonic()
                    count += 1
                    answer += text if kind == "answer" else ""
                    self.thinking += text if kind == "thinking" else ""
                    show((kind, text))
        except KeyboardInterrupt:
            note = "stopped; "
        finally:
            stream.close()
        self.messages.append({"role": "assistant", "content": answer.strip()})
        tokens = usage or count
        seconds = max(1e-3, time.monotonic() - began)
        return f"{note}{tokens:,} tokens, {tokens / seconds:,.0f} tokens/s"

    def _stream(self) -> Generator[tuple[list[Part], int | None]]:
        """Yield the parts that each event settles, and the tokens so far if they are told."""
        from openai import OpenAIError

        split = ThinkingStream(self.opened)
        try:
            events = self.client.chat.completions.create(
                model=self.model, messages=self.messages, stream=True,        # type: ignore
                stream_options={"include_usage": True}, **self.settings)
            with events:
                for event in events:
                    parts: list[Part] = []
                    if event.choices:
                        delta = event.choices[0].delta
                        said = getattr(delta, "reasoning_content", None) or getattr(
                            delta, "reasoning", None)
                        if said:
                            split = ThinkingStream()
                            parts.append(("thinking", said))
                        parts += split.feed(delta.content or "")
                    yield parts, event.usage.completion_tokens if event.usage else None
            yield split.end(), None
        except OpenAIError as error:
            raise UserError(f"the model does not answer: {error}") from None


def converse(talk: Talk, read: Callable[[], str]) -> None:
    """Answer lines that `read` returns until it raises EOFError."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)

    def show(part: Part) -> None:
        kind, text = part
        if kind == "answer":
            console.print(text, end="", markup=False)
        elif not talk.folded:
            console.print(text, end="", markup=False, style="dim")
        sys.stdout.flush()

    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print(f"\n{HELP}", style="dim")
            continue
        if line == "/fold":
            talk.folded = not talk.folded
            console.print("thinking is hidden" if talk.folded else "thinking is shown", style="dim")
        elif line == "/think":
            console.print(talk.thinking or "it did not think", style="dim", markup=False)
        elif line == "/new":
            talk.messages.clear()
        elif line.startswith("/"):
            console.print(HELP, style="dim")
        elif line:
            console.print(f"\n[{talk.ask(line, show)}]", style="dim", markup=False)
