"""What a generate run will take, before it is paid for: tokens, dollars and hours."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import mean, stdev

from pipeline.config.teacher import Sampling, Teacher, TeacherRuntime
from pipeline.teacher.answer import Usage
from pipeline.teacher.budget import price_of
from pipeline.teacher.rate_limit import local_concurrency
from pipeline.teacher.request import Job, Request, prompt_bound
from pipeline.teacher.scheduler import generate
from pipeline.teacher.store import TraceStore

PRIOR_TOKENS, PRIOR_TOKENS_A_SECOND, PRIOR_CONCURRENCY = 4000.0, 40.0, 64
"""Without a pilot: what a reasoning model writes for a problem, and how fast one answer comes."""


@dataclass(frozen=True)
class Estimate:
    """Totals for the missing traces; `relative_error` is one standard error as a share of them."""

    missing: int
    stored: int
    prompt_tokens: float
    completion_tokens: float
    usd: float | None
    hours: float
    relative_error: float
    source: str

    def times(self, factor: int) -> Estimate:
        """The same for so many times the traces."""
        return replace(self, missing=factor * self.missing, stored=factor * self.stored,
                       prompt_tokens=factor * self.prompt_tokens, hours=factor * self.hours,
                       completion_tokens=factor * self.completion_tokens,
                       usd=None if self.usd is None else factor * self.usd)

    def lines(self) -> list[str]:
        usd = "price unknown" if self.usd is None else f"${self.usd:,.2f}"
        return [f"missing  {self.missing:,} traces ({self.stored:,} stored)",
                f"tokens   {self.prompt_tokens:,.0f} prompt, {self.completion_tokens:,.0f} "
                f"completion (± {self.relative_error:.0%})", f"cost     {usd}",
                f"time     {self.hours:.2f} hours", f"source   {self.source}"]


def estimate(requests: Iterable[Request], *, teacher: Teacher, sampling: Sampling,
             runtime: TeacherRuntime, store: TraceStore, pilot: int = 20,
             trace_tokens: float | None = None) -> Estimate:
    """Tokens, dollars and hours for the requests that `store` misses.

    Computed from stored traces of the same teacher and sampling. If there are fewer than `pilot`,
    that many are asked first, never in a batch; they count towards the run. With `pilot` 0 nothing
    is sent and priors may serve, or `trace_tokens` for each. Without a known price, dollars are
    those the endpoint charged.
    """
    requests = list(requests)
    traces = store.collect(requests, teacher, sampling)
    if len(traces) < pilot:
        missing = store.missing(requests, teacher, sampling)
        chosen = random.Random(0).sample(missing, min(pilot - len(traces), len(missing)))
        generate(chosen, teacher=teacher, sampling=sampling, store=store,
                 runtime=runtime.model_copy(update={"n": 1}))
        traces = store.collect(requests, teacher, sampling)
    missing = store.missing(requests, teacher, sampling)
    tokens, seconds, source = _prior(sampling, trace_tokens)
    error, together, charged = 1.0, 1.0, 0.0
    prompts = sum(prompt_bound(Job("", r.messages, range(1))) / 4 for r in missing)
    if len(traces):
        lengths = traces["completion_tokens"].to_list()
        timed = [took for took in traces["seconds"].to_list() if took]      # a batch's are not
        tokens = mean(lengths)
        seconds = mean(timed) if timed else tokens / PRIOR_TOKENS_A_SECOND
        error = stdev(lengths) / len(lengths) ** 0.5 / max(tokens, 1) if len(lengths) > 1 else 1.0
        source = f"{len(lengths)} stored traces"
        prompt_tokens = traces["prompt_tokens"].to_list()   # 0 but for a request's first answer
        prompts = mean(prompt_tokens) * len(missing) or prompts
        together = len(prompt_tokens) / (sum(map(bool, prompt_tokens)) or len(prompt_tokens))
        charged = mean(traces["cost_usd"].to_list()) * len(missing)
    price = price_of(teacher, runtime)
    bill = Usage(prompt=round(prompts), completion=round(tokens * len(missing)))
    hours = _hours(len(missing), seconds, prompts / max(len(missing), 1) + tokens, together,
                   teacher, runtime)
    if runtime.batch:
        price, hours = price and price.batched(), 24.0 * bool(missing)
        source += ", at the batch API's price and within its day"
    return Estimate(len(missing), len(requests) - len(missing), prompts, tokens * len(missing),
                    price.cost(bill) if price else charged or None, hours, error, source)


def _hours(traces: int, seconds: float, tokens: float, together: float, teacher: Teacher,
           runtime: TeacherRuntime) -> float:
    """Hours for traces of `seconds` and `tokens` each that come `together` in one answer."""
    slots = ((runtime.concurrency or 0) * together
             or local_concurrency(teacher, 1) * max(1, len(runtime.addresses()))
             or PRIOR_CONCURRENCY * together)
    minutes = [traces * seconds / slots / 60, traces / together / (runtime.rpm or math.inf),
               traces * tokens / (runtime.tpm or math.inf)]
    return max(minutes) / 60


def _prior(sampling: Sampling, given: float | None) -> tuple[float, float, str]:
    tokens = min(given or PRIOR_TOKENS, sampling.max_tokens or math.inf)
    said = f"{given:,.0f} tokens a trace were given" if given else \
        "priors: no trace is stored and none was asked"
    return tokens, tokens / PRIOR_TOKENS_A_SECOND, said
