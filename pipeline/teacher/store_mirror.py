"""The trace store's part in an object store: every segment, and the journals of living writers.

A journal is stored as pieces, JOURNALS/STEM.OFFSET. The last piece is rewritten while the journal
grows, and the journal's segment replaces them all. A pull lists the journals first, so one that is
folded meanwhile is seen twice, never missed.
"""

from __future__ import annotations

import secrets
import threading
from collections import defaultdict
from pathlib import Path

from pipeline.objects import Bucket, bucket_of
from pipeline.teacher.store_journal import Journal

JOURNALS = "journals"
PIECE = 1 << 18
"""Bytes from which a piece of a journal is not written again."""


class Mirror:
    """What the object store has of the trace store in `folder`."""

    def __init__(self, folder: Path, bucket: Bucket, journals: Bucket) -> None:
        self.folder, self.bucket, self.journals = folder, bucket, journals
        self.folded: list[str] = []
        """Stems of journals whose segment is written here: their pieces may go."""
        self._mutex = threading.Lock()
        self._there: set[str] | None = None      # segments in the object store
        self._begun: dict[str, int] = {}         # offset of the last piece of a journal
        self._sent: dict[str, int] = {}          # bytes of a journal in the object store

    def pull(self) -> None:
        """Bring here what other machines have stored, and take note of what is there."""
        with self._mutex:
            pieces = _by_stem(self.journals.names())
            self._there = self._listed()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.bucket.fetch(sorted(self._there - self._here()), self.folder)
            for stem, sizes in pieces.items():
                if not (self.folder / f"{stem}.journal").exists():       # of a writer elsewhere
                    self._copy(stem, sizes)
            for path in self.mirrored():
                if path.stem not in pieces and any(self.folder.glob(f"{path.stem}-*.parquet")):
                    path.unlink(missing_ok=True)

    def push(self, journal: Journal | None) -> None:
        """Upload what only this machine has: its journal's newest rows, and segments."""
        with self._mutex:
            if journal is not None and self.bucket.atomic:
                self._push_rows(journal.path, journal.size)
            if self._there is None:
                self._there = self._listed()
            folded = list(self.folded)       # before their segments are looked for
            unsent = sorted(self._here() - self._there)
            self.bucket.send({name: self.folder / name for name in unsent})
            self._there.update(unsent)
            if folded:
                self.journals.delete([name for name in self.journals.names()
                                      if name.rpartition(".")[0] in folded])
                del self.folded[:len(folded)]

    def mirrored(self) -> list[Path]:
        """Copies of the journals of other machines' writers."""
        return sorted((self.folder / JOURNALS).glob("*.journal"))

    def _push_rows(self, path: Path, size: int) -> None:
        sent, begun = self._sent.get(path.stem, 0), self._begun.get(path.stem, 0)
        if size <= sent:
            return
        try:
            with path.open("rb") as file:
                file.seek(begun)
                data = file.read(size - begun)
        except FileNotFoundError:        # folded meanwhile: its segment is next
            return
        self.journals.put(f"{path.stem}.{begun:012d}", data)
        self._sent[path.stem] = size
        self._begun[path.stem] = size if len(data) >= PIECE else begun

    def _copy(self, stem: str, sizes: dict[int, int]) -> None:
        """Bring the copy of a journal up to what its pieces hold."""
        path = self.folder / JOURNALS / f"{stem}.journal"
        have = path.read_bytes() if path.exists() else b""
        names = {f"{stem}.{start:012d}": start for start, size in sizes.items()
                 if start + size > len(have)}
        if not names:
            return
        found = self.journals.read(list(names))
        for name in sorted(found):       # one that is gone was folded meanwhile
            if names[name] > len(have):
                break
            have = have[:names[name]] + found[name]
        path.parent.mkdir(exist_ok=True)
        half = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        half.write_bytes(have)
        half.replace(path)

    def _listed(self) -> set[str]:
        return {name for name in self.bucket.names() if name.endswith(".parquet")}

    def _here(self) -> set[str]:
        return {path.name for path in self.folder.glob("*.parquet")}


def mirror_of(folder: Path) -> Mirror | None:
    """The mirror of a trace store, if `folder` is a local copy."""
    bucket, journals = bucket_of(folder), bucket_of(folder / JOURNALS)
    return Mirror(folder, bucket, journals) if bucket and journals else None


def _by_stem(names: dict[str, dict]) -> dict[str, dict[int, int]]:
    """{stem: {offset: size}} of the pieces."""
    out: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for name, entry in names.items():
        stem, _, start = name.rpartition(".")
        if start.isdecimal():
            out[stem][int(start)] = entry["size"] or 0
    return dict(out)
