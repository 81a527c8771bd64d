"""The solver teacher: a program that solves countdown by search and narrates it, and its server.

It tries the combinations in order from a random start. After a random number of tries it guesses,
and now and then a sum is narrated wrong, so a known share of its traces is wrong and rejection
sampling has work to do. A student that learns to go on searching can surpass it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.config.load import Config
from pipeline.errors import UserError
from pipeline.problems.countdown import Try, tries

if TYPE_CHECKING:
    from aiohttp import web


class SolverOptions(Config):
    """How the solver teacher searches and errs."""

    patience: dict[int, float] = Field(default={4: 0.5, 10: 0.5}, min_length=1)
    """Tries before it gives up, {tries: weight}; drawn for each trace."""
    slip: float = Field(default=0.01, ge=0, le=1)
    """Chance that a try's last sum is narrated wrong."""


def narrate(messages: Sequence[dict], seed: int,
            options: SolverOptions | None = None) -> tuple[str, str]:
    """(thinking, answer) for the last user message; the same seed gives the same trace."""
    options = options or SolverOptions()
    rng = random.Random(f"{seed}:{messages[-1]['content']}")
    *numbers, target = _read(messages[-1]["content"])
    candidates = tries((numbers[0], numbers[1], numbers[2]))
    start = rng.randrange(len(candidates))
    candidates = candidates[start:] + candidates[:start]
    budget = rng.choices(list(options.patience), list(options.patience.values()))[0]
    steps = []
    for attempt in candidates[:budget]:
        seen = _maybe_slip(attempt, options.slip, rng)
        steps.append(f"{attempt.first}, then {attempt.second.partition('=')[0]}={seen} "
                    f"against {target}: ")
        if seen == target:
            break
        steps.append("too low. Wait, try " if seen < target else "too high. Wait, try ")
    if seen != target:
        attempt = rng.choice(candidates[budget:] or candidates)
        steps[-1] = steps[-1].replace("Wait, try ", "Out of patience, so a guess.")
    thinking = "Try " + "".join(steps) + ("yes." if seen == target else "")
    return thinking, f"\\boxed{{{attempt.expression}}}"


def _maybe_slip(attempt: Try, slip: float, rng: random.Random) -> int:
    if rng.random() >= slip:
        return attempt.value
    return max(0, attempt.value + rng.choice((-10, -2, -1, 1, 2, 10)))


def _read(text: str) -> list[int]:
    """Read three numbers and the target, in the order of the problem text."""
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if len(numbers) != 4:
        raise ValueError("the solver teacher only solves countdown with three numbers and a target")
    return numbers


Narrate = Callable[[Sequence[Mapping], int], tuple[str, str]]
SOLVER = "pipeline.teacher.solver:narrate"
WORD_PIECE = re.compile(r"\w+|[^\w\s]")


@contextmanager
def serve(narrate: str = SOLVER, options: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Run the server while the block runs; yields its base_url.

    `narrate` is MODULE:FUNCTION of `(messages, seed) -> (thinking, answer)`; `options`, if any,
    are passed to it as the module's SolverOptions. Raises UserError if the server does not start.
    """
    command = [sys.executable, "-m", "pipeline.teacher.solver", "--narrate", narrate,
               "--options", json.dumps(dict(options or {}))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise UserError("the embedded teacher did not start; its message is above")
            yield address
        finally:
            process.stdin.close()
            process.terminate()
            process.wait()


def load(narrate: str, options: Mapping[str, Any]) -> Narrate:
    """The function named MODULE:FUNCTION, bound to `options`."""
    module_name, _, name = narrate.partition(":")
    module = import_module(module_name)
    function = getattr(module, name)
    return partial(function, options=module.SolverOptions(**options)) if options else function


def answer(body: Mapping[str, Any], narrate: Narrate) -> dict[str, Any]:
    """The chat completion of a request body. Raises ValueError if it cannot be answered."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list that is not empty")
    seed, limit = int(body.get("seed") or 0), body.get("max_tokens")
    choices = [_choice(index, *narrate(messages, seed + index), limit)
               for index in range(int(body.get("n") or 1))]
    prompt = sum(_tokens(str(message.get("content", ""))) for message in messages)
    completion = sum(choice.pop("tokens") for choice in choices)
    return {"id": f"chatcmpl-{seed}", "object": "chat.completion", "created": 0,
            "model": body.get("model") or "solver", "choices": choices,
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion,
                      "total_tokens": prompt + completion}}


def _tokens(text: str) -> int:
    return len(WORD_PIECE.findall(text))


def _choice(index: int, thinking: str, answer: str, limit: int | None) -> dict[str, Any]:
    """One choice, truncated at `limit` word pieces with finish_reason "length"."""
    used, wanted = _tokens(thinking), _tokens(answer)
    finish = "stop"
    if limit is not None and used + wanted > limit:
        finish = "length"
        thinking, answer = _truncate(thinking, limit), _truncate(answer, limit - used)
        used, wanted = min(used, limit), max(0, limit - used)
    return {"index": index, "finish_reason": finish, "tokens": used + wanted,
            "message": {"role": "assistant", "content": answer, "reasoning_content": thinking}}


def _truncate(text: str, limit: int) -> str:
    pieces = list(WORD_PIECE.finditer(text))
    return text if len(pieces) <= limit else text[:pieces[limit].start()] if limit > 0 else ""


def events(completion: Mapping[str, Any], *, with_usage: bool) -> Iterator[dict[str, Any]]:
    """The events of a streamed completion: thinking, answer and end of every choice, usage."""
    head = {name: completion[name] for name in ("id", "created", "model")}
    head["object"] = "chat.completion.chunk"
    for choice in completion["choices"]:
        for name in ("reasoning_content", "content"):
            for piece in re.findall(r"\s*\S+\s*", choice["message"][name]):
                yield {**head, "choices": [{"index": choice["index"], "delta": {name: piece},
                                            "finish_reason": None}]}
        yield {**head, "choices": [{"index": choice["index"], "delta": {},
                                    "finish_reason": choice["finish_reason"]}]}
    if with_usage:
        yield {**head, "choices": [], "usage": completion["usage"]}


def application(narrate: Narrate) -> web.Application:
    """The routes: /health, /v1/models and /v1/chat/completions, streamed or not."""
    from aiohttp import web

    async def complete(request: web.Request) -> web.StreamResponse:
        try:
            body = json.loads(await request.read())
            completion = answer(body, narrate)
        except (ValueError, TypeError, AttributeError) as error:
            return web.json_response({"error": {"message": str(error), "type": "bad_request"}},
                                     status=400)
        if not body.get("stream"):
            return web.json_response(completion)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        usage = (body.get("stream_options") or {}).get("include_usage", False)
        lines = [f"data: {json.dumps(event)}\n\n" for event in events(completion, with_usage=usage)]
        await response.write("".join([*lines, "data: [DONE]\n\n"]).encode())
        return response

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "solver", "object": "model"}]})

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(client_max_size=64 << 20)
    app.add_routes([web.post("/v1/chat/completions", complete), web.get("/v1/models", models),
                    web.get("/health", health)])
    return app


async def run(narrate: Narrate, port: int) -> None:
    """Serve on 127.0.0.1 until standard input closes; prints the address once it listens."""
    from aiohttp import web

    runner = web.AppRunner(application(narrate), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=4096)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the embedded teacher on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--narrate", default=SOLVER, help="MODULE:FUNCTION that answers")
    parser.add_argument("--options", type=json.loads, default={}, help="its options, in JSON")
    args = parser.parse_args()
    asyncio.run(run(load(args.narrate, args.options), args.port))


if __name__ == "__main__":
    main()
