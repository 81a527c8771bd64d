"""Who does what, among all processes that share a folder (of traces, artifacts), without a lock.

The leases are a log: file N of the folder is the Nth change, made whole and only once by a hard
link, as a commit of a table format is. Whoever finds N taken reads it, decides again and tries
N + 1; so some process always gets on, and all see one order. What a dead process held is free.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.errors import LockedError, UserError
from pipeline.heartbeat import BEAT, Heartbeat, clock

SNAPSHOT, KEPT = 256, 4096
"""Every SNAPSHOTth change holds all leases; so many changes are kept for who reads late."""
LOOK_SECONDS = 0.5
"""Between two looks at what others ask for, once nothing else is left."""
T = TypeVar("T")
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


class Lease(NamedTuple):
    """Who holds a name, and the most dollars that it may cost them."""

    by: str
    usd: float


class Ended(NamedTuple):
    """How a lease of another process ended: whether its trace is stored, and what it cost."""

    stored: bool
    usd: float


class Leases:
    """The leases in `folder`; those of this process end with the block, or when it dies.

    `done_by` says what a process that died has done, since it may not have come to end its leases.
    """

    def __init__(self, folder: Path,
                 done_by: Callable[[str], Mapping[str, Ended]] = lambda process: {},
                 heartbeat: Heartbeat | None = None) -> None:
        self.folder, self._done_by = Path(folder), done_by
        self.heartbeat = heartbeat or Heartbeat(self.folder)
        self.held: dict[str, Lease] = {}
        self.ended: dict[str, Ended] = {}
        """Leases of other processes that ended since this one began."""
        self.forfeited: dict[str, float] = {}
        """Dollars that requests of those who died may cost although no answer came, as far as the
        log goes back: who begins later must keep to the same ceiling."""
        self._mutex = threading.RLock()          # of who reads or writes the log
        self._state = threading.RLock()          # of what is known, never held while that lasts
        self._taken_as = self.heartbeat.id
        self._news: dict[str, Any] = {}
        self._owes = False
        """Whether the log says what was spent for nothing: then it stays."""
        self._alone: Callable[[], Any] | None = None       # gives up being the only one
        self._position, self._synced = 0, clock()
        self._load()

    def __enter__(self) -> Leases:
        self.heartbeat.start(self.renew)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with self._mutex:
                self.release(list(self.held))
                if not self.is_lost():
                    self._flush()
                    if not (self._owes or self.heartbeat.others()):
                        self._remove_before(self._position)
        finally:
            self.heartbeat.stop()
            if self._alone is not None:
                self._alone()

    def take(self, wanted: Iterable[str] | Mapping[str, float], choose: Callable[
            [Mapping[str, float]], Mapping[str, float]] = lambda free: free) -> set[str]:
        """Those of `wanted` (with the dollars each may cost) that are this process's now.

        `choose` picks among the free ones, and of their dollars, knowing all that others hold and
        spent. Raises UserError if this process stood still for so long that others took its leases.
        """
        costs = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted, 0.0)
        with self._mutex:
            while True:
                self._sync()
                dead = self._dead({self.held[name].by for name in costs if name in self.held})
                found = self._left_by(dead)
                with self._state:
                    chosen = choose({name: usd for name, usd in costs.items()
                                     if name not in found and self.is_free(name, dead)})
                record: dict[str, Any] = {"take": chosen} if chosen else {}
                record |= {"dead": sorted(dead), "found": found} if dead else {}
                if not (record or self._news) or self._publish(record):
                    for name in dead:
                        self.heartbeat.bury(name)
                    return {name for name in costs if self.is_mine(name)}

    def shared(self, batches: Iterable[Mapping[str, T]]) -> Iterator[list[T]]:
        """Yield what this process is to do of each batch of things by name, and ends before the
        next; returns when others have ended theirs. What the dead left is done here."""
        waiting = [dict(batch) for batch in batches]
        while waiting:
            left, idle = [], True
            for batch in waiting:
                if mine := self.take(list(batch)):
                    idle = False
                    yield [thing for name, thing in batch.items() if name in mine]
                others = {name: thing for name, thing in batch.items()
                          if name not in mine and name not in self.ended}
                left += [others] if others else []
            waiting = left
            if waiting and idle:
                time.sleep(LOOK_SECONDS)

    def renew(self) -> None:
        """Tell others what ended and read what they did; the heartbeat's thread calls it."""
        with self._mutex, suppress(OSError, UserError):      # the next take says so
            if not self.is_lost():
                self._flush()

    def end(self, name: str, *, stored: bool, usd: float = 0.0) -> None:
        """End a lease for good, after its row is stored: no one else shall ask for it."""
        with self._state:
            self.held.pop(name, None)
            self._news.setdefault("end", {})[name] = [stored, usd]

    def release(self, names: Iterable[str] | Mapping[str, float]) -> None:
        """Give leases back, with the dollars each may have cost for nothing: others may ask."""
        costs = names if isinstance(names, Mapping) else dict.fromkeys(names, 0.0)
        with self._state:
            for name in list(filter(self.is_mine, costs)):
                self._owes |= costs[name] > 0
                del self.held[name]
                self._news.setdefault("free", {})[name] = costs[name]

    def is_lost(self) -> bool:
        """Whether others took this process for dead, and its leases over."""
        return self.heartbeat.is_lost() or self.heartbeat.id != self._taken_as

    def check_held(self, what: object) -> None:
        """Raise LockedError if others took this process for dead while it made `what`."""
        if self.is_lost():
            raise LockedError("this process stood still for so long that another took over "
                              f"{what}; --wait waits for it")

    def is_mine(self, name: str) -> bool:
        lease = self.held.get(name)
        return lease is not None and lease.by == self._taken_as

    def is_free(self, name: str, dead: Collection[str] = ()) -> bool:
        """Whether nobody but this process or one of `dead` holds `name`."""
        if name in self.ended:
            return False
        lease = self.held.get(name)
        return lease is None or lease.by == self._taken_as or lease.by in dead

    def _left_by(self, dead: Iterable[str]) -> dict[str, Ended]:
        """What one of `dead` held and did, but did not come to say so."""
        return {name: end for one in dead for name, end in self._done_by(one).items()
                if name in self.held and self.held[name].by == one}

    def _dead(self, holders: Iterable[str]) -> set[str]:
        return {name for name in holders if not self.heartbeat.alive(name)}

    def _flush(self) -> None:
        self._sync()
        while self._news and not self._publish({}):
            self._sync()

    def _publish(self, record: Mapping[str, Any]) -> bool:
        """Publish `record` and the news as the next change; return False if another was first."""
        number = self._position + 1
        with self._state:
            news, self._news = self._news, {}
            record = {"by": self._taken_as, **record, **news}
            text = json.dumps(record | ({"held": self.held, "forfeited": self.forfeited}
                                          if number % SNAPSHOT == 0 else {}))
        made = False
        try:
            self._secure()
            made = self._alone is not None or self._link(number, text)
        finally:
            if not made:
                with self._state:
                    for kind, names in news.items():
                        self._news[kind] = {**names, **self._news.get(kind, {})}
        if not made:
            return False
        self._apply(record)
        self._position = number
        if number % SNAPSHOT == 0:
            self._remove_before(number - KEPT)
        return True

    def _secure(self) -> None:
        """Bring where others find it what they are about to be told is stored."""

    def _link(self, number: int, text: str) -> bool:
        own = self.folder / f"{self.heartbeat.id}.record"
        own.write_text(text, encoding="utf-8")
        try:
            os.link(own, self._path(number))
        except FileExistsError:
            return own.stat().st_nlink > 1       # ours, and NFS lost the first reply
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            self._keep_alone()
        finally:
            own.unlink(missing_ok=True)
        return True

    def _keep_alone(self) -> None:
        """Lock the folder, so that one process at a time has all leases, without hard links."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "alone.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise LockedError(
                f"the file system of {self.folder} has no hard links, by which runs share their "
                "work, and another run is at work there; wait until it ends, or move the folder to "
                "a file system that has them") from None
        except OSError as error:
            raise UserError(
                f"the file system of {self.folder} has neither hard links nor locks "
                f"({error.strerror}), so two runs could do the same unawares; set "
                "runtime.artifacts and runtime.traces to folders on one that has either") from None
        self._alone = lock.release

    def _load(self) -> None:
        """Read from the newest change that holds all leases."""
        numbers = self._numbers()
        start = max((one for one in numbers if one % SNAPSHOT == 0), default=0)
        for number in numbers:
            if number >= start:
                self._read(number)
        self.ended.clear()

    def _sync(self) -> None:
        """Read the changes that others made. Raises UserError if this process missed some."""
        now = clock()
        if now - self._synced > BEAT and max(self._numbers(), default=0) > self._position \
                and self._text(self._position + 1) is None:
            self.heartbeat.lost = True
        self._synced = now
        if self.is_lost():
            raise UserError(f"this run stood still for so long that others took over its work "
                            f"({self.folder}); what came is kept, and the same command goes on")
        while self._alone is None and self._read(self._position + 1):
            pass

    def _read(self, number: int) -> bool:
        """Read and apply change `number`; return False if no process has written it."""
        if (text := self._text(number)) is None:
            return False
        with suppress(ValueError):       # cut off by a power failure, and its leases with it
            self._apply(json.loads(text))
        self._position = number
        return True

    def _text(self, number: int) -> str | None:
        try:
            return self._path(number).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _apply(self, record: Mapping[str, Any]) -> None:
        with self._state:
            self._change(record)

    def _change(self, record: Mapping[str, Any]) -> None:
        by = record["by"]
        if "held" in record:
            self.held = {name: Lease(*lease) for name, lease in record["held"].items()}
            for name, usd in record.get("forfeited", {}).items():
                self._forfeit(name, max(usd - self.forfeited.get(name, 0.0), 0.0))
        for name, ended in record.get("found", {}).items():
            if self.held.pop(name, None):
                self.ended[name] = Ended(*ended)
        if dead := record.get("dead"):
            self.heartbeat.lost |= self.heartbeat.id in dead
            for name in [name for name, lease in self.held.items() if lease.by in dead]:
                self._forfeit(name, self.held.pop(name).usd)
        for name, usd in record.get("free", {}).items():
            if name in self.held and self.held[name].by == by:
                del self.held[name]
            if by != self._taken_as:
                self._forfeit(name, usd)
        for name, ended in record.get("end", {}).items():
            self.held.pop(name, None)
            if by != self._taken_as:
                self.ended[name] = Ended(*ended)
        self.held.update({name: Lease(by, usd) for name, usd in record.get("take", {}).items()})

    def _forfeit(self, name: str, usd: float) -> None:
        if usd:
            self._owes = True
            self.forfeited[name] = self.forfeited.get(name, 0.0) + usd

    def _numbers(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def _remove_before(self, number: int) -> None:
        for one in self._numbers():
            if one < number:
                self._path(one).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:012d}"
