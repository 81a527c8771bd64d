"""The trace store: every completion ever paid for, append-only, keyed by what was asked.

A folder of Parquet segments and a journal of each writer, which holds its newest rows and becomes
its next segment. Any number of processes, of any machines that share the folder, write at once:
each writes files of its own alone, and only the journal of a dead one is folded by another. Of a
store in an object store the folder is a local copy (store_mirror).
Planning reads few columns; collecting reads a few segments at a time (3.3 GB of traces in segments
of 64 MB took 0.9 GB of memory, and so did 1.3 GB).
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.bucket_leases import open_leases
from pipeline.config.teacher import Sampling, Teacher
from pipeline.errors import LockedError, UserError
from pipeline.leases import Ended, Leases
from pipeline.teacher import store_segment
from pipeline.teacher.request import Keys, Request
from pipeline.teacher.request_table import part_of, problem_ids_of, wanted_of
from pipeline.teacher.shorten import longer, shortened
from pipeline.teacher.store_index import INDEX, by_parts, index_of, known_ends
from pipeline.teacher.store_journal import Journal, read_journal
from pipeline.teacher.store_mirror import mirror_of

LOGPROBS = {"token_ids": pl.List(pl.Int32), "token_texts": pl.List(pl.String),
            "token_logprobs": pl.List(pl.Float32), "top_ids": pl.List(pl.Int32),
            "top_texts": pl.List(pl.String), "top_logprobs": pl.List(pl.Float32)}
TRACE = {"thinking": pl.String, "answer": pl.String, "finish_reason": pl.String,
         "complete": pl.Boolean, "prompt_tokens": pl.Int64, "completion_tokens": pl.Int64,
         "cost_usd": pl.Float64, "seconds": pl.Float64, "model": pl.String}
SCHEMA: dict[str, Any] = {"key": pl.String, "sample": pl.Int64, **TRACE, "max_tokens": pl.Int64,
          "failure": pl.String, "origin": pl.String, "messages": pl.String, **LOGPROBS}
FOLD_ROWS, FOLD_BYTES = 20_000, 64 << 20
OPEN_SEGMENTS, BATCH_ROWS = 4, 2048
NO_LIMIT = 1 << 62


class TraceStore:
    """The store in `folder`, for any number of readers and writers."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._mirror = mirror_of(self.folder)
        self._journal: Journal | None = None
        self._leases: Leases | None = None

    def __enter__(self) -> TraceStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._fold()

    def missing(self, requests: Sequence[Request], teacher: Teacher,
                sampling: Sampling) -> Sequence[Request]:
        """Those of `requests` never answered, or truncated below today's max_tokens.

        Sorted by expected length, longest first, so that none of these is left for the end
        (Graham's longest job first); unknown lengths use the mean. Prompts that failed before go
        last, most failures at the end, since repeated refusals can stop the run.
        """
        failed, tokens = pl.col("failure").is_not_null(), pl.col("completion_tokens")
        left = []
        for wanted, stored in self._stored(
                requests, teacher, sampling, "completion_tokens", failed=failed,
                enough=~failed & _long_enough(sampling.max_tokens)):
            answered = stored.filter(~pl.col("failed")).group_by("key").agg(tokens.mean())
            failures = stored.filter("failed").group_by("key").len("failures")
            left.append(wanted.join(stored.filter("enough"), on=["key", "sample"], how="anti")
                        .join(answered, on="key", how="left")
                        .join(failures, on="key", how="left")
                        .select("row", "completion_tokens", pl.col("failures").fill_null(0)))
        rows = pl.concat(left).sort("failures", tokens.fill_null(tokens.mean()), "row",
                                    descending=[False, True, False])
        return part_of(requests, rows["row"])

    def spent(self, requests: Sequence[Request], teacher: Teacher, sampling: Sampling) -> float:
        """Dollars that the answers to `requests` cost so far, truncated ones included."""
        # Equal rows are one answer, stored twice by a run that was killed while collecting a batch.
        parts = self._stored(requests, teacher, sampling, *list(INDEX)[2:])
        return sum(float(stored.join(wanted, on=["key", "sample"], how="semi")
                         .unique(list(INDEX))["cost_usd"].sum()) for wanted, stored in parts)

    def longer(self, requests: Sequence[Request], teacher: Teacher, sampling: Sampling) -> int:
        """How many of `requests` have an answer that `stream` cuts to today's max_tokens."""
        if sampling.max_tokens is None:
            return 0
        there = pl.col("failure").is_null() & longer(sampling.max_tokens)
        return sum(len(wanted.join(stored, on=["key", "sample"], how="semi"))
                   for wanted, stored in self._stored(requests, teacher, sampling, where=there))

    def collect(self, requests: Sequence[Request], teacher: Teacher,
                sampling: Sampling) -> pl.DataFrame:
        """All that `stream` yields, in one frame."""
        columns = ["problem_id", *_trace_columns(sampling)]
        empty = _frame([]).rename({"key": "problem_id"}).select(columns)
        return pl.concat([empty, *self.stream(requests, teacher, sampling)])

    def stream(self, requests: Sequence[Request], teacher: Teacher,
               sampling: Sampling) -> Iterator[pl.DataFrame]:
        """Yield the answered ones of `requests` in their order, as tables.Trace frames.

        Of several answers to one request the complete one, else the one with the highest limit, is
        taken, cut to today's max_tokens if it is longer. If `top_logprobs` is set the nullable
        LOGPROBS columns follow: one entry a token, and `top_*` flattened, top_logprobs entries a
        token, padded with null. At most OPEN_SEGMENTS segments and BATCH_ROWS traces are in memory.
        """
        journal = _frame(self._journal_rows())
        places = []
        for wanted, stored in self._stored(
                requests, teacher, sampling, "segment", "position", journal=journal,
                whole=pl.col("finish_reason") != "length",
                limit=pl.col("max_tokens").fill_null(NO_LIMIT), where=pl.col("failure").is_null()):
            best = (stored.join(wanted, on=["key", "sample"], how="semi")
                    .sort("whole", "limit", "segment", "position")
                    .unique(["key", "sample"], keep="last"))
            places.append(wanted.join(best, on=["key", "sample"], how="inner")
                          .select("row", "segment", "position"))
        chosen = pl.concat(places).sort("row")
        columns = _trace_columns(sampling)

        @lru_cache(OPEN_SEGMENTS)        # traces asked together lie in few segments
        def rows_of(name: str | None) -> pl.DataFrame:
            frame = journal if name is None else store_segment.read_segment(self.folder / name)
            return shortened(_with_known_ends(frame), sampling).select(columns)

        for part in chosen.iter_slices(BATCH_ROWS):
            found = [rows_of(str(name) if name else None)[rows["position"]].with_columns(
                row=rows["row"], problem_id=problem_ids_of(requests, rows["row"]))
                for (name,), rows in part.group_by("segment", maintain_order=True)]
            yield pl.concat(found).sort("row").select("problem_id", *columns)

    @contextmanager
    def writing(self) -> Iterator[Leases]:
        """Be one of the store's writers; yields the leases, by which they share what they ask.

        The journals of dead writers become segments.
        """
        with ExitStack() as stack:
            with self._writable():
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._no_older_version())
                self._leases = stack.enter_context(
                    open_leases(self.folder / "leases", self._done_by, self._push))
            stack.callback(self._close_journal)     # rows that could not be folded stay in its file
            stack.callback(setattr, self, "_leases", None)
            self._recover()
            try:
                yield self._leases
            finally:
                self._fold()
                self._push()

    @contextmanager
    def _no_older_version(self) -> Iterator[None]:
        """Share the lock that versions with one writer took for themselves."""
        with (self.folder / "lock").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(f"an older version of limbeck is writing to the trace store "
                                  f"{self.folder}; wait until it ends") from None
            except OSError:
                pass                     # a file system without locks has none to respect
            yield

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Store finished rows (keys as in SCHEMA); they are on disk when this returns.

        Raises UserError if the segment cannot be written, after all rows are in the journal.
        """
        assert self._leases is not None, "append() belongs inside writing()"
        with self._writable():
            if self._leases.heartbeat.is_lost():
                self._leases.heartbeat.renew()
                self._rename_journal()
            if self._journal is None:
                self._journal = Journal(self.folder / f"{self._new_stem()}.journal")
            for row in rows:
                self._journal.append(row)
        if len(self._journal.rows) >= FOLD_ROWS or self._journal.size >= FOLD_BYTES:
            self._fold()
            if self._mirror is None:     # an append waits for no network
                self._recover()

    def _stored(self, requests: Sequence[Request], teacher: Teacher, sampling: Sampling,
                *columns: str, **options: Any) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """(wanted_of some requests, `_index` of the rows with their keys), a part at a time."""
        index = self._index("key", "sample", *columns, **options)
        return by_parts(wanted_of(requests, Keys(teacher, sampling)), index)

    def _index(self, *columns: str, journal: pl.DataFrame | None = None,
               **options: Any) -> pl.DataFrame:
        """Some columns of the index of all rows; `options` are those of index_of."""
        # Journals first: one that is folded meanwhile is seen twice, never missed.
        newest = (_frame(self._journal_rows()) if journal is None else journal).select(*INDEX)
        segments = self._segments()
        files = ((path.name, store_segment.read_columns(path, list(INDEX))) for path in segments)
        return index_of(chain([(None, newest)], files), [path.name for path in segments],
                        [*columns], **options)

    def _journal_rows(self) -> list[dict[str, Any]]:
        self._pull()
        return [row for path in self._journals() for row in read_journal(path)]

    def _journals(self) -> list[Path]:
        return sorted(self.folder.glob("*.journal")) + (self._mirror.mirrored()
                                                        if self._mirror else [])

    def _pull(self) -> None:
        """Bring what other machines stored into the local copy, if this is one."""
        if self._mirror is not None:
            with self._writable():
                self._mirror.pull()

    def _push(self) -> None:
        """Bring what this machine stored where the others find it, if that is elsewhere."""
        if self._mirror is not None:
            self._mirror.push(self._journal)

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _new_stem(self) -> str:
        """INDEX.WRITER: segments sort by when they were begun, and no two writers clash."""
        assert self._leases is not None
        names = [path.name[:6] for path in (*self._segments(), *self._journals())]
        return f"{max(map(int, names), default=0) + 1:06d}.{self._leases.heartbeat.id}"

    def _recover(self) -> None:
        """Turn the journals of dead writers into segments."""
        assert self._leases is not None
        self._pull()
        for path in self._journals():
            # An older version names no writer in its journal; none of those is writing now.
            writer = path.stem.partition(".")[2]
            if writer and self._leases.heartbeat.alive(writer):
                continue
            if path.parent == self.folder:
                self._write_dead(path, writer)
            elif self._leases.take([path.stem]):     # or another machine does
                self._pull()                         # or has done
                self._write_dead(path, writer)
                self._leases.release([path.stem])

    def _write_dead(self, path: Path, writer: str) -> None:
        """Write the segment of a dead writer's journal."""
        assert self._leases is not None
        # A writer that lives after all notices that it is buried. One that was on this machine is
        # dead; others must not learn it before they find what it stored.
        first = self._mirror is None or path.parent != self.folder
        with self._writable(), suppress(FileNotFoundError):      # another was faster
            if writer and first:
                self._leases.heartbeat.bury(writer)
            self._write_segment(path, read_journal(path))
        self._push()
        if writer and not first:
            self._leases.heartbeat.bury(writer)

    def _done_by(self, writer: str) -> dict[str, Ended]:
        """How the requests of a writer that died ended, by name, as far as it stored them."""
        self._pull()
        if self._mirror is not None:     # what is said to be stored must be where others look
            for path in self.folder.glob(f"*.{writer}.journal"):
                self._write_dead(path, writer)
        rows = [row for path in self._journals() if path.stem.endswith(f".{writer}")
                for row in read_journal(path)]
        for path in self.folder.glob(f"*.{writer}-*.parquet"):
            rows += store_segment.read_columns(
                path, ["key", "sample", "failure", "cost_usd"]).rows(named=True)
        return {f"{row['key']}:{row['sample']}": Ended(row["failure"] is None, row["cost_usd"] or 0)
                for row in rows}

    def _fold(self) -> None:
        """Turn the journal into a segment; its rows stay in it until that is written."""
        if self._journal is not None:
            with self._writable():
                self._write_segment(self._journal.path, self._journal.rows)
            self._close_journal()

    def _rename_journal(self) -> None:
        """Write the journal's rows again under a new name: others fold the old one."""
        if (old := self._journal) is not None:
            new = Journal(self.folder / f"{self._new_stem()}.journal")
            for row in old.rows:
                new.append(row)
            self._close_journal()
            self._journal = new

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _write_segment(self, journal: Path, rows: list[dict[str, Any]]) -> None:
        """Write rows as the segment that replaces the journal, without those that a process which
        was killed before it removed the journal has written."""
        known = sum(map(store_segment.row_count, self.folder.glob(f"{journal.stem}-*.parquet")))
        if rows[known:]:
            store_segment.write(self.folder, journal.stem, _frame(rows[known:]))
        for half in self.folder.glob(f"{journal.stem}.*.partial"):       # of who was killed
            half.unlink(missing_ok=True)
        journal.unlink(missing_ok=True)
        if self._mirror is not None:
            self._mirror.folded.append(journal.stem)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Turn a failed write into one sentence. Rows written before stay readable."""
        try:
            yield
        except OSError as error:
            raise UserError(f"the trace store {self.folder} cannot be written ({error.strerror}); "
                            "free space or fix permissions and run again: finished traces are "
                            "kept") from None


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA)


def _with_known_ends(frame: pl.DataFrame) -> pl.DataFrame:
    ends = known_ends(frame["finish_reason"])
    stopped = (ends == "stop") & (ends != frame["finish_reason"]) & (frame["answer"] != "")
    return frame.with_columns(finish_reason=ends, complete=frame["complete"] | stopped)


def _trace_columns(sampling: Sampling) -> list[str]:
    return ["sample", *TRACE, *(LOGPROBS if sampling.top_logprobs is not None else [])]


def _long_enough(max_tokens: int | None) -> pl.Expr:
    """Whether a stored row serves a request with this limit: complete, or truncated no earlier."""
    truncated = pl.col("finish_reason") == "length"
    if max_tokens is None:
        return ~truncated | pl.col("max_tokens").is_null()
    return ~truncated | (pl.col("max_tokens").fill_null(pl.col("completion_tokens")) >= max_tokens)
