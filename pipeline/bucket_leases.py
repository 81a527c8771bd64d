"""Leases and heartbeats of processes on several machines that share a folder of an object store.

Change N of the log is an object that is created only once. A heartbeat is an object that is written
again. In the local copy each process also has the file that it locks, by which another one of the
same machine knows at once that it died.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline import heartbeat
from pipeline.errors import LockedError, UserError
from pipeline.heartbeat import Heartbeat, clock
from pipeline.leases import Ended, Leases
from pipeline.objects import Bucket, bucket_of

AHEAD = 64
"""Changes of the log that are read at once, at most."""
ALONE = "alone"
"""The object that names the only writer, where objects cannot be created only once."""


def open_leases(folder: Path, done_by: Callable[[str], Mapping[str, Ended]] = lambda process: {},
                secure: Callable[[], None] = lambda: None) -> Leases:
    """The leases in `folder`, or in what it is a local copy of.

    `secure` uploads what others are about to be told is stored.
    """
    bucket, alive = bucket_of(folder), bucket_of(folder / "alive")
    if bucket is None or alive is None:
        return Leases(folder, done_by)
    return BucketLeases(bucket, BucketHeartbeat(folder / "alive", alive), done_by, secure)


class BucketHeartbeat(Heartbeat):
    """This process as others see it, in FOLDER/ID.alive of the store and of the local copy."""

    def __init__(self, folder: Path, bucket: Bucket) -> None:
        self.bucket, self._count = bucket, 0
        self._marks: dict[str, tuple[str, int]] = {}     # of an object, beats since it changed
        super().__init__(folder)

    def renew(self) -> None:
        super().renew()
        self._write()

    def start(self, work: Callable[[], None] = lambda: None) -> None:
        """Beat in a thread, and `work` in another: it may take long."""
        def run() -> None:
            while not self._stop.wait(heartbeat.BEAT):
                work()

        super().start()
        self._worker = threading.Thread(target=run, name="leases", daemon=True)
        self._worker.start()

    def stop(self) -> None:
        super().stop()
        self._worker.join()
        with suppress(UserError):        # no network: others see that it does not beat any more
            self.bucket.delete([self._object(self.id)])

    def beat(self) -> None:
        """Write the object again, and look at those that are watched."""
        try:
            there = self._marks_there()
            if self._object(self.id) not in there:       # others took it for dead
                self.lost = True
                return
            self._write()
        except UserError:                # no network: neither side counts
            return
        self._last = clock()
        for name in list(self._watched):
            self._count_one(name, there)

    def is_lost(self) -> bool:
        """Whether others took this process for dead; the leases' log says so before it matters."""
        return self.lost

    def bury(self, name: str) -> None:
        super().bury(name)
        self.bucket.delete([self._object(name)])

    def others(self) -> list[str]:
        names = sorted(name.removesuffix(".alive") for name in self._marks_there())
        return [name for name in names if name != self.id]

    def where(self, name: str) -> str:
        return f"{self.bucket.url}/{self._object(name)}"

    def _look(self, name: str) -> None:
        self._count_one(name, self._marks_there())

    def _count_one(self, name: str, there: Mapping[str, str]) -> None:
        """Count a beat of ours without one of theirs."""
        if (mark := there.get(self._object(name))) is None:
            self._seen.pop(name, None)
            return
        before, missed = self._marks.get(name, (mark, -1))
        self._marks[name] = mark, missed + 1 if before == mark else 0
        self._seen[name] = 0, self._marks[name][1]

    def _unlocked(self, name: str) -> bool:
        """Whether a process with the same local copy has let its lock go."""
        return self.path(name).exists() and super()._unlocked(name)

    def _marks_there(self) -> dict[str, str]:
        return {name: repr(sorted(entry.items(), key=str))
                for name, entry in self.bucket.names().items()}

    def _write(self) -> None:
        self._count += 1
        self.bucket.put(self._object(self.id), str(self._count).encode())

    @staticmethod
    def _object(name: str) -> str:
        return f"{name}.alive"


class BucketLeases(Leases):
    """Leases whose log is in an object store."""

    def __init__(self, bucket: Bucket, beats: BucketHeartbeat,
                 done_by: Callable[[str], Mapping[str, Ended]], secure: Callable[[], None]) -> None:
        self.bucket, self._secured, self._read_ahead = bucket, secure, 1
        self._texts: dict[int, str] = {}
        super().__init__(bucket.folder, done_by, beats)

    def _secure(self) -> None:
        self._secured()

    def _text(self, number: int) -> str | None:
        """The text of change `number`; several are read at once while there are several."""
        if (text := self._texts.pop(number, None)) is not None:
            return text
        numbers = {f"{one:012d}": one for one in range(number, number + self._read_ahead)}
        found = self.bucket.read(list(numbers))
        self._texts = {numbers[name]: data.decode() for name, data in found.items()}
        self._read_ahead = min(self._read_ahead * 2, AHEAD) if len(found) == len(numbers) else 1
        return self._texts.pop(number, None)

    def _link(self, number: int, text: str) -> bool:
        if self.bucket.atomic:
            return self.bucket.create(f"{number:012d}", text)
        self._keep_alone()
        return True

    def _keep_alone(self) -> None:
        """Write who is the only writer, unless another one is."""
        other = self.bucket.read([ALONE]).get(ALONE, b"").decode()
        if other and self.heartbeat.alive(other):
            raise LockedError(
                f"{self.bucket.url} cannot create an object only once, so two runs could ask the "
                f"same unawares and one writes at a time: {other} does; wait until it ends, or if "
                f"it is dead, delete {self.heartbeat.where(other)}")
        self.bucket.put(ALONE, self._taken_as.encode())
        self._alone = partial(self.bucket.delete, [ALONE])

    def _numbers(self) -> list[int]:
        return sorted(int(name) for name in self.bucket.names() if name.isdecimal())

    def _remove_before(self, number: int) -> None:
        self.bucket.delete([f"{one:012d}" for one in self._numbers() if one < number])
