"""What one `limbeck view` looks at: artifacts, files of traces, and people's verdicts."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.curate import agreement, reviews
from pipeline.errors import UserError
from pipeline.view import catalog, traces_file
from pipeline.view.catalog import Artifact
from pipeline.view.detail import detail
from pipeline.view.queues import queue
from pipeline.view.tokens import token_row
from pipeline.view.trace_table import TraceTable

SECONDS = 0.5
"""How long a look at the folders holds."""


@dataclass(frozen=True)
class Places:
    """Where to look, and where verdicts and indices are kept."""

    roots: Sequence[Path]
    files: Sequence[Path]
    traces: Path
    cache: Path
    planned: Mapping[str, Mapping[str, Any]]
    languages: tuple[str, ...] = ("en",)
    need: int = 1


class Workspace:
    """Everything the page asks for. Safe to use from several threads."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.reviews_path = reviews.reviews_path(places.traces)
        self._lock = threading.RLock()
        self._tables: dict[tuple[str, int], TraceTable] = {}
        self._scanned: tuple[float, list[Artifact]] = (0.0, [])
        self._said: tuple[tuple[int, int], list[reviews.Line]] = ((-1, -1), [])

    def close(self) -> None:
        """Stop what runs in the background."""
        for table in self._tables.values():
            table.close()

    def artifacts(self, again: bool = False) -> list[Artifact]:
        """The artifacts in all folders, the newest first; of equal names the first."""
        with self._lock:
            if again or time.monotonic() - self._scanned[0] > SECONDS:
                found: dict[str, Artifact] = {}
                for root in self.places.roots:
                    for one in catalog.scan(root, self.places.planned) if root.is_dir() else ():
                        found.setdefault(one.folder.name, one)
                self._scanned = time.monotonic(), list(found.values())
            return self._scanned[1]

    def known(self) -> dict[str, Artifact]:
        """The artifacts by key."""
        return catalog.by_key(self.artifacts())

    def artifact(self, name: str) -> Artifact:
        """The artifact called `name`, whole before half-made. Raises UserError if it is gone."""
        for again in (False, True):     # made just now, perhaps
            if found := [one for one in self.artifacts(again) if one.name == name]:
                return sorted(found, key=lambda one: one.state == "made")[-1]
        raise UserError(f"{name} is not there any more; it was deleted or renamed")

    def sources(self) -> list[dict[str, Any]]:
        """The tables of traces that one can read in, those of this experiment first."""
        files: list[dict[str, Any]] = [
            {"id": f"file:{place}", "label": path.name, "kind": "file", "current": True}
            for place, path in enumerate(self.places.files)]
        planned = self.places.planned
        tables: list[dict[str, Any]] = [
            {"id": one.name, "label": f"{one.stage} {one.key[:6]}",
             "kind": catalog.TABLES[path.name], "current": not planned or one.name in planned,
             "finished": one.manifest.get("finished")}
            for one in self.artifacts() if (path := catalog.table_of(one))]
        order = list(catalog.TABLES.values())
        return files + sorted(tables, key=lambda one: (
            not one["current"], order.index(str(one["kind"])), -(one["finished"] or 0)))

    def troubles(self) -> list[str]:
        """A sentence for each artifact that is damaged or not finished."""
        return [one.trouble if one.state == "damaged" else
                f"{one.name} is not finished: it is being made, or was interrupted"
                for one in self.artifacts() if one.state != "made"]

    def table(self, source: str) -> TraceTable:
        """The table called `source`. Raises UserError if it is gone or cannot be read."""
        with self._lock:
            path, problems = self._path(source)
            try:
                key = str(path), path.stat().st_mtime_ns
            except OSError:
                raise UserError(f"{path} is not there any more; it was deleted") from None
            if key not in self._tables:
                table = TraceTable(path, problems() if callable(problems) else problems,
                                   self.places.cache, *self.places.languages)
                table.start_index()
                self._tables[key] = table
            return self._tables[key]

    def _path(self, source: str) -> tuple[Path, Any]:
        """The Parquet file of a source and its problems, or what reads them."""
        if source.startswith("file:"):
            number = int(source[5:]) if source[5:].isdecimal() else len(self.places.files)
            if number >= len(self.places.files):
                raise UserError(f"there is no file {source!r} here; reload the page")
            return traces_file.as_table(self.places.files[number], self.places.cache)
        one = self.artifact(source)
        path = catalog.table_of(one)
        if path is None:
            raise UserError(one.trouble or f"{source} has no table of traces"
                            + ("; it is not finished" if one.state == "partial" else ""))
        return path, lambda: self._problems(one, path)

    def _problems(self, one: Artifact, path: Path) -> dict[str, dict[str, Any]]:
        """The problems of an artifact by id, from prepare's tables or its own."""
        own = traces_file.problems_in(path)
        prepared: dict[str, dict[str, Any]] = {}
        for other in catalog.lineage(one, self.known()):
            for name in ("problems.parquet", "heldout.parquet"):
                file = other.folder / name
                if other.stage == "prepare" and file.is_file():
                    prepared |= {row["problem_id"]: row for row in pl.read_parquet(file).to_dicts()}
        if not own:
            return prepared
        # A benchmark of its own may use the same ids for other problems.
        return {name: prepared[name] if name in prepared
                and prepared[name]["problem"] == row["problem"] else row
                for name, row in own.items()}

    def said(self) -> list[reviews.Line]:
        """Every verdict given so far, by anybody."""
        with self._lock:
            try:
                stat = self.reviews_path.stat()
                state = stat.st_size, stat.st_mtime_ns
            except OSError:
                return []
            if state != self._said[0]:
                self._said = state, reviews.read_reviews(self.reviews_path)
            return self._said[1]

    def trace(self, source: str, row: int) -> dict[str, Any]:
        """One trace whole, with what people said of it and its problem's other samples."""
        table = self.table(source)
        values = table.row(row)
        problem = table.problems.get(str(values.get("problem_id")))
        told = detail(values, problem, *self.places.languages)
        same = table.frame.filter(pl.col("problem_id") == values["problem_id"])
        shown = [name for name in ("row", "sample", "model", "verdict", "score", "kept", "reason",
                                   "tokens") if name in same.columns]
        by = reviews.latest(self.said()).get(told["key"], {})
        return {**told, "source": source, "row": row, "siblings": same.select(shown).to_dicts(),
                "reviews": list(by.values()), "review": reviews.consensus(by, self.places.need),
                "tokens_known": self._packed(source) is not None}

    def _packed(self, source: str,
                again: bool = False) -> tuple[Artifact, Artifact, Artifact | None] | None:
        """The pack, student and logits artifacts made from the filter artifact `source`."""
        made = [one for one in self.artifacts(again) if one.state == "made"]
        known = catalog.by_key(made)
        keys = {one.key for one in made if one.name == source}
        for one in made:
            if one.stage == "pack" and keys & set(one.inputs.values()):
                student = next((known[key] for key in one.inputs.values()
                                if key in known and known[key].stage == "student"), None)
                logits = next((other for other in made if other.stage == "logits"
                               and one.key in other.inputs.values()), None)
                if student is not None:
                    return one, student, logits
        return None

    def tokens(self, source: str, row: int) -> dict[str, Any]:
        """The token row of a trace. Raises UserError if it was not packed."""
        packed = self._packed(source) or self._packed(source, again=True)
        if packed is None:
            raise UserError("no token rows were made from these traces; run `limbeck pack`")
        frame = self.table(source).frame
        name, sample = frame.select("problem_id", "sample").row(row)
        return {"tokens": token_row(name, sample, *packed), "scored": packed[2] is not None,
                "pack": packed[0].name}

    def queue(self, source: str, kind: str, n: int, seed: int,
              models: tuple[str, str] | None) -> list[list[int]]:
        """Rows to review, in groups that are seen at once."""
        table = self.table(source)
        golds = {name: row.get("answer") or "" for name, row in table.problems.items()}
        frame = table.with_reviews(reviews.latest(self.said()), self.places.need)
        return queue(frame, kind, n, seed, golds, models)

    def review(self, lines: Sequence[Mapping[str, Any]]) -> list[reviews.Line]:
        """Keep verdicts, and an edited trace with its own key; on disk when this returns."""
        kept = []
        for line in lines:
            line = {name: value for name, value in line.items() if name not in ("id", "at")}
            if edit := line.get("edit"):
                if not str(edit.get("answer") or "").strip():
                    raise UserError("the edited trace has no answer; a student would learn not to "
                                    "answer")
                thinking, answer = edit.get("thinking") or None, str(edit["answer"])
                line["edit"] = {"thinking": thinking, "answer": answer,
                                "problem_key": line.get("problem_key"),
                                "key": reviews.trace_key_of(str(line.get("problem_key")),
                                                            thinking, answer)}
            kept.append(line)
        return reviews.append_reviews(self.reviews_path, kept)

    def agreement(self, source: str = "") -> dict[str, Any]:
        """How far people agree with each other, and with the judge on the traces of `source`."""
        lines = self.said()
        out = agreement.summarise_reviews(lines)
        if source and (keys := (table := self.table(source)).keys) is not None and \
                "score" in table.frame.columns:
            by = reviews.latest(lines)
            rows = table.frame.with_columns(key=keys).filter(pl.col("key").is_in(list(by)))
            out["judge"] = agreement.against_judge(by, dict(rows.select("key", "score").rows()))
        return out
