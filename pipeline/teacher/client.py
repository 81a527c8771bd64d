"""One attempt at one request, through the openai library's aiohttp transport."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email.utils
import re
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx2
import openai

from pipeline.errors import UserError
from pipeline.teacher.config import Sampling, Teacher, TeacherRuntime
from pipeline.teacher.reply import DamagedError, Reply, read_body
from pipeline.teacher.request import Job
from pipeline.teacher.stream import Assembler

AGAIN = {408, 409, 425, 429}
OVERLOADED = {429, 503, 529}
NO_N = re.compile(r"\bn\b|choice|number of completions|multiple completions", re.IGNORECASE)


class AttemptError(Exception):
    """One attempt that gave no whole answer.

    `again`: worth another attempt; `fatal`: no request can succeed; `refused`: the endpoint has
    too much to do; `unreached`: no connection; `billed`: it may be charged all the same.
    """

    def __init__(self, reason: str, *, again: bool = False, fatal: bool = False,
                 refused: bool = False, unreached: bool = False, billed: bool = False,
                 wait: float | None = None) -> None:
        super().__init__(reason)
        self.again, self.fatal, self.refused = again, fatal, refused
        self.unreached, self.billed, self.wait = unreached, billed, wait


class Client:
    """The endpoint of `runtime`, asked for `teacher` under `sampling`."""

    def __init__(self, teacher: Teacher, sampling: Sampling, runtime: TeacherRuntime) -> None:
        if not runtime.base_url:
            raise UserError("runtime.teacher.base_url is not set; give the endpoint's address, "
                            "such as https://api.deepseek.com/v1")
        self.teacher, self.sampling, self.runtime = teacher, sampling, runtime
        self.honours_n = True
        self.headers: Mapping[str, str] = {}
        self._usage_in_stream = True
        self._secrets = _forms(runtime.api_key().get_secret_value())
        many = httpx2.Limits(max_connections=100_000, max_keepalive_connections=100_000,
                             keepalive_expiry=30.0)
        patience = httpx2.Timeout(runtime.timeout, connect=30.0)
        self._openai = openai.AsyncOpenAI(
            api_key=runtime.api_key().get_secret_value() or "none", base_url=runtime.base_url,
            max_retries=0, timeout=patience,
            http_client=openai.DefaultAioHttpClient(limits=many, timeout=patience))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self._openai.close()

    def body(self, job: Job) -> dict[str, Any]:
        """The request's JSON body."""
        body = {"model": self.teacher.model, "messages": job.messages, **self.sampling.body()}
        seed = 0 if self.teacher.type == "solver" else None
        seed = self.sampling.seed if self.sampling.seed is not None else seed
        if seed is not None:                 # vLLM gives choice i the seed + i, as single ones get
            body["seed"] = seed + job.samples.start
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
            return await (self._stream(job) if self.runtime.stream else self._whole(job))
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def attempt(self, job: Job) -> AsyncIterator[None]:
        """Bounds an attempt in time and turns whatever goes wrong in it into AttemptError."""
        try:
            async with asyncio.timeout(self.runtime.timeout):
                yield
        except openai.APIStatusError as error:
            raise self._refusal(job, error.status_code, error.response) from None
        except (TimeoutError, openai.APIConnectionError, httpx2.HTTPError, aiohttp.ClientError,
                OSError) as error:
            raise _lost(error, self.runtime) from None
        except DamagedError as error:
            status, reason = error.status, self.redact(str(error))
            raise AttemptError(reason, again=status is None or status in AGAIN or status >= 500,
                          fatal=status in (401, 402, 403), refused=status in OVERLOADED,
                          billed=status is None) from None

    async def raw(self, body: dict[str, Any]) -> str:
        """The text that the endpoint sends for `body`, without the key."""
        response = await self._openai.post("/chat/completions", cast_to=httpx2.Response, body=body)
        self.headers = response.headers
        return self.redact(response.content.decode("utf-8", "replace"))

    async def _whole(self, job: Job) -> Reply:
        return read_body(await self.raw(self.body(job)),
                         opened=getattr(self.teacher, "opened", False))

    async def _stream(self, job: Job) -> Reply:
        """As `_whole`, keeping only text; what was whole when a stream broke off is kept."""
        body = self.body(job)
        asked = self._openai.chat.completions.with_streaming_response.create(
            model=body.pop("model"), messages=body.pop("messages"), stream=True, extra_body=body)
        assembler = Assembler(getattr(self.teacher, "opened", False))
        async with asked as response:
            self.headers = response.headers
            if "event-stream" not in response.headers.get("content-type", ""):
                text = (await response.read()).decode("utf-8", "replace")
                return read_body(self.redact(text), opened=assembler.opened)
            rest = b""
            with contextlib.suppress(httpx2.HTTPError, aiohttp.ClientError):
                async for chunk in response.iter_bytes():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        assembler.feed(self.redact(line.decode("utf-8", "replace")))
        return assembler.reply()

    def _refusal(self, job: Job, status: int, response: httpx2.Response) -> AttemptError:
        """The AttemptError for an HTTP error; notes what the endpoint does not know."""
        text = self.redact(" ".join(response.text.split())[:200])
        reason = f"HTTP {status}: {text}"
        again = status in AGAIN or status >= 500
        if status in (400, 422) and self._usage_in_stream and "stream_options" in text:
            self._usage_in_stream, again = False, True
        elif status in (400, 422) and len(job.samples) > 1 and NO_N.search(text):
            self.honours_n, again = False, True
        if "insufficient_quota" in text:
            again = False
        again = again and response.headers.get("x-should-retry") != "false"
        return AttemptError(reason, again=again, refused=status in OVERLOADED and again,
                       fatal=status in (401, 402, 403, 404) or "insufficient_quota" in text,
                       wait=retry_after(response.headers))

    def redact(self, text: str) -> str:
        """`text` without the key, plain, URL-quoted or in base64."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, "[key]")
        return text


def _forms(key: str) -> list[str]:
    if not key:
        return []
    encoded = base64.b64encode(key.encode()).decode().rstrip("=")
    return list(dict.fromkeys([key, quote(key, safe=""), encoded]))


def _lost(error: BaseException, runtime: TeacherRuntime) -> AttemptError:
    """The AttemptError for a connection that was not made, broke, or took too long."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    kinds = (aiohttp.ClientConnectorError, httpx2.ConnectError)
    connector = next((e for e in chain if isinstance(e, kinds)), None)
    if connector is not None:
        os_error = getattr(connector, "os_error", None)
        why = getattr(os_error, "strerror", None) or "no connection"
        return AttemptError(str(why), again=True, unreached=True)
    if any(isinstance(e, TimeoutError) for e in chain):
        return AttemptError(f"no answer within {runtime.timeout:g} s", again=True, refused=True,
                       billed=True)
    return AttemptError("the connection broke off", again=True, billed=True)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that retry-after-ms or Retry-After (a number or an HTTP date) ask for, or None."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text) / unit
    try:
        when = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())
