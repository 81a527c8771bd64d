"""Shared by the tests: the command as a user runs it, and where the given data lie."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
PATIENCE = 200
"""Seconds that a test waits for a process, however busy the machine is, before it fails."""


def until(condition, seconds=PATIENCE):
    """Wait until `condition` holds; fails if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# The same examples every time, however busy the machine: a failure is never luck.
settings.register_profile("same", deadline=None, derandomize=True,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


def pytest_configure(config):
    # A shell's background job ignores Ctrl-C, and so would every process that a test starts.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def limbeck(tmp_path):
    """Run a limbeck command in an empty folder; returns the finished process."""
    def run(*arguments, code=0, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "stages", *map(str, arguments)], cwd=tmp_path, text=True,
            capture_output=True, check=False, timeout=280,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment})
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def shared():
    """The folder of given data and cases beside the checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder `shared` with problem sets and cases beside the checkout")
    return SHARED
