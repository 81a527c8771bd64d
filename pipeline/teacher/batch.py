"""The batch API (OpenAI's guide to batches): half the price, an answer within a day, same store."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import openai

from pipeline.config.teacher import Sampling, Teacher, TeacherRuntime
from pipeline.errors import LockedError, StoppedError, UserError
from pipeline.teacher import batch_files
from pipeline.teacher.answer import MalformedReplyError
from pipeline.teacher.budget import Budget, price_of
from pipeline.teacher.client import Client
from pipeline.teacher.outcome import Outcome
from pipeline.teacher.request import Job, Keys, Request, dump, jobs
from pipeline.teacher.store import TraceStore
from pipeline.teacher.trace_rows import asked_row, trace_rows

ENDPOINT: Final = "/v1/chat/completions"
MOST_REQUESTS, MOST_BYTES = 10_000, 190 << 20
"""Of one batch. The API takes 50,000 requests and 200 MB, but reasoning answers of some 40 KB each
are read at once."""
POLL_SECONDS = 60.0
ENDED = {"completed", "expired", "cancelled", "failed"}
PASSING = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)
"""What a wait of a day outlives."""


def generate_in_batches(requests: Iterable[Request], *, teacher: Teacher, sampling: Sampling,
                        runtime: TeacherRuntime, store: TraceStore,
                        on_progress: Callable[..., None] | None = None) -> Outcome:
    """As `generate`, through the batch API; returns when every batch has ended and is stored.

    Stopped and run again, after minutes or days, it collects what has ended and submits only what
    neither the store nor a batch on its way holds. One run submits a request once: what failed is
    left to the next. The store is locked only while something is submitted or stored.
    """
    requests = list(requests)
    run = BatchScheduler(teacher, sampling, runtime, store, on_progress)
    try:
        run.submit(requests)
        while batch_files.pending(run.folder):
            came = run.collect()
            run.say()
            if came:
                run.submit(requests)     # what a batch from before failed at, or cut off too early
            else:
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        count = len(list(filter(batch_files.id_of, batch_files.pending(run.folder))))
        raise StoppedError(f"stopped; {count} {'batch is' if count == 1 else 'batches are'} on the "
                           "way, and the same command collects what came") from None
    return run.outcome


class BatchScheduler:
    """The batches of one teacher in one store, and what came of those that ended meanwhile."""

    def __init__(self, teacher: Teacher, sampling: Sampling, runtime: TeacherRuntime,
                 store: TraceStore, on_progress: Callable[..., None] | None) -> None:
        self.teacher, self.sampling, self.store = teacher, sampling, store
        self.keys, self.on_progress, self.outcome = Keys(teacher, sampling), on_progress, Outcome()
        self.runtime = runtime.model_copy(update={"stream": False})
        self.client = Client(teacher, sampling, self.runtime)   # for its body() and redact()
        price = price_of(teacher, runtime)
        self.budget = Budget(price and price.batched(), runtime.max_usd, teacher, sampling)
        self.outcome.notes += self.budget.notes
        self.folder = batch_files.folder_of(store, self.keys)
        self.sent: set[str] = set()
        self.done: dict[Path, int] = {}
        self.total = self.shown = 0
        self.held_up = ""
        self.api = openai.OpenAI(api_key=runtime.api_key().get_secret_value() or "none",
                                 base_url=runtime.base_url, timeout=runtime.timeout,
                                 max_retries=runtime.max_attempts - 1)

    def submit(self, requests: list[Request]) -> None:
        """Send what is missing, no pending batch holds and this run has not sent yet."""
        with self._clear(), self.store.writing():
            self._recover()
            missing = self.store.missing(requests, self.teacher, self.sampling)
            waiting = {name: batch_files.job_of(line) for path in batch_files.pending(self.folder)
                       for name, line in batch_files.sent_lines(path).items()}
            known = waiting.keys() | self.sent
            wanted = [job for job in jobs(missing, self.keys, 1)
                      if batch_files.name_of(job) not in known]
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
            self.sent.update(map(batch_files.name_of, wanted))

    def _recover(self) -> None:
        """Find the batches of files that a killed run left without an id; drop what never was."""
        lost = {path.stem: path for path in batch_files.pending(self.folder)
                if not batch_files.id_of(path)}
        for batch in self.api.batches.list(limit=100) if lost else ():
            path = lost.pop((batch.metadata or {}).get("limbeck", ""), None)
            if path is not None:
                batch_files.set_id(path, batch.id)
            if not lost:
                break
        for path in lost.values():
            path.unlink()

    def _affords(self, wanted: list[Job]) -> bool:
        """Whether all that is spent, on its way and wanted stays below max_usd at the worst."""
        worst = sum(map(self.budget.worst, wanted))
        if wanted and not self.budget.fits(worst):
            self.outcome.stopped = (
                f"{len(wanted):,} requests may cost up to ${worst:.2f}, which with what is spent "
                "and on its way may pass runtime.teacher.max_usd, and a batch cannot be stopped "
                "half-way; raise it or ask for less")
        return self.outcome.stopped is None

    def _parts(self, wanted: list[Job]) -> Iterator[list[str]]:
        lines: list[str] = []
        size = 0
        for job in wanted:
            line = dump({"custom_id": batch_files.name_of(job), "method": "POST", "url": ENDPOINT,
                         "body": self.client.body(job)})
            more = len(line.encode("utf-8", "replace")) + 1
            if lines and (len(lines) >= MOST_REQUESTS or size + more > MOST_BYTES):
                yield lines
                lines, size = [], 0
            lines.append(line)
            size += more
        if lines:
            yield lines

    def _create(self, data: bytes) -> None:
        """One batch. Creating is attempted once: it might be paid for twice otherwise."""
        file = self.api.files.create(purpose="batch", file=("limbeck.jsonl", data))
        path = batch_files.keep(self.folder, data)
        try:
            batch = self.api.with_options(max_retries=0).batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h",
                metadata={"limbeck": path.stem})
        except openai.APIStatusError as error:
            if error.status_code < 500:                  # refused: there is no such batch
                path.unlink()
            raise
        batch_files.set_id(path, batch.id)

    def collect(self) -> bool:
        """Store what has ended; whether anything had. An endpoint out of reach is asked again."""
        before = batch_files.pending(self.folder)
        self.held_up = ""
        with self._clear():
            try:
                for path in filter(batch_files.id_of, before):
                    self._collect(path)
            except PASSING:
                self.held_up = " · the endpoint does not answer"
            except LockedError:
                self.held_up = " · another run is storing"
        return len(batch_files.pending(self.folder)) < len(before)

    def _collect(self, path: Path) -> None:
        batch = self.api.batches.retrieve(batch_files.id_of(path))
        counts = batch.request_counts
        self.done[path] = counts.completed + counts.failed if counts else 0
        late = counts and counts.completed and not batch.output_file_id
        if batch.status not in ENDED or (batch.status == "completed" and late):
            return                                       # what is paid for is waited for
        texts = [self.client.redact(self.api.files.content(file_id).text)
                 for file_id in (batch.output_file_id, batch.error_file_id) if file_id]
        with self.store.writing():
            if not path.exists():                        # another run has stored it
                return
            unanswered = batch_files.sent_lines(path)
            for text in filter(str.strip, "\n".join(texts).split("\n")):
                self._answered(text, unanswered)
            for line in unanswered.values():
                self._failed(line, self._why(batch))
            path.rename(path.with_suffix(".done"))

    def _answered(self, text: str, unanswered: dict[str, dict[str, Any]]) -> None:
        """Store what a line of a result file holds; `unanswered` loses its request."""
        try:
            result = json.loads(text)
            line = unanswered.pop(result["custom_id"])
        except (ValueError, TypeError, KeyError):
            return                                       # its request is left unanswered
        try:
            reply = batch_files.reply_of(result, getattr(self.teacher, "opened", False))
        except MalformedReplyError as error:
            self._failed(line, str(error))
            if self.client.adapts(line["body"], text):   # sent again in this run, in another form
                self.sent.discard(line["custom_id"])
            return
        job = batch_files.job_of(line)
        rows = trace_rows(job, reply, self.budget.price, 0.0, self.teacher, self.sampling)
        for row in rows:
            self.store.append(self._asked(line) | row)
            self.outcome.count(row)
        self.budget.bill(job, reply, rows)
        self.outcome.unsure_usd = self.budget.unsure_usd()

    def _failed(self, line: dict[str, Any], reason: str) -> None:
        self.outcome.fail(reason, 1)
        self.store.append(self._asked(line) | {"failure": reason[:300]})

    def _asked(self, line: dict[str, Any]) -> dict[str, Any]:
        """What was asked, under the limit of that day."""
        job = batch_files.job_of(line)
        return (asked_row(job, job.samples.start, self.keys.origin, self.sampling)
                | {"max_tokens": line["body"].get("max_completion_tokens")
                   or line["body"].get("max_tokens")})

    def _why(self, batch: Any) -> str:
        """What the API says of a batch that ended without some answer."""
        said = "; ".join(str(error.message) for error in (batch.errors and batch.errors.data) or ())
        return self.client.redact(f"the batch {batch.status} without it{said and f': {said}'}")

    def say(self) -> None:
        """Where the batches stand: beside the bar, or as a line where no terminal is."""
        left, done = len(batch_files.pending(self.folder)), sum(self.done.values())
        line = f"{left} batches pending · {done:,} of {self.total:,} requests done{self.held_up}"
        if self.on_progress is not None:
            self.on_progress(done - self.shown, note=line)
        self.shown = done
        if not sys.stderr.isatty():
            print(f"teacher: {line}", file=sys.stderr, flush=True)

    @contextmanager
    def _clear(self) -> Iterator[None]:
        """The library's errors as one sentence."""
        try:
            yield
        except openai.OpenAIError as error:
            reason = self.client.redact(str(error))[:200]
            raise UserError(f"the batch API at {self.runtime.shown_url()} failed ({reason}); run "
                            f"again to go on from {self.folder} (delete a file there to give its "
                            "batch up), or set runtime.teacher.batch=false where the endpoint has "
                            "no such API") from None
