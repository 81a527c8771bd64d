"""`limbeck chat` on a real terminal, and what it serves, asked by `limbeck probe`."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.config.student import TinyModel
from pipeline.config.teacher import TeacherRuntime
from pipeline.export.chat import served
from pipeline.serving import processes
from pipeline.serving.processes import free_port
from pipeline.student.tiny import save_tiny
from pipeline.student.tokenizer import load_tokenizer
from pipeline.teacher.probe import probe
from tests.conftest import PATIENCE
from tests.student.test_tiny import CORPUS, TEMPLATE
from tests.teacher.test_servers import FAKE_VLLM

CHAT = [sys.executable, "-m", "stages", "chat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    save_tiny(CORPUS, TinyModel(layers=1, width=32, heads=2), TEMPLATE, 0, folder)
    return folder


@pytest.fixture
def endless(folder, tmp_path):
    """A student whose answers do not end: no state of it points to the end-of-turn token."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 10.0
        model.model.embed_tokens.weight[load_tokenizer(str(folder)).eos_token_id, 0] = -1e4
        for layer in model.model.layers:             # no layer changes the first dimension
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
    shutil.copytree(folder, tmp_path / "endless")
    model.save_pretrained(tmp_path / "endless")
    return tmp_path / "endless"


@pytest.fixture(scope="module")
def gguf(folder):
    pytest.importorskip("xllamacpp")
    from pipeline.export.gguf_file import write_gguf

    tokenizer = load_tokenizer(str(folder))
    path = folder.with_name("student.gguf")
    write_gguf(path, AutoModelForCausalLM.from_pretrained(folder), tokenizer, "q8_0",
               name="student", ends=[tokenizer.eos_token_id],
               sampling={"temperature": 0.6, "top_p": 1.0}, lineage={})
    return path


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *command):
        self.pid, self.master = os.forkpty()
        if self.pid == 0:
            os.execvpe(command[0], command, {**os.environ, "TERM": "dumb", "PYTHONPATH": "."})
        self.shown = ""

    def until(self, pattern, press=""):
        """Read until `pattern` is on the screen, with `press` typed in each second without output;
        returns what came since the last call."""
        ends = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < ends, self.shown
            if select.select([self.master], [], [], 1)[0]:
                self.shown += os.read(self.master, 1 << 16).decode(errors="replace")
            elif press:
                self.type(press)
        said, self.shown = self.shown[:found.end()], self.shown[found.end():]
        return said

    def type(self, text):
        os.write(self.master, text.encode())

    def end(self):
        """Wait for the command; returns its status."""
        self.type("\x04")
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.master)
        return status


def test_ctrl_c_on_a_terminal_stops_the_answer_and_the_talk_goes_on(endless):
    talk = Terminal(*CHAT, str(endless), "--max-tokens", "3900", "--temperature", "2")
    talk.until(r"Ctrl-D ends[\s\S]*> ")
    talk.type("1 and 2 make\n")
    talk.until(r"make\r\n[\s\S]{40}")       # an answer is under way
    talk.type("\x03")
    stopped = talk.until(r"\[stopped; [\d,]+ tokens, .* tokens/s\]")
    assert "Traceback" not in stopped and "limbeck:" not in stopped
    talk.until("> ")
    # No answer is under way: help, and no end. Python loses a Ctrl-C between prompt and reading.
    talk.until(r"/fold hides[\s\S]*> ", press="\x03")
    talk.type("/new\n")
    talk.until("> ")
    talk.type("1 and 2 make\n")
    talk.until(r"make\r\n[\s\S]{40}")
    talk.type("\x03")
    assert "Error" not in talk.until(r"\[stopped; [\s\S]*> ")
    assert talk.end() == 0


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_what_chat_serves_passes_the_probe_and_ends_by_ctrl_c(request, tmp_path, kind):
    model, port = request.getfixturevalue(kind), free_port()
    with subprocess.Popen([*CHAT, str(model), "--serve", "--port", str(port)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            line = process.stdout.readline()
            assert f"answers at http://127.0.0.1:{port}/v1" in line, process.stderr.read()
            found = probe(TeacherRuntime(base_url=f"http://127.0.0.1:{port}/v1"), model.name,
                          max_tokens=12)
        finally:
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    assert found.dialect and found.usage and found.streams and found.logprobs
    assert "Traceback" not in said and process.returncode == 130
    with pytest.raises(OSError, match="refused"):
        import socket

        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_vllm_serves_where_there_is_a_gpu_at_the_port_that_is_given(
        folder, tmp_path, monkeypatch):
    command = tmp_path / "bin" / "vllm"
    command.parent.mkdir()
    command.write_text(FAKE_VLLM.format(python=sys.executable, good=b"{}"))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("pipeline.serving.vllm_server.has_vllm", lambda: True)
    monkeypatch.chdir(tmp_path)
    assert processes.gpu_count() == 1
    port = free_port()
    with served(str(folder), str(folder), port=port, host="0.0.0.0",
                vllm={"max_model_len": 64}) as found:
        assert found.url == f"http://127.0.0.1:{port}/v1"
        assert found.opened        # the tiny student's template opens the thinking
    told = (tmp_path / "vllm.log").read_text()
    assert told.count("--port") == told.count("--host") == 1 and "'0.0.0.0'" in told
    assert "'--max-model-len', '64'" in told
