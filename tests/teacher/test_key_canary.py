"""The API key is in no output, no file and no command line, whatever the endpoint does with it."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import polars as pl
import pytest

from pipeline.errors import UserError
from stages import __main__ as cli
from stages.graph import STAGES
from tests.conftest import PATIENCE
from tests.fault_server import Answer, FaultServer, completion

ROOT = Path(__file__).parents[2]
CANARY = "sk-canary/7f3a9+Zq0Jx=="
FORMS = [CANARY, quote(CANARY, safe=""), quote(CANARY, safe="").lower(),
         *(base64.b64encode(bytes(offset) + CANARY.encode()).decode()[4:24] for offset in range(3)),
         CANARY[:12]]
"""Plain, URL-quoted, in base64 at every offset, and a piece of it."""


def echoed(call):
    """The key as a careless server may say it back."""
    header = call.headers.get("authorization", "")
    return " ".join([header, quote(header, safe=""), base64.b64encode(header.encode()).decode()])


def works(call):
    a, b = map(int, re.search(r"(\d+) plus (\d+)", call.question).groups()) \
        if "plus" in call.question else (17, 25)
    said = f"I was asked with {echoed(call)}."
    return Answer(completion(f"The sum is \\boxed{{{a + b}}}.", reasoning_content=said))


def refuses(call):
    return Answer(("no " * call.number + echoed(call)).encode(), 401)


def garbles(call):
    """What no HTTP library reads, with the key in all of it."""
    header = {"Content-Encoding": "gzip", "X-Echo": echoed(call), f"bad {CANARY}": "x"}
    body = ("x" * (190 - call.number) + echoed(call)).encode()
    return [Answer(body, "abc " + CANARY), Answer(body, headers=header), Answer(body, 500),
            Answer(b'{"error": {"message": "%s"}}' % body, 400)][call.number % 4]


ENDPOINTS = {"works": works, "refuses": refuses, "garbles": garbles}


@contextmanager
def command_lines():
    """Every command line that any process has meanwhile."""
    seen, done = set(), threading.Event()

    def watch():
        while not done.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes().decode("latin-1"))
                except OSError:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def written(folder):
    """Everything under `folder` as text, tables decoded; the key's own file left out."""
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "key":
            yield path.read_bytes().decode("latin-1")
            if path.suffix == ".parquet":
                yield str(pl.read_parquet(path).to_dicts())


