"""A run that is stopped, or may not write, keeps what it has and says one sentence."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_sft

from pipeline.errors import UserError
from pipeline.teacher import TraceStore
from tests.conftest import PATIENCE
from tests.fault_server import Answer, FaultServer, completion
from tests.teacher.test_scheduler import collected, generate_whole, stored_rows
from tests.teacher_run import SAMPLING, TEACHER, requests

ROOT = Path(__file__).parents[2]
ASKED = ("prepare.held_out=0", "prepare.limit=400", "generate.samples=1",
         "generate.teacher={type: openai, model: m}", "runtime.teacher.concurrency=8")


def ignore_ctrl_c():
    """As a shell does for jobs that it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize(("number", "before"), [
    (signal.SIGTERM, None), (signal.SIGTERM, ignore_ctrl_c), (signal.SIGINT, None)])
def test_a_stopped_generate_is_one_sentence_and_asks_only_for_the_rest(number, before, tmp_path,
                                                                       limbeck):
    server = FaultServer(lambda call: Answer(completion("\\boxed{42}"), delay=0.02))
    with server.running() as url:
        arguments = ("generate", *ASKED, f"runtime.teacher.base_url={url}")
        process = subprocess.Popen([sys.executable, "-m", "stages", *arguments], cwd=tmp_path,
                                   text=True, stderr=subprocess.PIPE, preexec_fn=before,
                                   env={**os.environ, "PYTHONPATH": str(ROOT)})
        while len(server.calls) < 60:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate(timeout=PATIENCE)[1]
        store = tmp_path / "data/traces"
        kept, asked = stored_rows(store), len(server.calls)
        assert process.returncode == 130 and "Traceback" not in said
        assert re.findall("^limbeck: .*", said, re.MULTILINE) == [
            "limbeck: stopped; what was finished is kept, the same command goes on"]
        assert asked - 8 <= kept < 400 and not list(store.glob("*.journal"))
        limbeck(*arguments)
    assert stored_rows(store) == 400 and len(server.calls) <= 400 + 8
    assert sum(Counter(call.question for call in server.calls).values()) - 400 == asked - kept


LAUNCH = """
import json, signal, sys
from pipeline.train.launch import launch
from pipeline.config.sft import SftJob
from stages.__main__ import _interrupt
signal.signal(signal.SIGTERM, _interrupt)
launch(SftJob.model_validate_json(sys.argv[1]), "pipeline.sft.trainer", json.loads(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_launch_leaves_no_process_behind(number, tmp_path):
    job = tiny_sft.job(tiny_sft.build(tmp_path / "tiny"), tmp_path / "out", num_train_epochs=9999)

    def trained():
        """The processes that train, by what they were started with."""
        found = subprocess.run(["pgrep", "-f", "--", f"-u -m pipeline.sft.trainer {job.out}"],
                               capture_output=True, text=True, check=False)
        return found.stdout.split()

    command = [sys.executable, "-c", LAUNCH, job.model_dump_json(), json.dumps(tiny_sft.TWO)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, preexec_fn=ignore_ctrl_c,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        try:
            while len(trained()) < 2:
                assert process.poll() is None
                time.sleep(0.2)
        finally:
            process.send_signal(number)
        process.wait(PATIENCE)
    end = time.monotonic() + PATIENCE
    while (left := trained()) and time.monotonic() < end:
        time.sleep(0.2)
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert not left


@contextmanager
def unprivileged():
    """Whatever is done meanwhile is done as an ordinary user."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except PermissionError as error:
        pytest.skip(f"privileges cannot be dropped: {error}")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that every user may read; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_read_only_store_is_read_but_nothing_is_asked_for_it(open_folder):
    store = open_folder / "store"
    server = FaultServer(lambda call: Answer(completion("42")))
    with server.running() as url:
        generate_whole(url, store, 20)
        store.chmod(0o555)
        try:
            with unprivileged():
                assert not os.access(store, os.W_OK, effective_ids=True)
                with pytest.raises(UserError, match=r"trace store .* cannot be written"):
                    generate_whole(url, store, 30)
                assert len(TraceStore(store).missing(requests(30), TEACHER, SAMPLING)) == 10
                assert len(collected(store, 30)) == 20
        finally:
            store.chmod(0o755)
        assert len(server.calls) == 20
        generate_whole(url, store, 30)
    assert len(server.calls) == len(collected(store, 30)) == 30
