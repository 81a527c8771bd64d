"""Bubblewrap boxes for code that nobody has read: no network, no files, no host processes.

The box sees the system's libraries and this Python read-only, a small /tmp of its own, and nothing
of the environment. Started as root it becomes another, unprivileged user for each run; otherwise it
lives in a user namespace that may not be nested. Memory of the whole box is watched from outside.
Raises SandboxMissingError if no box can be made; code is never run without one.
"""

from __future__ import annotations

import itertools
import json
import marshal
import os
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import UserError
from pipeline.judge.code.seccomp import open_filter

_START = "import marshal,sys;exec(marshal.loads(bytes.fromhex(sys.argv.pop(1))))"
_UIDS = itertools.cycle(range(61_000, 64_000))
WATCH_SECONDS = 0.01


class SandboxMissingError(UserError):
    """No sandbox works on this machine; the message says why and what to install."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one box: wall seconds, memory with all children, processes, files, output."""

    seconds: float = 10.0
    memory_mb: int = 512
    processes: int = 24
    file_mb: int = 32
    output_kb: int = 1024


@dataclass(frozen=True)
class Run:
    """The output of a program, and how it ended (exit, timeout, memory, output)."""

    output: str
    ended: str
    code: int | None


def command(role: str, limits: Limits, seccomp: int | None = None) -> list[str]:
    """The bwrap command line of one box."""
    root = os.getuid() == 0
    size = str(limits.file_mb << 20)
    binds = [flag for path in ("/usr", "/lib", "/lib64", "/bin")
             for flag in (_link(path) if Path(path).exists() else [])]
    if not sys.base_prefix.startswith("/usr"):
        binds += ["--perms", "0755", "--dir", "/opt", "--ro-bind", sys.base_prefix, "/opt/python"]
    here = Path(sys.executable).resolve()
    python = str(Path("/opt/python") / here.relative_to(sys.base_prefix)) \
        if "/opt/python" in binds else str(here)
    user = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root \
        else ["--unshare-user", "--disable-userns"]
    calls = [] if seccomp is None else ["--seccomp", str(seccomp)]
    return [shutil.which("bwrap") or "bwrap", *user, *calls, "--unshare-pid", "--unshare-net",
            "--unshare-ipc", "--unshare-uts",
            "--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv",
            "--hostname", "box", *binds, "--proc", "/proc", "--dev", "/dev",
            "--size", "65536", "--perms", "1777", "--tmpfs", "/dev/shm",
            "--size", size, "--perms", "1777", "--tmpfs", "/tmp",
            "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--",
            python, "-I", "-S", "-B", "-c", _START, _program(), role,
            str(next(_UIDS)), str(limits.memory_mb << 20), str(limits.processes), size,
            str(int(limits.seconds) + 1)]


@lru_cache(maxsize=1)
def _program() -> str:
    """box_main.py compiled: the box runs this very Python, and compiling would cost it 5 ms."""
    text = Path(__file__).with_name("box_main.py").read_text(encoding="utf-8")
    return marshal.dumps(compile(text, "box_main.py", "exec")).hex()


def _link(path: str) -> list[str]:
    target = Path(path)
    if target.is_symlink():
        return ["--symlink", str(target.readlink()), path]
    return ["--ro-bind", path, path]


