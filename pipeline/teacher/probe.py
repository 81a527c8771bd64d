"""Asks an endpoint a question and says which dialect and which options it supports."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.config.teacher import OpenAITeacher, Sampling, TeacherRuntime
from pipeline.teacher.answer import Reply
from pipeline.teacher.client import Client
from pipeline.teacher.dialects import read_message
from pipeline.teacher.failures import AttemptError, FailureTracker
from pipeline.teacher.rate_limit import stated_rate
from pipeline.teacher.request import Job
from pipeline.teacher.sse import read_body

QUESTION = [{"role": "user", "content": "What is 17 + 25? Think briefly, then give the number."}]


@dataclass
class Probe:
    """What an endpoint answered and supports."""

    url: str
    model: str
    dialect: str = ""
    thinking: str | None = None
    answer: str = ""
    complete: bool = False
    usage: bool = False
    streams: bool = False
    n: bool = False
    logprobs: bool = False
    requests_a_minute: float | None = None
    tokens_a_minute: float | None = None
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        def yes_no(value: bool) -> str:
            return "yes" if value else "no"

        rates = [f"{rate:g} {name} a minute" for rate, name in (
            (self.requests_a_minute, "requests"), (self.tokens_a_minute, "tokens")) if rate]
        return [f"endpoint  {self.url}, model {self.model}",
                f"dialect   {self.dialect}",
                f"thinking  {yes_no(bool(self.thinking))}", f"answer    {self.answer[:60]!r}",
                f"complete  {yes_no(self.complete)}", f"usage     {yes_no(self.usage)}",
                f"stream    {yes_no(self.streams)}", f"n         {yes_no(self.n)}",
                f"logprobs  {yes_no(self.logprobs)}",
                f"limits    {', '.join(rates) or 'none stated'}",
                *(f"warning   {warning}" for warning in self.warnings)]


def probe(runtime: TeacherRuntime, model: str, *, max_tokens: int = 2048) -> Probe:
    """Ask `model` four short questions. Raises UserError if the endpoint does not answer."""
    return asyncio.run(_probe(runtime, OpenAITeacher(model=model), Sampling(max_tokens=max_tokens)))


async def _probe(runtime: TeacherRuntime, teacher: OpenAITeacher, sampling: Sampling) -> Probe:
    found = Probe(runtime.shown_url(), teacher.model)
    plain = runtime.model_copy(update={"stream": False})
    job = Job("", QUESTION, range(1))
    async with Client(teacher, sampling, plain) as client:
        failures = FailureTracker(teacher, runtime)
        try:
            async with client.attempt(job):
                text = await client.raw(client.body(job))
                reply = read_body(text)
        except AttemptError as error:
            failures.record_attempt(job.key, error)
            raise failures.error(str(error)) from None
        _describe(found, text, reply)
        for name in ("requests", "tokens"):
            rate = stated_rate(client.headers, name)
            setattr(found, f"{name}_a_minute", rate and rate * 60)
    two = await _try(teacher, sampling, plain, replace(job, samples=range(2)))
    found.n = two is not None and len(two.choices) == 2
    with_two = sampling.model_copy(update={"top_logprobs": 2})
    with_logprobs = await _try(teacher, with_two, plain, job)
    found.logprobs = with_logprobs is not None and any(
        choice.logprobs for choice in with_logprobs.choices.values())
    streamed = runtime.model_copy(update={"stream": True})
    found.streams = await _try(teacher, sampling, streamed, job) is not None
    return found


async def _try(teacher: OpenAITeacher, sampling: Sampling, runtime: TeacherRuntime,
               job: Job) -> Reply | None:
    """The reply, or None if the endpoint refuses."""
    async with Client(teacher, sampling, runtime) as client:
        try:
            return await client.ask(job)
        except AttemptError:
            return None


def _describe(found: Probe, text: str, reply: Reply) -> None:
    choice = next(iter(reply.choices.values()))
    found.thinking, found.answer, found.complete = choice.thinking, choice.answer, choice.complete
    found.usage = reply.usage is not None
    found.dialect = dialect(text)
    if found.thinking is None and reply.usage is not None and reply.usage.reasoning:
        found.warnings.append("reasoning tokens are billed, but their text is not sent")
    elif found.thinking is None:
        found.warnings.append("no thinking arrived: a server that splits it off may need a "
                              "reasoning parser; one whose template opens <think> needs "
                              "teacher.opened=true")
    if not found.usage:
        found.warnings.append("no usage is sent: tokens and costs are estimated")
    if choice.finish_reason == "length":
        found.warnings.append("the answer was truncated: raise max_tokens")


def dialect(text: str) -> str:
    """Where the thinking stood in a body that is known to hold an answer."""
    try:
        body: Any = json.loads(text)
    except ValueError:
        return "server-sent events where a whole body was asked for"
    return read_message(body["choices"][0]["message"]).dialect
