"""Asks through the batch API (OpenAI's guide to batches): half the price, answers within a day."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import openai

from pipeline.config.teacher import Sampling, Teacher, TeacherRuntime
from pipeline.errors import LockedError, StoppedError, UserError
from pipeline.leases import Leases
from pipeline.teacher import batch_files
from pipeline.teacher.answer import MalformedReplyError
from pipeline.teacher.budget import Budget, price_of
from pipeline.teacher.client import Client
from pipeline.teacher.outcome import Display, Outcome
from pipeline.teacher.request import Job, Keys, Request, canonical_json, jobs
from pipeline.teacher.store import TraceStore
from pipeline.teacher.trace_rows import asked_row, trace_rows

ENDPOINT: Final = "/v1/chat/completions"
MAX_REQUESTS, MAX_BYTES = 10_000, 190 << 20
"""Of one batch. The API takes 50,000 requests and 200 MB, but its answers, some 40 KB each when
reasoning, are read into memory together."""
POLL_SECONDS = 60.0
ENDED_STATUSES = {"completed", "expired", "cancelled", "failed"}
TRANSIENT_ERRORS = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)
"""While waiting for a batch these are ignored."""


def generate_in_batches(requests: Sequence[Request], *, teacher: Teacher, sampling: Sampling,
                        runtime: TeacherRuntime, store: TraceStore,
                        on_progress: Callable[..., None] | None = None) -> Outcome:
    """Do as `generate` through the batch API; returns when every batch has ended and is stored.

    Stopped and run again, after minutes or days, it collects ended batches and submits only what
    neither the store nor a pending batch holds. One run submits a request once and leaves failed
    ones to the next, and to other runs what they are asking for directly.
    """
    run = BatchScheduler(teacher, sampling, runtime, store, on_progress)
    try:
        run.submit(requests)
        while batch_files.pending(run.folder):
            collected = run.collect()
            run.show()
            if collected:
                run.submit(requests)     # what an earlier run's batch failed or truncated
            else:
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        count = len(list(filter(batch_files.id_of, batch_files.pending(run.folder))))
        raise StoppedError(f"stopped; {count} {'batch is' if count == 1 else 'batches are'} "
                           "pending; the same command collects the answers") from None
    return run.outcome


class BatchScheduler:
    """The batches of one teacher in one store, and the outcome of those that ended."""

    def __init__(self, teacher: Teacher, sampling: Sampling, runtime: TeacherRuntime,
                 store: TraceStore, on_progress: Callable[..., None] | None) -> None:
        self.teacher, self.sampling, self.store = teacher, sampling, store
        self.keys, self.outcome = Keys(teacher, sampling), Outcome()
        self.display = Display(self.outcome, on_progress)
        self.runtime = runtime.model_copy(update={"stream": False})
        self.client = Client(teacher, sampling, self.runtime)   # for its body() and redact()
        price = price_of(teacher, runtime)
        self.budget = Budget(price and price.batched(), runtime.max_usd, teacher, sampling)
        self.outcome.notes += self.budget.notes
        self.folder = batch_files.folder_of(store, self.keys)
        self.sent: set[str] = set()
        self.done: dict[Path, int] = {}
        self.total = self.shown = 0
        self.delay = ""
        self.api = openai.OpenAI(api_key=runtime.api_key().get_secret_value() or "none",
                                 base_url=runtime.base_url, timeout=runtime.timeout,
                                 max_retries=runtime.max_attempts - 1)

    def submit(self, requests: Sequence[Request]) -> None:
        """Submit what is missing, in no pending batch and not yet sent by this run."""
        with self._api_errors(), self._writing() as leases:
            self._recover()
            missing = self.store.missing(requests, self.teacher, self.sampling)
            waiting = {name: batch_files.job_of(line) for path in batch_files.pending(self.folder)
                       for name, line in batch_files.sent_lines(path).items()}
            known = waiting.keys() | self.sent
            wanted = [job for job in jobs(missing, self.keys, 1)
                      if batch_files.name_of(job) not in known]
            mine = leases.take(map(batch_files.name_of, wanted))
            wanted = [job for job in wanted if batch_files.name_of(job) in mine]
            if not self.total:
                self.outcome.wanted, self.total = len(missing), len(waiting)
                self.outcome.reused = len(requests) - len(missing)
            self.budget.resume(self.store.spent(requests, self.teacher, self.sampling))
            self.budget.reserved = sum(map(self.budget.worst, waiting.values()))
            if not self._affords(wanted):
                return
            self.total += len(wanted)
            for part in self._parts(wanted):
                self._create("\n".join(part).encode("utf-8", "replace"))
            for name in map(batch_files.name_of, wanted):
                self.sent.add(name)
                leases.end(name, stored=False)       # those who ask directly shall leave it

    @contextmanager
    def _writing(self) -> Iterator[Leases]:
        with self.store.writing() as leases, batch_files.locked(self.folder):
            yield leases

    def _recover(self) -> None:
        """Find the batch of each file that a killed run left without an id, or delete the file."""
        orphans = {path.stem: path for path in batch_files.pending(self.folder)
                if not batch_files.id_of(path)}
        for batch in self.api.batches.list(limit=100) if orphans else ():
            path = orphans.pop((batch.metadata or {}).get("limbeck", ""), None)
            if path is not None:
                batch_files.set_id(path, batch.id)
            if not orphans:
                break
        for path in orphans.values():
            path.unlink()

    def _affords(self, wanted: list[Job]) -> bool:
        """Whether all that is spent, pending and wanted stays below max_usd in the worst case."""
        worst = sum(map(self.budget.worst, wanted))
        if wanted and not self.budget.fits(worst):
            self.outcome.stopped = (
                f"{len(wanted):,} requests may cost up to ${worst:.2f}; with what is spent and "
                "pending that may exceed runtime.teacher.max_usd, and a batch cannot be stopped "
                "half-way; raise it or ask for less")
        return self.outcome.stopped is None

    def _parts(self, wanted: list[Job]) -> Iterator[list[str]]:
        lines: list[str] = []
        size = 0
        for job in wanted:
            line = canonical_json({"custom_id": batch_files.name_of(job), "method": "POST",
                                   "url": ENDPOINT, "body": self.client.body(job)})
            line_size = len(line.encode("utf-8", "replace")) + 1
            if lines and (len(lines) >= MAX_REQUESTS or size + line_size > MAX_BYTES):
                yield lines
                lines, size = [], 0
            lines.append(line)
            size += line_size
        if lines:
            yield lines

    def _create(self, data: bytes) -> None:
        """Create one batch, in one attempt only: a second might be paid for as well."""
        file = self.api.files.create(purpose="batch", file=("limbeck.jsonl", data))
        path = batch_files.write_lines(self.folder, data)
        try:
            batch = self.api.with_options(max_retries=0).batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h",
                metadata={"limbeck": path.stem})
        except openai.APIStatusError as error:
            if error.status_code < 500:                  # refused: no batch was created
                path.unlink()
            raise
        batch_files.set_id(path, batch.id)

    def collect(self) -> bool:
        """Store the batches that ended; returns whether any had. Transient errors are ignored."""
        before = batch_files.pending(self.folder)
        self.delay = ""
        with self._api_errors():
            try:
                for path in filter(batch_files.id_of, before):
                    self._collect(path)
            except TRANSIENT_ERRORS:
                self.delay = " · the endpoint does not answer"
            except LockedError:
                self.delay = " · another run is storing"
        return len(batch_files.pending(self.folder)) < len(before)

    def _collect(self, path: Path) -> None:
        batch = self.api.batches.retrieve(batch_files.id_of(path))
        counts = batch.request_counts
        self.done[path] = counts.completed + counts.failed if counts else 0
        output_late = counts and counts.completed and not batch.output_file_id
        if batch.status not in ENDED_STATUSES or (batch.status == "completed" and output_late):
            return                                       # wait for answers that are paid for
        texts = [self.client.redact(self.api.files.content(file_id).text)
                 for file_id in (batch.output_file_id, batch.error_file_id) if file_id]
        with self._writing():
            if not path.exists():                        # another run has stored it
                return
            unanswered = batch_files.sent_lines(path)
            for text in filter(str.strip, "\n".join(texts).split("\n")):
                self._store_result(text, unanswered)
            for line in unanswered.values():
                self._record_failure(line, self._failure_reason(batch))
            path.rename(path.with_suffix(".done"))

    def _store_result(self, text: str, unanswered: dict[str, dict[str, Any]]) -> None:
        """Store the answer in a line of a result file and take its request out of `unanswered`."""
        try:
            result = json.loads(text)
            line = unanswered.pop(result["custom_id"])
        except (ValueError, TypeError, KeyError):
            return                                       # its request stays unanswered
        try:
            reply = batch_files.reply_of(result, self.client.prompt_opens_thinking)
        except MalformedReplyError as error:
            self._record_failure(line, str(error))
            if self.client.adapts(line["body"], text):   # sent again by this run
                self.sent.discard(line["custom_id"])
            return
        job = batch_files.job_of(line)
        rows = trace_rows(job, reply, self.budget.price, 0.0, self.teacher, self.sampling)
        for row in rows:
            self.store.append(self._asked_row(line) | row)
            self.outcome.count(row)
        self.budget.bill(job, reply, rows)
        self.outcome.unsure_usd = self.budget.unsure_usd()

    def _record_failure(self, line: dict[str, Any], reason: str) -> None:
        self.outcome.fail(reason, 1)
        self.store.append(self._asked_row(line) | {"failure": reason[:300]})

    def _asked_row(self, line: dict[str, Any]) -> dict[str, Any]:
        """The columns that say what was asked, with the max_tokens sent at the time."""
        job = batch_files.job_of(line)
        return (asked_row(job, job.samples.start, self.keys.origin, self.sampling)
                | {"max_tokens": line["body"].get("max_completion_tokens")
                   or line["body"].get("max_tokens")})

    def _failure_reason(self, batch: Any) -> str:
        """Why a batch ended without some answer, as the API says."""
        errors = (batch.errors and batch.errors.data) or ()
        details = "; ".join(str(error.message) for error in errors)
        return self.client.redact(f"batch {batch.status} without it{details and f': {details}'}")

    def show(self) -> None:
        """Show how many batches are pending and how many requests are done."""
        left, done = len(batch_files.pending(self.folder)), sum(self.done.values())
        line = f"{left} batches pending · {done:,} of {self.total:,} requests done{self.delay}"
        self.display.show_line(done - self.shown, line)
        self.shown = done

    @contextmanager
    def _api_errors(self) -> Iterator[None]:
        """Turn the library's errors into one sentence."""
        try:
            yield
        except openai.OpenAIError as error:
            reason = self.client.redact(str(error))[:200]
            raise UserError(f"the batch API at {self.runtime.shown_url()} failed ({reason}); run "
                            f"again to go on from {self.folder} (delete a file there to give up "
                            "its batch), or set runtime.teacher.batch=false if the endpoint has no "
                            "batch API") from None