class Box:
    """One running box that speaks JSON lines; killed at its deadline or when it grows too large."""

    def __init__(self, role: str, request: dict[str, Any], limits: Limits) -> None:
        self.limits, self.ended = limits, ""
        self.deadline = time.monotonic() + limits.seconds
        seccomp = open_filter()
        held = () if seccomp is None else (seccomp,)
        try:
            self.process = subprocess.Popen(
                command(role, limits, seccomp), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env={}, start_new_session=True, pass_fds=held)
        finally:
            for descriptor in held:
                os.close(descriptor)
        assert self.process.stdin and self.process.stdout
        self.buffer = b""
        self._write(marshal.dumps(request).hex())

    def __enter__(self) -> Box:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.kill()

    def send(self, message: dict[str, Any]) -> None:
        """Write one JSON line; a box that has died is found out when it is read."""
        self._write(json.dumps(message))

    def _write(self, line: str) -> None:
        assert self.process.stdin
        data = memoryview(line.encode() + b"\n")
        descriptor = self.process.stdin.fileno()
        os.set_blocking(descriptor, False)
        while data and not self.ended:
            if self.wait(write=True):
                try:
                    data = data[os.write(descriptor, data):]
                except BrokenPipeError:
                    self.ended = "exit"

    def wait(self, write: bool = False) -> bool:
        """Whether the pipe became ready within one watch interval; enforces time and memory."""
        assert self.process.stdin and self.process.stdout
        readers = [] if write else [self.process.stdout]
        writers = [self.process.stdin] if write else []
        ready = any(select.select(readers, writers, [], WATCH_SECONDS))
        if time.monotonic() > self.deadline:
            self.ended = "timeout"
        elif resident(self.process.pid, self.limits.file_mb << 20) > \
                self.limits.memory_mb << 20:
            self.ended = "memory"
        if self.ended:
            self.process.kill()
        return ready and not self.ended

    def read(self) -> bytes:
        """The next piece of output; b"" when the box has ended (see `ended`)."""
        assert self.process.stdout
        while not self.ended:
            if self.wait():
                chunk = os.read(self.process.stdout.fileno(), 1 << 16)
                if not chunk:
                    self.ended = "exit"
                return chunk
        return b""

    def line(self) -> dict[str, Any] | None:
        """The next JSON object; None when the box ended or wrote something else."""
        while b"\n" not in self.buffer:
            chunk = self.read()
            self.buffer += chunk
            if len(self.buffer) > self.limits.output_kb << 10:
                self.ended = "output"
            if self.ended or not chunk:
                return None
        first, _, self.buffer = self.buffer.partition(b"\n")
        try:
            message = json.loads(first)
        except (ValueError, RecursionError):
            return None
        return message if isinstance(message, dict) else None

    def kill(self) -> int:
        """End the box with everything in it (its pid namespace) and return its exit code."""
        if self.ended != "exit":
            self.process.kill()
        code = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()
        return code


def in_files(pid: int, largest: int) -> int:
    """Bytes that files of `pid`'s /tmp and /dev/shm hold in memory; 0 if we may not look.

    What is larger than `largest` is not the box's but the host's, before its root is changed.
    """
    total = 0
    for folder in ("tmp", "dev/shm"):
        try:
            found = os.statvfs(f"/proc/{pid}/root/{folder}")
        except OSError:
            continue
        if found.f_blocks * found.f_frsize <= largest:
            total += (found.f_blocks - found.f_bfree) * found.f_frsize
    return total


def resident(pid: int, files: int = 0) -> int:
    """Bytes in memory of `pid` and all its descendants; of their file systems up to `files`."""
    total, waiting, last = 0, [pid], pid
    page = os.sysconf("SC_PAGE_SIZE")
    while waiting:
        last = waiting.pop()
        process = Path("/proc") / str(last)
        try:
            total += int((process / "statm").read_text().split()[1]) * page
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (OSError, IndexError):
            continue  # it ended while we looked
    inside = last if last != pid else 0
    return total + (in_files(inside, files) if files and inside else 0)


def run(code: str, stdin: str = "", limits: Limits = Limits()) -> Run:
    """Run a program. Raises SandboxMissingError if no box works."""
    probe()
    with Box("script", {"code": code, "input": stdin}, limits) as box:
        output = b""
        while chunk := box.read():
            output += chunk
            if len(output) > limits.output_kb << 10:
                box.ended = "output"
        exit_code = box.kill()
    return Run(output[:limits.output_kb << 10].decode(errors="replace"), box.ended, exit_code)


@lru_cache(maxsize=1)
def probe() -> None:
    """Check once that a box can be made and holds. Raises SandboxMissingError if not."""
    remedy = "code is not judged without one; install bubblewrap (apt-get install bubblewrap) " \
             "and allow it to make namespaces"
    if not shutil.which("bwrap"):
        raise SandboxMissingError(f"no sandbox: bwrap is not installed; {remedy}")
    check = "import os;print(os.getuid()!=0 and not os.path.exists('/etc/passwd') and 'boxed')"
    with Box("script", {"code": check, "input": ""}, Limits(seconds=20)) as box:
        if not box.read().startswith(b"boxed"):
            raise SandboxMissingError("no sandbox: bwrap is installed but cannot make a box; "
                                      f"{remedy}")
