"""One attempt at one request, through the openai library's aiohttp transport.

The library's own `create` passes each request through typed models: 1 ms of CPU more than the
transport alone, and only OpenAI's own reply format survives. So requests go to the transport.
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
from pipeline.proxies import keep_loopback_direct
from pipeline.teacher.answer import MalformedReplyError, Reply
from pipeline.teacher.balancer import LoadBalancer
from pipeline.teacher.failures import AttemptError, Cause
from pipeline.teacher.rate_limit import retry_after
from pipeline.teacher.request import Job
from pipeline.teacher.sse import Assembler, read_body

RETRY_STATUSES = {408, 409, 425, 429}
"""Beside 500 and above."""
CAUSES: dict[int, Cause] = {401: "fatal", 402: "fatal", 403: "suspect", 404: "suspect",
                            429: "overload", 503: "overload", 529: "overload"}
"""403 and 404: a wrong key, address or model, but also one question refused by a moderator."""
REJECTS_N = re.compile(r"\bn\b|choice|number of completions|multiple completions", re.IGNORECASE)


class Client:
    """The endpoint of `runtime`, asked for `teacher` under `sampling`."""

    def __init__(self, teacher: Teacher, sampling: Sampling, runtime: TeacherRuntime) -> None:
        if not runtime.base_url:
            raise UserError("runtime.teacher.base_url is not set; give the endpoint's address, "
                            "such as https://api.deepseek.com/v1")
        self.teacher, self.sampling, self.runtime = teacher, sampling, runtime
        self.prompt_opens_thinking = getattr(teacher, "opened", False)
        self.honours_n = True
        self.headers: Mapping[str, str] = {}
        self._asks_stream_usage, self._limit_field = True, "max_tokens"
        self._secrets = _key_spellings(runtime.api_key().get_secret_value())
        limits = httpx2.Limits(max_connections=100_000, max_keepalive_connections=100_000,
                               keepalive_expiry=30.0)
        timeout = httpx2.Timeout(runtime.timeout, connect=30.0)
        keep_loopback_direct(*runtime.addresses())
        try:
            self._http = openai.DefaultAioHttpClient(limits=limits, timeout=timeout)
        except ValueError as error:
            raise UserError(f"a proxy that the environment names cannot be used ({error}); fix "
                            "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY") from None
        self.balancer = LoadBalancer(runtime.addresses())
        key = runtime.api_key().get_secret_value() or "none"
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json",
                      "Accept": "application/json", "Accept-Encoding": "gzip, deflate",
                      "User-Agent": "limbeck"}
        self._extensions = {"timeout": timeout.as_dict()}

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def body(self, job: Job) -> dict[str, Any]:
        """The request's JSON body."""
        body = {"model": self.teacher.model, "messages": job.messages, **self.sampling.body()}
        default = 0 if self.teacher.type == "solver" else None
        seed = self.sampling.seed if self.sampling.seed is not None else default
        if seed is not None:     # vLLM samples choice i with seed + i, as separate requests would
            body["seed"] = seed + job.samples.start
        if "max_tokens" in body:
            body[self._limit_field] = body.pop("max_tokens")
        if len(job.samples) > 1:
            body["n"] = len(job.samples)
        if self.sampling.top_logprobs is not None and self.teacher.type == "vllm":
            body["return_tokens_as_token_ids"] = True
        if self.runtime.stream:
            body["stream"] = True
            if self._asks_stream_usage:
                body["stream_options"] = {"include_usage": True}
        return body

    async def ask(self, job: Job) -> Reply:
        """Make one attempt; raises AttemptError. The key is redacted from the reply."""
        async with self.attempt(job):
            reply = await (self._stream(job) if self.runtime.stream else self._read(job))
            return self._without_key(reply)
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def attempt(self, job: Job) -> AsyncIterator[None]:
        """Bound an attempt in time and turn its errors into AttemptError."""
        try:
            async with asyncio.timeout(self.runtime.timeout):
                yield
        except (TimeoutError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            raise _connection_error(error, self.runtime, self.balancer.all_failed()) from None
        except MalformedReplyError as error:
            cause = CAUSES.get(error.status or 0, "request")
            raise AttemptError(self.redact(str(error)), "request" if cause == "suspect" else cause,
                               retry=_is_transient(error.status or 500), billed=True) from None

    async def raw(self, body: dict[str, Any]) -> str:
        """Return what the endpoint sends for `body`, without the key."""
        async with self._sent(body) as response:
            text = (await response.aread()).decode("utf-8", "replace")
        return self.redact(text)

    @contextlib.asynccontextmanager
    async def _sent(self, body: dict[str, Any]) -> AsyncIterator[httpx2.Response]:
        """Yield the response, its body unread; raises AttemptError unless the status is 2xx."""
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        with self.balancer.least_busy(body.get("n", 1)) as server:
            request = httpx2.Request("POST", server.url, headers=self._headers,
                                     content=text.encode("utf-8", "replace"),
                                     extensions=self._extensions)
            request.headers.encoding = "utf-8"    # else detected anew at every access
            async with contextlib.aclosing(await self._http.send(request, stream=True)) as response:
                self.headers = response.headers
                if response.status_code >= 500:
                    server.cool_down()
                if response.status_code >= 300:
                    await response.aread()
                    raise self._refusal(body, response)
                yield response

    async def _read(self, job: Job) -> Reply:
        return read_body(await self.raw(self.body(job)),
                         prompt_opens_thinking=self.prompt_opens_thinking)

    async def _stream(self, job: Job) -> Reply:
        """Read a streamed reply; keeps the choices that were complete when it broke off."""
        assembler = Assembler(self.prompt_opens_thinking)
        # A little before attempt's own, which would drop what is complete.
        deadline = asyncio.get_running_loop().time() + 0.99 * self.runtime.timeout
        async with self._sent(self.body(job)) as response:
            if "event-stream" not in response.headers.get("content-type", ""):
                text = (await response.aread()).decode("utf-8", "replace")
                return read_body(self.redact(text),
                                 prompt_opens_thinking=self.prompt_opens_thinking)
            unfinished = b""
            try:
                async with asyncio.timeout_at(deadline):
                    async for chunk in response.aiter_bytes():
                        *lines, unfinished = (unfinished + chunk).split(b"\n")
                        for line in lines:
                            assembler.feed(self.redact(line.decode("utf-8", "replace")))
            except (httpx2.HTTPError, aiohttp.ClientError, TimeoutError):
                if not assembler.any_complete():
                    raise
                assembler.error = "the stream broke off or took too long"
        return assembler.reply()

    def _refusal(self, body: dict[str, Any], response: httpx2.Response) -> AttemptError:
        """The AttemptError of an HTTP error; remembers a field that the endpoint rejects."""
        status = response.status_code
        text = self.redact(" ".join(response.text.split()))[:200]
        cause: Cause = CAUSES.get(status, "request")
        cause = "fatal" if "insufficient_quota" in text else cause
        retry = (_is_transient(status) and "insufficient_quota" not in text
                 and response.headers.get("x-should-retry") != "false")
        if cause == "overload" and not retry:
            cause = "request"
        wait = retry_after(response.headers)
        if (wait or 0) > self.runtime.max_wait:
            text += f" (asks to wait {wait:,.0f} s, beyond {self.runtime.where}.max_wait)"
        return AttemptError(f"HTTP {status}: {text}", cause, wait=wait,
                            retry=retry or self.adapts(body, text))

    def adapts(self, body: dict[str, Any], text: str) -> bool:
        """Whether `text` rejects a field, which is left out or renamed from now on."""
        if "stream_options" in body and "stream_options" in text:
            self._asks_stream_usage = False
        elif "max_tokens" in body and "max_completion_tokens" in text:
            self._limit_field = "max_completion_tokens"
        elif body.get("n", 1) > 1 and REJECTS_N.search(text):
            self.honours_n = False
        else:
            return False
        return True

    def _without_key(self, reply: Reply) -> Reply:
        """`reply` with the key redacted, in case the endpoint sends it back."""
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


def _is_transient(status: int) -> bool:
    return status in RETRY_STATUSES or status >= 500


def _key_spellings(key: str) -> list[str]:
    """The key as an endpoint may send it back: plain, URL-quoted, in base64 at any offset."""
    if not key:
        return []
    quoted = quote(key, safe="")
    # Of base64 only the characters that do not depend on neighbouring bytes.
    padded = (base64.b64encode(bytes(offset) + key.encode()).decode() for offset in range(3))
    encoded = [text[4 * bool(offset):len(text) - 4] for offset, text in enumerate(padded)]
    forms = [key, key.replace("/", "\\/"), quoted, quoted.lower(), *encoded]
    return [form for form in dict.fromkeys(forms) if form == key or len(form) >= 8]


def _connection_error(error: BaseException, runtime: TeacherRuntime,
                      all_failed: bool) -> AttemptError:
    """The AttemptError of a connection that failed, broke off or took too long."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    kinds = (aiohttp.ClientConnectorError, httpx2.ConnectError)
    connector = next((e for e in chain if isinstance(e, kinds)), None)
    if connector is not None:
        os_error = getattr(connector, "os_error", None)
        why = getattr(os_error, "strerror", None) or "no connection"
        return AttemptError(str(why), "unreachable" if all_failed else "request", retry=True)
    if any(isinstance(e, TimeoutError) for e in chain):
        return AttemptError(f"no answer within {runtime.timeout:g} s", "overload", retry=True,
                            billed=True)
    return AttemptError("the connection broke off", retry=True, billed=True)
