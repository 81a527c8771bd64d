"""Models that judge (filter.llm_judge, `judges`, `limbeck judge --llm-model`), asked like the
teacher.

Its replies are kept in the trace store under keys of their own, so nothing is asked twice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.completion import Messages
from pipeline.config.experiment import RayCluster
from pipeline.config.judges import Judge, RewardModel
from pipeline.config.teacher import JudgeRuntime, LLMJudgeConfig
from pipeline.judge.models.opinion import Score
from pipeline.judge.models.scoring import scorer


@dataclass
class LLMJudgeClient:
    """Replies of `model` to chats; without `spend` only those stored in `traces`."""

    model: LLMJudgeConfig
    runtime: JudgeRuntime
    traces: Path
    spend: bool = True
    cluster: RayCluster | None = None
    """The machines that ask an endpoint; None: this one."""
    share: float = 1.0
    """Part of the GPU memory for the server of a model of this machine."""
    counts: dict[str, Any] = field(default_factory=dict)
    """Asked now, failed, tokens and dollars of all replies used, dollars spent now."""
    paid: dict[str, tuple[int, float]] = field(default_factory=dict, repr=False)
    """Tokens and dollars of each reply used so far: max_usd holds for all calls together."""

    served: ExitStack = field(default_factory=ExitStack, repr=False)
    """The server of a model of this machine, from the first question to `close`."""
    address: str | None = None

    def close(self) -> None:
        """Stop the server, if there is one."""
        self.served.close()
        self.address = None

    def __call__(self, chats: Sequence[Messages]) -> list[str]:
        """A reply for each chat, "" if none came or it was truncated."""
        from pipeline.teacher import Outcome, Request, TraceStore
        from pipeline.teacher.request import canonical_json

        requests = [Request(str(i), 0, chat) for i, chat in enumerate(chats)]
        with TraceStore(self.traces) as store:
            missing = store.missing(requests, self.model, self.model.sampling)
            outcome = self._ask(requests, len(missing), store) if missing and self.spend else \
                Outcome()
            found = store.collect(requests, self.model, self.model.sampling)
        for place, tokens, cost in found.select("problem_id", "completion_tokens",
                                                "cost_usd").rows():
            self.paid[canonical_json(chats[int(place)])] = tokens, cost
        now = {"asked": outcome.asked, "failed": outcome.failed, "spent_now_usd": outcome.cost_usd}
        self.counts = {"asked": 0, "failed": 0, **self.counts,
                       "completion_tokens": sum(tokens for tokens, _ in self.paid.values()),
                       "cost_usd": sum(cost for _, cost in self.paid.values()),
                       **{key: self.counts.get(key, 0) + value for key, value in now.items()}}
        complete = found.filter(found["finish_reason"] != "length")
        replies = dict(complete.select("problem_id", "answer").iter_rows())
        return [replies.get(request.problem_id) or "" for request in requests]

    def _ask(self, requests: list[Any], missing: int, store: Any) -> Any:
        """Ask for what is missing; an endpoint that does not answer is one printed sentence."""
        from pipeline.progress import progress
        from pipeline.teacher import Outcome, generate
        from pipeline.teacher.ask import print_problems
        from pipeline.teacher.failures import UnansweredError
        from pipeline.teacher.on_cluster import generate as generate_on_cluster

        runtime = self._runtime(requests)
        if runtime is None:
            print(f"judge: {self.runtime.where}.max_usd={self.runtime.max_usd:g} is spent; nothing "
                  "more is asked", file=sys.stderr)
            return Outcome(failed=missing)
        try:
            reached = self._reached(runtime)
            ask: Any = generate if self.cluster is None or not runtime.base_url else \
                partial(generate_on_cluster, cluster=self.cluster)
            with progress("asking the LLM judge", missing) as advance:
                outcome = ask(requests, teacher=self.model, sampling=self.model.sampling,
                              runtime=reached, store=store, on_progress=advance)
        except UnansweredError as error:
            print(f"judge: {error}; its cases stay cannot_judge", file=sys.stderr)
            return Outcome(asked=missing, failed=missing)
        print_problems(outcome, "LLM judge")
        return outcome

    def _reached(self, runtime: JudgeRuntime) -> JudgeRuntime:
        """`runtime` with the address of the model's server, which is started once."""
        from pipeline.teacher.ask import running_judge

        if self.address is None:
            self.address = self.served.enter_context(
                running_judge(self.model, runtime, self.traces, self.share)).base_url
        return runtime.model_copy(update={"base_url": self.address})

    def _runtime(self, requests: list[Any]) -> JudgeRuntime | None:
        """The runtime with what earlier calls left of max_usd; None if that is nothing."""
        from pipeline.teacher.request import canonical_json

        if self.runtime.max_usd is None:
            return self.runtime
        here = {canonical_json(request.messages) for request in requests}
        left = self.runtime.max_usd - sum(cost for text, (_, cost) in self.paid.items()
                                          if text not in here)
        return self.runtime.model_copy(update={"max_usd": left}) if left > 0 else None


def scorers(judges: Mapping[str, Judge], runtimes: Mapping[str, JudgeRuntime], traces: Path,
            spend: bool = True, cluster: RayCluster | None = None
            ) -> dict[str, tuple[Score, LLMJudgeClient | None]]:
    """By name what scores items, and its client if its model is asked."""
    served = sum(not isinstance(one, RewardModel) and one.client().is_local()
                 and not runtimes[name].base_url for name, one in judges.items())
    out: dict[str, tuple[Score, LLMJudgeClient | None]] = {}
    for name, config in judges.items():
        client = None if isinstance(config, RewardModel) else LLMJudgeClient(
            config.client(), runtimes[name], traces, spend, cluster, 1 / max(served, 1))
        out[name] = scorer(name, config, client), client
    return out


@contextmanager
def open_scorers(judges: Mapping[str, Judge], runtimes: Mapping[str, JudgeRuntime], traces: Path,
                 spend: bool = True, cluster: RayCluster | None = None
                 ) -> Iterator[dict[str, tuple[Score, LLMJudgeClient | None]]]:
    """Yield `scorers`, and stop the servers that they started."""
    found = scorers(judges, runtimes, traces, spend, cluster)
    try:
        yield found
    finally:
        for _, client in found.values():
            if client:
                client.close()
