"""Which processes of a shared folder are alive: each touches a file of its own.

No two machines' clocks are compared. On one machine a lock on that file tells at once whether its
process lives; of another machine's process it counts that the file stood still during so many of
the observer's own heartbeats, which a hanging file server stops as well.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

BEAT = 5.0
"""Seconds between two heartbeats."""
MISSED = 12
"""Heartbeats of an observer without one of the observed, after which that is dead."""
ABANDONED = 3600.0
"""Seconds that a file is older than the observer's newest, both by the file server's clock, after
which its process is dead without being observed."""


@lru_cache
def machine() -> str:
    """A name of this machine since it was started."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:                      # not Linux
        boot = socket.gethostname().encode()
    return f"{zlib.crc32(boot):08x}"


def clock() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Heartbeat:
    """This process as others see it, in FOLDER/HOST.MACHINE.PID.RANDOM.alive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[int, int]] = {}      # time of the file, beats since then
        self._watched: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._file = -1
        self.renew()

    def renew(self) -> None:
        """Become another process to the others. Raises OSError if the folder cannot be written."""
        host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:24] or "host"
        self._let_go()
        self.id = f"{host}.{machine()}.{os.getpid()}.{secrets.token_hex(4)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        hidden = self.path(self.id).with_suffix(".new")     # until it is locked
        self._file = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        with suppress(OSError):          # a file system without locks: beats are counted
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(self.path(self.id))
        self.lost, self._last = False, clock()

    def start(self, work: Callable[[], None] = lambda: None) -> None:
        """Beat in a thread, and do `work` after each beat."""
        def run() -> None:
            while not self._stop.wait(BEAT):
                self.beat()
                work()

        self._thread = threading.Thread(target=run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Be dead to the others."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.path(self.id).unlink(missing_ok=True)
        self._let_go()

    def beat(self) -> None:
        """Touch the file, and look at those that are watched."""
        try:
            os.utime(self.path(self.id))        # without a time: the file server's own
        except FileNotFoundError:        # stood still for so long that others took it for dead
            self.lost = True
            return
        except OSError:                  # a file server that hangs: neither side counts
            return
        self._last = clock()
        for name in list(self._watched):
            self._look(name)

    def is_lost(self) -> bool:
        """Whether others took this process for dead, as they may after it stood still."""
        if not self.lost and clock() - self._last > BEAT * MISSED / 2:
            self.beat()
        return self.lost

    def alive(self, name: str) -> bool:
        """Whether the process `name` lives as far as is known; it is watched from now on."""
        if name == self.id:
            return True
        if name not in self._watched:
            self._watched.add(name)
            self._look(name)
        missed = self._seen.get(name, (0, MISSED))[1]
        if missed < MISSED and self._same_machine(name) and self._unlocked(name):
            missed = MISSED
        return missed < MISSED

    def bury(self, name: str) -> None:
        """Remove the files of a dead process, which tells it so if it lives after all."""
        for path in self.folder.glob(f"{name}.*"):
            path.unlink(missing_ok=True)
        self._watched.discard(name)
        self._seen.pop(name, None)

    def others(self) -> list[str]:
        """Names of all other processes with a file, dead or alive."""
        names = sorted(path.name.removesuffix(".alive") for path in self.folder.glob("*.alive"))
        return [name for name in names if name != self.id]

    def _look(self, name: str) -> None:
        """Count a beat of ours without one of theirs."""
        try:
            with self.path(name).open("rb") as file:    # opened, lest NFS gives an old time
                touched = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            self._seen.pop(name, None)
            return
        except OSError:                  # as in beat
            return
        before, missed = self._seen.get(name, (touched, -1))
        self._seen[name] = touched, missed + 1 if before == touched else 0
        if os.fstat(self._file).st_mtime_ns - touched > ABANDONED * 1e9:
            self._seen[name] = touched, MISSED

    def _same_machine(self, name: str) -> bool:
        return name.split(".")[1:2] == [machine()]

    def _unlocked(self, name: str) -> bool:
        """Whether the lock that a living process of this machine holds is free."""
        try:
            file = os.open(self.path(name), os.O_RDWR)
        except OSError:
            return not self.path(name).exists()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(file)
        return True

    def path(self, name: str) -> Path:
        """The file that the process `name` touches."""
        return self.folder / f"{name}.alive"

    def where(self, name: str) -> str:
        """What to delete if the process `name` is dead and its machine with it."""
        return str(self.path(name))

    def _let_go(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
