"""The batch API (OpenAI's guide to batches): half the price, an answer within days, same store.

Every batch is a file in STORE/batches/ that holds what was sent. It is there before the batch is,
so that a killed run finds the batch again by its metadata instead of paying for a second one.
"""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import openai

from pipeline.errors import UserError
from pipeline.teacher.client import Client
from pipeline.teacher.config import Sampling, Teacher, TeacherRuntime
from pipeline.teacher.outcome import Outcome
from pipeline.teacher.prices import Budget, price_of
from pipeline.teacher.reply import DamagedError, read_json
from pipeline.teacher.request import Job, Keys, Request, dump, jobs
from pipeline.teacher.rows import asked_row, trace_rows
from pipeline.teacher.store import TraceStore

ENDPOINT: Final = "/v1/chat/completions"
MOST_REQUESTS, MOST_BYTES = 50_000, 190 << 20
ENDED = {"completed", "expired", "cancelled", "failed"}


def generate_in_batches(requests: Iterable[Request], *, teacher: Teacher, sampling: Sampling,
                        runtime: TeacherRuntime, store: TraceStore, wait: bool = True,
                        poll_seconds: float = 60.0,
                        on_progress: Callable[..., None] | None = None) -> Outcome:
    """As `generate`, through the batch API. Without `wait`, returns once all is submitted.

    Run again, after minutes or days, it collects what has ended and submits only what neither the
    store nor a batch on its way holds.
    """
    requests = list(requests)
    with store.writing():
        run = _Batches(teacher, sampling, runtime, store, on_progress)
        run.collect()
        missing = store.missing(requests, teacher, sampling)
        run.outcome.wanted, run.outcome.reused = len(missing), len(requests) - len(missing)
        run.submit(missing)
        while run.pending() and wait:
            time.sleep(poll_seconds)
            run.collect()
    return run.outcome


class _Batches:
    """The batches of one store, and what came of those collected now."""

    def __init__(self, teacher: Teacher, sampling: Sampling, runtime: TeacherRuntime,
                 store: TraceStore, on_progress: Callable[..., None] | None) -> None:
        self.teacher, self.sampling, self.store = teacher, sampling, store
        self.keys, self.on_progress, self.outcome = Keys(teacher, sampling), on_progress, Outcome()
        self.runtime = runtime.model_copy(update={"stream": False})
        self.client = Client(teacher, sampling, self.runtime)   # for its body() and redact()
        price = price_of(teacher, runtime)
        self.budget = Budget(price and price.batched(), runtime.max_usd, teacher, sampling)
        self.folder = store.folder / "batches"
        self.api = openai.OpenAI(api_key=runtime.api_key().get_secret_value() or "none",
                                 base_url=runtime.base_url, timeout=runtime.timeout,
                                 max_retries=runtime.max_attempts - 1)

    def pending(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def submit(self, missing: list[Request]) -> None:
        """Send what no pending batch holds, in files as large as the API takes."""
        under_way = {json.loads(line)["custom_id"] for path in self.pending()
                     for line in path.read_text(encoding="utf-8").splitlines()}
        wanted = [job for job in jobs(missing, self.keys, 1) if _name(job) not in under_way]
        worst = sum(map(self.budget.worst, wanted))
        if not self.budget.fits(worst):
            raise UserError(f"{len(wanted)} requests may cost up to ${worst:.2f}, more than "
                            "runtime.teacher.max_usd, and a batch cannot be stopped half-way; "
                            "raise it or ask for less")
        for part in self._parts(wanted):
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{uuid.uuid4().hex}.jsonl"
            partial = path.with_suffix(".partial")
            partial.write_text(part, encoding="utf-8")
            partial.rename(path)
            self._create(path)

    def _parts(self, wanted: list[Job]) -> Iterator[str]:
        lines: list[str] = []
        size = 0
        for job in wanted:
            body = self.client.body(job)
            line = dump({"custom_id": _name(job), "method": "POST", "url": ENDPOINT, "body": body})
            size += len(line.encode())
            if lines and (len(lines) >= MOST_REQUESTS or size > MOST_BYTES):
                yield "\n".join(lines)
                lines, size = [], len(line.encode())
            lines.append(line)
        if lines:
            yield "\n".join(lines)

    def _create(self, path: Path) -> Any:
        with self._clear(path):
            file = self.api.files.create(purpose="batch", file=(path.name, io.BytesIO(
                path.read_bytes())))
            return self.api.batches.create(input_file_id=file.id, endpoint=ENDPOINT,
                                           completion_window="24h",
                                           metadata={"limbeck": path.stem})

    def collect(self) -> None:
        """Store what ended batches hold; a file whose batch was never created is sent now."""
        if not self.pending():
            return
        with self._clear(self.folder):
            batches = {(batch.metadata or {}).get("limbeck"): batch
                       for batch in self.api.batches.list(limit=100)}
        for path in self.pending():
            batch = batches.get(path.stem) or self._create(path)
            if batch.status in ENDED:
                self._store(path, batch)
                path.rename(path.with_suffix(".done"))

    def _store(self, path: Path, batch: Any) -> None:
        sent = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        jobs_by_name = {line["custom_id"]: _job(line) for line in sent}
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            with self._clear(path):
                text = self.client.redact(self.api.files.content(file_id).text)
            for line in filter(str.strip, text.splitlines()):
                result = json.loads(line)
                job = jobs_by_name.pop(result.get("custom_id"), None)
                if job is not None:
                    self._row(job, result)
        for job in jobs_by_name.values():
            self._failed(job, f"the batch ended as {batch.status} without it")

    def _row(self, job: Job, result: dict[str, Any]) -> None:
        response = result.get("response") or {}
        try:
            reply = read_json(response.get("body") or result,
                              opened=getattr(self.teacher, "opened", False))
        except DamagedError as error:
            self._failed(job, str(error))
            return
        for row in trace_rows(job, reply, self.budget.price, 0.0, self.teacher, self.sampling):
            self.store.append(asked_row(job, row["sample"], self.keys.origin, self.sampling) | row)
            self.outcome.count(row)
        if self.on_progress is not None:
            self.on_progress(1, note=self.outcome.line(1.0, 0))

    def _failed(self, job: Job, reason: str) -> None:
        self.outcome.asked += 1
        self.outcome.failed += 1
        self.outcome.reasons[reason[:160]] += 1
        self.store.append(asked_row(job, job.samples.start, self.keys.origin, self.sampling)
                          | {"failure": reason[:300]})

    @contextmanager
    def _clear(self, path: Path) -> Iterator[None]:
        """The library's errors as one sentence; what was submitted stays known."""
        try:
            yield
        except openai.OpenAIError as error:
            reason = self.client.redact(str(error))[:200]
            raise UserError(f"the batch API at {self.runtime.shown_url()} failed ({reason}); run "
                            f"again: {path} holds what was to be sent") from None


def _name(job: Job) -> str:
    return f"{job.key}:{job.samples.start}"


def _job(line: dict[str, Any]) -> Job:
    """The job of a submitted line."""
    key, _, sample = line["custom_id"].partition(":")
    return Job(key, line["body"]["messages"], range(int(sample), int(sample) + 1))