def assert_no_key(*texts):
    for text in texts:
        for form in FORMS:
            place = text.find(form)
            assert place < 0, text[max(0, place - 200):place + 100]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder with twelve sums, the key in a file, and no key in the environment."""
    sums = [{"id": f"s{i}", "problem": f"What is {i} plus {i * i}?", "answer": str(i + i * i)}
            for i in range(2, 14)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    (tmp_path / "key").write_text(CANARY + "\n")
    monkeypatch.chdir(tmp_path)
    for name in ("LIMBECK_API_KEY", "DEEPSEEK_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def settings(url, where):
    small = {"prepare": {"problems": "sums.jsonl", "held_out": 2, "limit": None},
             "generate": {"teacher": {"type": "openai", "model": "m"}, "samples": 2,
                          "sampling": {"max_tokens": 64}},
             "student": {"tiny": {"layers": 1, "width": 16, "heads": 2, "vocabulary": 400}},
             "sft": {"trainer": {"max_steps": 1}, "held_out": 0},
             "rl": {"trainer": {"max_steps": 1, "num_generations": 2, "max_completion_length": 4,
                                "per_device_train_batch_size": 2}},
             "evaluate": {"models": ["untrained", "teacher"], "samples": 1,
                          "sampling": {"max_tokens": 4}},
             "runtime": {"judge_workers": 1, "teacher": {
                 "base_url": url, "max_attempts": 2, "max_wait": 0.05,
                 **({"key_file": "key"} if where == "file" else {})}}}
    Path("mine.yaml").write_text(json.dumps(small))
    return ["-c", "mine.yaml"]


def limbeck(monkeypatch, capfd, *arguments):
    """Output and error of a command, with the traceback where it raises; run in this process."""
    monkeypatch.setattr(sys, "argv", ["limbeck", *arguments])
    raised = ""
    try:
        cli.main()
    except SystemExit:
        pass
    except (UserError, ArithmeticError):  # the interpreter would print it
        raised = traceback.format_exc()
    return "".join(capfd.readouterr()) + raised


def commands(url, key_file):
    """Every command that may meet the endpoint or its answers, with --debug and without."""
    stages = [["all"], ["show", "generate"], ["show", "filter"], ["plan"], ["config"], ["audit"],
              ["path", "sft"], ["estimate"], *([stage] for stage in STAGES)]
    probing = ["probe", "m", "--base-url", url, *(["--key-file", "key"] if key_file else [])]
    for command in (["generate"], ["estimate", "--pilot", "2"], ["preview"], *stages):
        yield [*command, "-c", "mine.yaml"]
    for command in (["generate"], ["estimate", "--pilot", "2"], ["preview"], ["config"]):
        yield [*command, "-c", "mine.yaml", "--debug"]
    yield from (probing, [*probing, "--debug"], ["doctor", str(Path("none").resolve())],
                ["--help"], ["judge", "answers.jsonl"], ["generate", "--help"],
                *([] if key_file else [["judge", "answers.jsonl", "--llm-url", url, "--llm-model",
                                        "m"]]))


@pytest.mark.parametrize(("endpoint", "where"), [
    ("works", "file"), ("refuses", "environment"), ("garbles", "environment")])
def test_no_command_shows_or_writes_the_key(endpoint, where, home, monkeypatch, capfd):
    answer = {"prediction": "\\text{it is a triangle with two sides alike}",
              "gold": "the triangle is isosceles"}              # which the rules leave to a model
    (home / "answers.jsonl").write_text(json.dumps(answer) + "\n")
    if where == "environment":
        monkeypatch.setenv("LIMBECK_API_KEY", CANARY)
    server = FaultServer(ENDPOINTS[endpoint])
    with server.running() as url, command_lines() as seen:
        settings(url, where)
        for command in commands(url, where == "file"):
            assert_no_key(limbeck(monkeypatch, capfd, *command))
    assert server.calls
    assert all(call.headers["authorization"] == f"Bearer {CANARY}" for call in server.calls)
    assert_no_key(*seen, *written(home))
    assert bool(list(home.glob("data/artifacts/report-*/report.html"))) == (endpoint == "works")
    assert where == "file" or any("answer 2" in call.question for call in server.calls)
    assert "[key]" in "".join(written(home)), "the endpoint was meant to say it back"


def test_a_client_that_crashes_does_not_show_the_key(home, monkeypatch, capfd):
    from pipeline.teacher import client

    monkeypatch.setenv("LIMBECK_API_KEY", CANARY)
    monkeypatch.setattr(client, "read_body", lambda text, prompt_opens_thinking: 1 / 0)
    with FaultServer(works).running() as url:
        settings(url, "environment")
        said = limbeck(monkeypatch, capfd, "generate", "-c", "mine.yaml", "--debug")
    assert "ZeroDivisionError" in said
    assert_no_key(said, *written(home))


@pytest.mark.parametrize("key", [CANARY + "\nsecond line", CANARY + "\N{BULLET}"])
def test_a_key_that_no_header_holds_is_refused_unseen(key, home, monkeypatch, capfd):
    (home / "key").write_text(key)
    with FaultServer(works).running() as url:
        settings(url, "file")
        for command in (["generate"], ["generate", "--debug"], ["estimate", "--pilot", "2"]):
            said = limbeck(monkeypatch, capfd, *command, "-c", "mine.yaml")
            assert "one line of printable ASCII" in said
            assert_no_key(said)


def test_a_process_that_dies_while_it_asks_does_not_show_the_key(home):
    server = FaultServer(lambda call: Answer(works(call).body, delay=30))
    noisy = {"OPENAI_LOG": "debug", "PYTHONFAULTHANDLER": "1", "PYTHONASYNCIODEBUG": "1"}
    with server.running() as url, command_lines() as seen:
        settings(url, "environment")
        process = subprocess.Popen(
            [sys.executable, "-m", "stages", "generate", "-c", "mine.yaml", "--debug"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **noisy, "PYTHONPATH": str(ROOT), "LIMBECK_API_KEY": CANARY})
        while not server.calls:
            assert process.poll() is None, process.stdout.read()
        process.send_signal(signal.SIGABRT)
        said = process.communicate(timeout=PATIENCE)[0]
    assert "Fatal Python error" in said and any("generate" in line for line in seen)
    assert_no_key(said, *seen, *written(home))
