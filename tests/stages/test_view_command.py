"""`limbeck view` on the command line: it serves until Ctrl-C, or says why it cannot."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from pipeline.prompts import ROOT
from tests.conftest import PATIENCE


@pytest.fixture
def traces(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps({"problem": "1+1?", "answer": "2", "completion": "\\boxed{2}"}))
    return path


def test_it_serves_a_file_until_ctrl_c_to_this_machine_alone(traces, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "stages", "view", str(traces), "--port", "0"], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", process.stderr.readline())[0]
        token = address.partition("token=")[2]
        asked = urllib.request.Request(f"{address.partition('/?')[0]}/api/traces?source=file:0",
                                       headers={"X-Limbeck-Token": token})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert json.load(answer)["rows"][0]["verdict"] == "correct"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address.partition("/?")[0], timeout=30)
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=PATIENCE)[1]
    finally:
        process.kill()
    assert process.returncode == 0
    assert "ended; every verdict is kept" in rest
    assert "Traceback" not in rest


def test_what_cannot_be_served_is_one_sentence(limbeck, traces):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = limbeck("view", traces, "--port", port, code=2).stderr
    assert f"port {port} cannot be had" in said
    for arguments, sentence in ((("gone.jsonl",), "gone.jsonl does not exist"),
                                ((), "does not exist, so there is nothing to look at"),
                                (("nonsense=1",), "unknown config key")):
        said = limbeck("view", *arguments, code=2).stderr
        assert sentence in said
        assert said.count("\n") == 1
