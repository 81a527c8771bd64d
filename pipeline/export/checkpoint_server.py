"""An OpenAI-compatible endpoint for a checkpoint where there is no vLLM: one request at a time.

`python -m pipeline.export.checkpoint_server MODEL` serves until its standard input closes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from aiohttp import web

from pipeline.completion import Messages
from pipeline.errors import UserError
from pipeline.export.thinking_stream import ThinkingStream
from pipeline.progress import quiet_libraries
from pipeline.student.decode import keep_freed_memory, pick
from pipeline.student.template import end_of_turn_ids, opens_thinking, prompt_ids
from pipeline.student.tokenizer import load_tokenizer

NAMES = {"thinking": "reasoning_content", "answer": "content"}
MOST_TOKENS = 4096
"""Longest answer to a request that sets no limit."""


class Student:
    """A loaded checkpoint."""

    def __init__(self, model: str, tokenizer: str):
        from transformers import AutoModelForCausalLM

        quiet_libraries()
        keep_freed_memory()
        self.name = Path(model).name
        self.tokenizer = load_tokenizer(tokenizer)
        self.ends = end_of_turn_ids(self.tokenizer, model)
        self.opened = opens_thinking(self.tokenizer)
        try:
            self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
        except (OSError, ValueError) as error:
            raise UserError(f"model {model!r} cannot be loaded: "
                            f"{str(error).splitlines()[0]}") from None
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.no_grad()
    def tokens(self, prompt: list[int], body: Mapping[str, Any],
               seed: int) -> Iterator[tuple[int, dict[int, float]]]:
        """Yield each token of an answer, and the likeliest with their log-probabilities."""
        from transformers import DynamicCache

        torch.manual_seed(seed)
        limit = int(body.get("max_completion_tokens") or body.get("max_tokens") or MOST_TOKENS)
        shown = int(body.get("top_logprobs") or 0) if body.get("logprobs") else 0
        heat, top_p = _number(body, "temperature", 0.6), _number(body, "top_p", 1.0)
        cache, ids = DynamicCache(), torch.tensor([prompt], device=self.model.device)
        for _ in range(limit):
            logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True,
                                logits_to_keep=1).logits[:, -1].float()
            token = int(pick(logits, heat, top_p))
            scores = logits[0].log_softmax(-1)
            likeliest = [token, *scores.topk(shown).indices.tolist()]
            yield token, {index: float(scores[index]) for index in likeliest}
            if token in self.ends:
                return
            ids = torch.tensor([[token]], device=self.model.device)


def _number(body: Mapping[str, Any], name: str, default: float) -> float:
    return default if body.get(name) is None else float(body[name])


class Endpoint:
    """The routes of a Student: /health, /v1/models, /v1/chat/completions."""

    def __init__(self, student: Student):
        self.student, self.turn = student, asyncio.Lock()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.add_routes([web.post("/v1/chat/completions", self.complete),
                        web.get("/v1/models", self.models),
                        web.get("/health", self.health)])
        return app

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [
            {"id": self.student.name, "object": "model", "owned_by": "limbeck"}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat, streamed or not."""
        try:
            body = json.loads(await request.read())
            prompt = prompt_ids(self.student.tokenizer, _messages(body))
            seeds = [int(body.get("seed") or time.time_ns() % 2**31) + index
                     for index in range(int(body.get("n") or 1))]
        except (ValueError, TypeError, KeyError, AttributeError, UserError) as error:
            return web.json_response({"error": {"message": str(error), "type": "bad_request"}},
                                     status=400)
        async with self.turn:
            if body.get("stream"):
                return await self._stream(request, body, prompt, seeds)
            choices, used = [], 0
            for index, seed in enumerate(seeds):
                choice, tokens = await self._choice(prompt, body, seed)
                choices.append({"index": index, **choice})
                used += tokens
        return web.json_response({**self._head("chat.completion"), "choices": choices,
                                  "usage": _usage(prompt, used)})

    async def _choice(self, prompt: list[int], body: Mapping[str, Any],
                      seed: int) -> tuple[dict[str, Any], int]:
        """Return one whole answer and its tokens."""
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        logprobs: list[dict[str, Any]] = []
        finish = "length"
        async for step in self._steps(prompt, body, seed):
            for name, text in step["parts"]:
                message[name] = message.get(name, "") + text
            finish = step["finish"]
            logprobs += step["logprobs"]
        told = {"logprobs": {"content": logprobs}} if body.get("logprobs") else {}
        return {"message": message, "finish_reason": finish, **told}, len(logprobs)

    async def _stream(self, request: web.Request, body: Mapping[str, Any], prompt: list[int],
                      seeds: list[int]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        head, used = self._head("chat.completion.chunk"), 0

        async def send(**event: Any) -> None:
            await response.write(f"data: {json.dumps({**head, **event})}\n\n".encode())

        with suppress(ConnectionResetError):         # the client went away: no error of ours
            for index, seed in enumerate(seeds):
                finish = "length"
                async for step in self._steps(prompt, body, seed):
                    used += len(step["logprobs"])
                    finish = step["finish"]
                    for name, text in step["parts"]:
                        await send(choices=[{"index": index, "delta": {name: text},
                                             "finish_reason": None}])
                await send(choices=[{"index": index, "delta": {}, "finish_reason": finish}])
            if (body.get("stream_options") or {}).get("include_usage"):
                await send(choices=[], usage=_usage(prompt, used))
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _steps(self, prompt: list[int], body: Mapping[str, Any],
                     seed: int) -> AsyncIterator[dict[str, Any]]:
        """Yield parts (field of the message, text), finish reason and log-probabilities so far.

        The model runs in a thread, a token at a time, so a client that goes away ends it.
        """
        student = self.student
        split, ids, sent = ThinkingStream(student.opened), [], ""
        tokens, finish = student.tokens(prompt, body, seed), "length"
        while (step := await asyncio.to_thread(next, tokens, None)) is not None:
            ids.append(step[0])
            finish = "stop" if step[0] in student.ends else "length"
            text = student.tokenizer.decode(ids, skip_special_tokens=True)
            whole = not text.endswith("\ufffd")     # else a character lacks bytes
            parts = split.feed(text[len(sent):]) if whole else []
            sent = text if whole else sent
            yield {"parts": [(NAMES[kind], piece) for kind, piece in parts], "finish": finish,
                   "logprobs": [self._logprob(*step)]}
        yield {"parts": [(NAMES[kind], piece) for kind, piece in split.end()], "finish": finish,
               "logprobs": []}

    def _logprob(self, token: int, scores: Mapping[int, float]) -> dict[str, Any]:
        def entry(index: int) -> dict[str, Any]:
            text = self.student.tokenizer.decode([index])
            return {"token": text, "bytes": list(text.encode()), "logprob": scores[index]}

        return {**entry(token), "top_logprobs": [entry(index) for index in scores]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{time.time_ns()}", "object": kind, "created": int(time.time()),
                "model": self.student.name}


def _messages(body: Mapping[str, Any]) -> Messages:
    """Return the chat of a request. Raises ValueError if it has none."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list that is not empty")
    return [{"role": str(one["role"]), "content": _text(one.get("content"))} for one in messages]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def _usage(prompt: list[int], used: int) -> dict[str, int]:
    return {"prompt_tokens": len(prompt), "completion_tokens": used,
            "total_tokens": len(prompt) + used}


@contextmanager
def checkpoint_server(model: str, tokenizer: str, *, host: str = "127.0.0.1",
                      port: int = 0) -> Iterator[str]:
    """Serve `model` while the block runs; yields the address, whose OpenAI API is at /v1."""
    command = [sys.executable, "-m", "pipeline.export.checkpoint_server", model,
               "--tokenizer", tokenizer, "--host", host, "--port", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            if not address.startswith("http"):
                raise UserError(address or f"{model} could not be served; the reason is above")
            yield address
        finally:
            process.stdin.close()
            process.terminate()


async def _run(student: Student, host: str, port: int) -> None:
    runner = web.AppRunner(Endpoint(student).application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    print(f"http://{host}:{runner.addresses[0][1]}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a checkpoint by transformers.")
    parser.add_argument("model")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    try:
        asyncio.run(_run(Student(args.model, args.tokenizer), args.host, args.port))
    except (UserError, OSError) as error:
        print(error, flush=True)


if __name__ == "__main__":
    main()
