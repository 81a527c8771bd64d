"""One attempt at one request, through the openai library's aiohttp transport.

The library's own `create` builds and reads each request through typed models: 1 ms of CPU more than
the transport needs, and no body but its own dialect survives it. So requests go to the transport.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx2
import openai

from pipeline.config.teacher import Sampling, Teacher, TeacherRuntime
from pipeline.errors import UserError
from pipeline.teacher.answer import MalformedReplyError, Reply
from pipeline.teacher.balancer import LoadBalancer
from pipeline.teacher.failures import AttemptError
from pipeline.teacher.rate_limit import retry_after
from pipeline.teacher.request import Job
from pipeline.teacher.sse import Assembler, read_body

AGAIN = {408, 409, 425, 429}
OVERLOADED = {429, 503, 529}
FATAL = {401, 402}
DOUBTFUL = {403, 404}
"""A wrong key, address or model, but also one question refused by a moderator."""
NO_N = re.compile(r"\bn\b|choice|number of completions|multiple completions", re.IGNORECASE)


class Client:
    """The endpoint of `runtime`, asked for `teacher` under `sampling`."""

    def __init__(self, teacher: Teacher, sampling: Sampling, runtime: TeacherRuntime) -> None:
        if not runtime.base_url:
            raise UserError("runtime.teacher.base_url is not set; give the endpoint's address, "
                            "such as https://api.deepseek.com/v1")
        self.teacher, self.sampling, self.runtime = teacher, sampling, runtime
        self.honours_n = True
        self.headers: Mapping[str, str] = {}
        self._usage_in_stream, self._limit = True, "max_tokens"
        self._secrets = _forms(runtime.api_key().get_secret_value())
        many = httpx2.Limits(max_connections=100_000, max_keepalive_connections=100_000,
                             keepalive_expiry=30.0)
        patience = httpx2.Timeout(runtime.timeout, connect=30.0)
        self._http = openai.DefaultAioHttpClient(limits=many, timeout=patience)
        self.spread = LoadBalancer(runtime.addresses())
        key = runtime.api_key().get_secret_value() or "none"
        self._head = {"Authorization": f"Bearer {key}", "Content-Type": "application/json",
                      "Accept": "application/json", "Accept-Encoding": "gzip, deflate",
                      "User-Agent": "limbeck"}
        self._extensions = {"timeout": patience.as_dict()}

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def body(self, job: Job) -> dict[str, Any]:
        """The request's JSON body."""
        body = {"model": self.teacher.model, "messages": job.messages, **self.sampling.body()}
        seed = 0 if self.teacher.type == "solver" else None
        seed = self.sampling.seed if self.sampling.seed is not None else seed
        if seed is not None:                 # vLLM gives choice i the seed + i, as single ones get
            body["seed"] = seed + job.samples.start
        if "max_tokens" in body:
            body[self._limit] = body.pop("max_tokens")
        if len(job.samples) > 1:
            body["n"] = len(job.samples)
        if self.sampling.top_logprobs is not None and self.teacher.type == "vllm":
            body["return_tokens_as_token_ids"] = True
        if self.runtime.stream:
            body["stream"] = True
            if self._usage_in_stream:
                body["stream_options"] = {"include_usage": True}
        return body

    async def ask(self, job: Job) -> Reply:
        """One attempt; raises AttemptError. Redacts the key from whatever came back."""
        async with self.attempt(job):
            reply = await (self._stream(job) if self.runtime.stream else self._whole(job))
            return self._without_key(reply)
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def attempt(self, job: Job) -> AsyncIterator[None]:
        """Bounds an attempt in time and turns whatever goes wrong in it into AttemptError."""
        try:
            async with asyncio.timeout(self.runtime.timeout):
                yield
        except (TimeoutError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            raise _lost(error, self.runtime, self.spread.none_left()) from None
        except MalformedReplyError as error:
            status, reason = error.status, self.redact(str(error))
            raise AttemptError(reason, again=status is None or status in AGAIN or status >= 500,
                          fatal=status in FATAL, refused=status in OVERLOADED,
                          billed=True) from None

    async def raw(self, body: dict[str, Any]) -> str:
        """The text that the endpoint sends for `body`, without the key."""
        async with self._sent(body) as response:
            text = (await response.aread()).decode("utf-8", "replace")
        return self.redact(text)

    @contextlib.asynccontextmanager
    async def _sent(self, body: dict[str, Any]) -> AsyncIterator[httpx2.Response]:
        """The response with its body still to be read; AttemptError where the status is no 200."""
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        with self.spread.freest(body.get("n", 1)) as server:
            request = httpx2.Request("POST", server.url, headers=self._head,
                                     content=text.encode("utf-8", "replace"),
                                     extensions=self._extensions)
            request.headers.encoding = "utf-8"    # else found out anew at every look at a header
            async with contextlib.aclosing(await self._http.send(request, stream=True)) as response:
                self.headers = response.headers
                if response.status_code >= 500:
                    server.fails()
                if response.status_code >= 300:
                    await response.aread()
                    raise self._refusal(body, response)
                yield response

    async def _whole(self, job: Job) -> Reply:
        return read_body(await self.raw(self.body(job)),
                         opened=getattr(self.teacher, "opened", False))

    async def _stream(self, job: Job) -> Reply:
        """As `_whole`, keeping only text; what was whole when a stream broke off is kept."""
        assembler = Assembler(getattr(self.teacher, "opened", False))
        end = asyncio.get_running_loop().time() + 0.99 * self.runtime.timeout   # before attempt's
        async with self._sent(self.body(job)) as response:
            if "event-stream" not in response.headers.get("content-type", ""):
                text = (await response.aread()).decode("utf-8", "replace")
                return read_body(self.redact(text), opened=assembler.opened)
            rest = b""
            try:
                async with asyncio.timeout_at(end):
                    async for chunk in response.aiter_bytes():
                        *lines, rest = (rest + chunk).split(b"\n")
                        for line in lines:
                            assembler.feed(self.redact(line.decode("utf-8", "replace")))
            except (httpx2.HTTPError, aiohttp.ClientError, TimeoutError):
                if not assembler.any_ended():
                    raise
                assembler.broke = "the stream broke off or took too long"
        return assembler.reply()

    def _refusal(self, body: dict[str, Any], response: httpx2.Response) -> AttemptError:
        """The AttemptError for an HTTP error; notes what the endpoint does not know."""
        status = response.status_code
        text = self.redact(" ".join(response.text.split()))[:200]
        broke = "insufficient_quota" in text
        again = (status in AGAIN or status >= 500) and not broke \
            and response.headers.get("x-should-retry") != "false"
        wait = retry_after(response.headers)
        if (wait or 0) > self.runtime.max_wait:
            text += f" (wants {wait:,.0f} s of waiting, beyond {self.runtime.where}.max_wait)"
        return AttemptError(f"HTTP {status}: {text}", again=again or self.adapts(body, text),
                            fatal=status in FATAL or broke, doubt=status in DOUBTFUL,
                            refused=status in OVERLOADED and again, wait=wait)

    def adapts(self, body: dict[str, Any], text: str) -> bool:
        """Whether `text` objects to a field that can be left out or renamed from now on."""
        if "stream_options" in body and "stream_options" in text:
            self._usage_in_stream = False
        elif "max_tokens" in body and "max_completion_tokens" in text:
            self._limit = "max_completion_tokens"
        elif body.get("n", 1) > 1 and NO_N.search(text):
            self.honours_n = False
        else:
            return False
        return True

    def _without_key(self, reply: Reply) -> Reply:
        """`reply`, should the endpoint say the key back, however it wrote it."""
        if not self._secrets:
            return reply
        choices = {index: replace(choice, answer=self.redact(choice.answer),
                                  thinking=choice.thinking and self.redact(choice.thinking),
                                  finish_reason=self.redact(choice.finish_reason))
                   for index, choice in reply.choices.items()}
        return replace(reply, choices=choices, model=self.redact(reply.model))

    def redact(self, text: str) -> str:
        """`text` without the key, plain, URL-quoted or in base64."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, "[key]")
        return text


def _forms(key: str) -> list[str]:
    """The key as an endpoint may say it back: plain, URL-quoted, in base64 at any offset."""
    if not key:
        return []
    quoted = quote(key, safe="")
    # Of base64, what no neighbour in the same header or text has a part in.
    whole = (base64.b64encode(bytes(offset) + key.encode()).decode() for offset in range(3))
    encoded = [text[4 * bool(offset):len(text) - 4] for offset, text in enumerate(whole)]
    forms = [key, key.replace("/", "\\/"), quoted, quoted.lower(), *encoded]
    return [form for form in dict.fromkeys(forms) if form == key or len(form) >= 8]


def _lost(error: BaseException, runtime: TeacherRuntime, none_left: bool) -> AttemptError:
    """The AttemptError for a connection that was not made, broke, or took too long."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    kinds = (aiohttp.ClientConnectorError, httpx2.ConnectError)
    connector = next((e for e in chain if isinstance(e, kinds)), None)
    if connector is not None:
        os_error = getattr(connector, "os_error", None)
        why = getattr(os_error, "strerror", None) or "no connection"
        return AttemptError(str(why), again=True, unreached=none_left)
    if any(isinstance(e, TimeoutError) for e in chain):
        return AttemptError(f"no answer within {runtime.timeout:g} s", again=True, refused=True,
                       billed=True)
    return AttemptError("the connection broke off", again=True, billed=True)
