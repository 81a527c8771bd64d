"""Runs a GGUF in llama.cpp: a server in a process of its own, so that a crash is a sentence.

`python -m pipeline.export.llama_cpp FILE` serves until its standard input closes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError

LOUD = ("error", "failed", "unknown", "assert", "unsupported", "missing")


@contextmanager
def llama_server(file: Path, *, context: int, slots: int = 1, host: str = "127.0.0.1",
                 port: int = 0, exact: bool = False) -> Iterator[str]:
    """Serve `file` while the block runs; yields the address, whose OpenAI API is at /v1.

    `context` tokens for each of `slots` requests at once; `exact`: attention in float32, which
    llama.cpp does in float16. Raises UserError, with llama.cpp's reason, if it cannot load it.
    """
    command = [sys.executable, "-m", "pipeline.export.llama_cpp", str(file),
               "--context", str(context * slots), "--slots", str(slots), "--host", host,
               "--port", str(port), *(["--exact"] if exact else [])]
    log = file.with_suffix(".log")
    with log.open("w+b") as sink, subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, text=True,
            start_new_session=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            line = process.stdout.readline().strip()
            while line and not line.startswith("http"):
                line = process.stdout.readline().strip()
            if not line:
                raise UserError(f"llama.cpp cannot load {file.name}: {_reason(log)}")
            yield line
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            log.unlink(missing_ok=True)


def _reason(log: Path) -> str:
    """The line of llama.cpp's log that says what was wrong, else its last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    loud = [line for line in lines if any(word in line.casefold() for word in LOUD)]
    return (loud or lines or ["it ended without a word"])[0]


class Step(NamedTuple):
    """A token, the likeliest one (which may end the turn) and the likeliest ones' logprobs."""

    token: int
    choice: int
    top: dict[int, float]
    """Empty within a character of several tokens."""


class LlamaCpp:
    """Asks a server for what the proof needs. Raises UserError if it died."""

    def __init__(self, address: str):
        self.address = address

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise UserError(f"llama.cpp refuses {path}: {said}") from None
        except (urllib.error.URLError, OSError) as error:
            raise UserError(f"llama.cpp ended while it ran the file ({error})") from None

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens that a chat is answered from: the file's template and tokenizer."""
        text = self.post("/apply-template", {"messages": list(messages)})["prompt"]
        return self.post("/tokenize", {"content": text, "add_special": True,
                                       "parse_special": True})["tokens"]

    def complete(self, prompt: Sequence[int], max_tokens: int, *, temperature: float = 0.0,
                 top_p: float = 1.0, seed: int = 0) -> dict[str, Any]:
        """Return tokens, stop_type ("eos", "limit", ...) and timings of one completion."""
        return self.post("/completion", {
            "prompt": list(prompt), "n_predict": max_tokens, "temperature": temperature,
            "top_p": top_p, "seed": seed, "return_tokens": True,
            "samplers": ["temperature", "top_p"]})

    def follow(self, prompt: Sequence[int], answer: Sequence[int], most: int) -> list[Step]:
        """Return the file's choice at each token of `answer`.

        Where its own choice differs the answer is set, so all of them are on one path.
        """
        found: list[Step] = []
        ahead = len(answer)
        while len(found) < len(answer):
            ahead = min(ahead, len(answer) - len(found))
            got = self.post("/completion", {
                "prompt": [*prompt, *answer[:len(found)]], "n_predict": ahead, "temperature": 0.0,
                "n_probs": most, "cache_prompt": True, "id_slot": 0, "return_tokens": True,
                "ignore_eos": ahead > 1})   # else an end of turn would end the path
            if not got["tokens"]:
                raise UserError("llama.cpp answers nothing with this file; its vocabulary is "
                                "damaged, export it again")
            ahead *= 2
            for step in _steps(got):
                differs = step.token != answer[len(found)]
                if differs and not step.top and len(got["tokens"]) > 1:
                    ahead = 1               # an end of turn may be likelier: ask for it alone
                    break
                found.append(step)
                if differs:
                    ahead = 4               # where one token differs, the next often does
                    break
        return found


def _steps(completion: Mapping[str, Any]) -> Iterator[Step]:
    """Yield each token with its probabilities, which come for whole characters alone.

    Where it is not certain whose they are, as in a run of equal tokens, they are left out.
    """
    tokens, records = completion["tokens"], completion.get("completion_probabilities") or []
    ids = [record["id"] for record in records]
    latest = [len(tokens) - 1 - place for place in reversed(_places(tokens[::-1], ids[::-1]))]
    tops = {place: {one["id"]: one["logprob"] for one in record["top_logprobs"]}
            for place, last, record in zip(_places(tokens, ids), latest, records, strict=True)
            if place == last}
    for place, token in enumerate(tokens):
        top = tops.get(place, {})
        yield Step(token, max(top, key=top.__getitem__) if top else token, top)


def _places(tokens: list[int], ids: list[int]) -> list[int]:
    """Return the first place at which each of `ids`, a subsequence of `tokens`, can stand."""
    places, start = [], 0
    for index in ids:
        places.append(tokens.index(index, start))
        start = places[-1] + 1
    return places


def main() -> None:
    import xllamacpp

    parser = argparse.ArgumentParser(description="Serve a GGUF file by llama.cpp.")
    parser.add_argument("file")
    parser.add_argument("--host", default="127.0.0.1")
    for name in ("--context", "--slots", "--port"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--exact", action="store_true")
    args = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = args.file, [args.host], args.port
    params.n_ctx, params.n_parallel, params.warmup = args.context, args.slots, False
    # Threads that wait by spinning are slow where others share the cores.
    params.cpuparams.n_threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    params.cpuparams_batch.n_threads = params.cpuparams.n_threads
    if args.exact:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = \
            xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)     # its threads would otherwise wait for open connections


if __name__ == "__main__":
    main()
