"""Several servers of one teacher: started, asked evenly, outlived and stopped."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from pipeline.config.teacher import OpenAITeacher, Sampling, TeacherRuntime, VllmTeacher
from pipeline.errors import UserError
from pipeline.serving.vllm_server import vllm_servers
from pipeline.teacher import Request, TraceStore, generate
from pipeline.teacher.ask import running_teacher
from pipeline.teacher.balancer import LoadBalancer
from pipeline.teacher.rate_limit import concurrency_limits
from tests.conftest import PATIENCE
from tests.fault_server import Answer, FaultServer, completion
from tests.serving.test_engine_group import gone

TEACHER, SAMPLING = OpenAITeacher(model="m"), Sampling(max_tokens=100)
GOOD = completion("42")
DEAD = ["http://127.0.0.1:9/v1", "http://127.0.0.1:11/v1"]

FAKE_VLLM = """#!{python}
import http.server, json, os, pathlib, sys, time
args, here = sys.argv[1:], pathlib.Path(__file__).parent
(here / f"{{os.getpid()}}.starts").touch()
def count(state): return len(list(here.glob("*." + state)))
print("pid", os.getpid(), args, flush=True)
if "--fail-as" in args and count("starts") == int(args[args.index("--fail-as") + 1]):
    sys.exit("ValueError: no such kernel")
if "--kv-cache-memory-bytes" in args:
    while count("starts") < 2: time.sleep(0.05)
elif count("starts") > count("wells") + 1:
    sys.exit("ValueError: No available memory for the cache blocks.")
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        (here / f"{{os.getpid()}}.wells").touch()
        self.reply(b"")
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.05)
        print("asked", flush=True)
        self.reply({good!r})
    def reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
time.sleep(0.3)
port = int(args[args.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Puts a stand-in for `vllm` on the path that refuses to measure memory beside another."""
    path = tmp_path / "bin" / "vllm"
    path.parent.mkdir()
    path.write_text(FAKE_VLLM.format(python=sys.executable, good=GOOD))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return tmp_path / "vllm.log"


def said(log, number):
    return log.with_name(f"vllm-{number}.log").read_text()


def pids(log, count=2):
    return [int(re.search(r"pid (\d+)", said(log, i + 1))[1]) for i in range(count)]


def questions(count):
    return [Request(f"p{i}", 0, [{"role": "user", "content": f"question {i}"}])
            for i in range(count)]


def ask(folder, runtime, count=20, teacher=TEACHER, on_progress=None):
    """(outcome, traces) of asking for `count` traces."""
    with TraceStore(folder) as store:
        outcome = generate(questions(count), teacher=teacher, sampling=SAMPLING, runtime=runtime,
                           store=store, on_progress=on_progress)
        return outcome, len(store.collect(questions(count), teacher, SAMPLING))


def of_the_stage(log, **teacher):
    """(teacher, what reaches it) as the stage does."""
    made = VllmTeacher(model="m", servers=2, **teacher)
    runtime = SimpleNamespace(teacher=TeacherRuntime(max_wait=0.2, concurrency=8),
                              traces=log.parent)
    return made, running_teacher(made, runtime)


def test_both_servers_work_and_are_stopped(log):
    teacher, there = of_the_stage(log, vllm={"max_model_len": 64})
    with there as runtime:
        outcome, traces = ask(log.parent / "store", runtime, 40, teacher)
    assert traces == 40 and outcome.retries == 0 and not outcome.notes
    shares = [said(log, number).count("asked") for number in (1, 2)]
    assert sum(shares) == 40 and min(shares) >= 10
    assert all(gone(pid) for pid in pids(log))
    for text in (said(log, 1), said(log, 2)):
        assert "'--data-parallel-size', '2'" in text and "'--max-model-len', '64'" in text


@pytest.mark.parametrize(("options", "count", "share"), [
    ({"gpu_memory_utilization": 0.6}, 3, "0.2"), ({"gpu_memory_utilization": 0.8}, 1, "0.8"),
    ({}, 1, None), ({"kv_cache_memory_bytes": 1 << 30}, 2, "0.01"),
    ({"kv_cache_memory_bytes": 1 << 30, "gpu_memory_utilization": 0.5}, 2, "0.25")])
def test_memory_is_divided_and_servers_that_measure_it_start_one_by_one(log, options, count, share):
    with vllm_servers("m", options, count, log=log, timeout=PATIENCE) as urls:
        assert len(set(urls)) == count
    texts = [log.read_text()] if count == 1 else [said(log, i + 1) for i in range(count)]
    found = [re.findall(r"'--gpu-memory-utilization', '([^']*)'", text) for text in texts]
    assert found == [[share] if share else []] * count


def test_the_first_server_ends_where_the_second_does_not_start(log):
    with (pytest.raises(UserError, match="no such kernel"),
          vllm_servers("m", {"fail_as": 2}, 2, log=log, timeout=PATIENCE)):
        pass
    assert all(gone(pid) for pid in pids(log))


def test_memory_that_cannot_be_divided_is_one_sentence(log):
    with (pytest.raises(UserError, match="gpu_memory_utilization='much' is not a number"),
          vllm_servers("m", {"gpu_memory_utilization": "much"}, 2, log=log)):
        pass


def test_all_servers_end_with_a_parent_that_is_killed(log):
    program = ("from pathlib import Path; import time\n"
               "from pipeline.serving.vllm_server import vllm_servers\n"
               f"with vllm_servers('m', {{}}, 2, log=Path({str(log)!r})) as urls:\n"
               "    print('up', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
                          cwd=Path(__file__).parents[2]) as process:
        assert process.stdout.readline() == "up\n"
        process.kill()
    assert all(gone(pid) for pid in pids(log))


def test_the_requests_of_a_server_that_dies_go_to_the_other(log):
    teacher, there = of_the_stage(log)
    done = []

    def kill_one(steps, **_):
        done.append(steps)
        if len(done) == 5:
            os.kill(pids(log)[0], signal.SIGKILL)

    with there as runtime:
        outcome, traces = ask(log.parent / "store", runtime, 60, teacher, kill_one)
    assert traces == 60 and outcome.failed == 0 and outcome.retries > 0
    port = re.search(r"'--port', '(\d+)'", said(log, 1))[1]
    assert [note for note in outcome.notes if f":{port} " in note] == outcome.notes != []


def test_a_server_that_was_never_there_costs_no_trace(tmp_path):
    server = FaultServer(lambda _: Answer(GOOD, delay=0.01))
    with server.running() as url:
        runtime = TeacherRuntime(base_url=DEAD[0], mirrors=[url], max_wait=0.05, concurrency=32)
        outcome, traces = ask(tmp_path, runtime, 200, VllmTeacher(model="m"))
    assert traces == 200 and outcome.failed == 0 and len(outcome.notes) == 1


def test_a_server_that_fails_fast_does_not_draw_all_requests(tmp_path):
    ill, well = FaultServer(lambda _: Answer(b"", 500)), FaultServer(
        lambda _: Answer(GOOD, delay=0.02))
    with ill.running() as first, well.running() as second:
        outcome, traces = ask(tmp_path, TeacherRuntime(base_url=first, mirrors=[second], n=1,
                                                       max_wait=0.05, concurrency=4), 100)
    assert traces == 100 and outcome.failed == 0 and len(ill.calls) <= 4


@pytest.mark.parametrize(("teacher", "remedy"), [
    (TEACHER, "; check that it runs and that runtime.teacher.base_url is right"),
    (VllmTeacher(model="m"), r"; see vllm\*.log in runtime.traces; if you serve it yourself, ")])
def test_servers_that_are_all_dead_end_the_run_with_one_sentence(teacher, remedy, tmp_path):
    with pytest.raises(UserError, match=re.escape(", ".join(DEAD)) + ".*" + remedy):
        ask(tmp_path, TeacherRuntime(base_url=DEAD[0], mirrors=DEAD[1:]), 500, teacher)


def test_no_server_idles_while_another_queues(tmp_path):
    slow, fast = FaultServer(lambda _: Answer(GOOD, delay=0.6)), FaultServer(
        lambda _: Answer(GOOD, delay=0.01))
    with slow.running() as first, fast.running() as second:
        _, traces = ask(tmp_path, TeacherRuntime(base_url=first, mirrors=[second], concurrency=2))
    assert traces == 20 == len(slow.calls) + len(fast.calls)
    assert slow.most_in_flight == 1 == fast.most_in_flight


def test_a_free_request_goes_where_the_fewest_samples_are_in_flight():
    balancer = LoadBalancer(["http://a/v1", "http://b/v1/"])
    with balancer.least_busy(8) as first, balancer.least_busy(3) as second:
        assert {str(first.url), str(second.url)} == {
            "http://a/v1/chat/completions", "http://b/v1/chat/completions"}
        with balancer.least_busy(4) as third, balancer.least_busy(2) as fourth:
            assert third is fourth is second
            with balancer.least_busy(1) as fifth:
                assert fifth is first
    assert first.in_flight == second.in_flight == 0


def test_a_server_that_lets_time_run_out_comes_last_too():
    balancer = LoadBalancer(["http://a/v1", "http://b/v1"])

    async def hang():
        async with asyncio.timeout(0.01):
            with balancer.least_busy(1):
                await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        asyncio.run(hang())
    with balancer.least_busy(1) as server:
        assert server.url.host == "b"


def test_a_server_that_failed_comes_last_until_its_time_is_over_or_it_answers(monkeypatch):
    balancer = LoadBalancer(["http://a/v1", "http://b/v1"])
    with pytest.raises(ConnectionError), balancer.least_busy(1) as ill:
        raise ConnectionError
    with balancer.least_busy(1) as well, balancer.least_busy(1) as again:
        assert well is again is not ill and balancer.notes() and not balancer.all_failed()
        later = time.monotonic() + 60
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.teacher.balancer.time.monotonic", lambda: later)
            with balancer.least_busy(1) as tried:
                assert tried is ill
    assert not balancer.notes()


@pytest.mark.parametrize(("options", "gpus", "samples", "wanted"), [
    ({}, "0", 1, 2048), ({"max_num_seqs": 64}, "0", 1, 160), ({"max_num_seqs": 64}, "0", 4, 40),
    ({"max_num_seqs": 64}, "0,1", 1, 320),
    ({"max_num_seqs": 64, "tensor_parallel_size": 2}, "0,1", 1, 160)])
def test_requests_in_flight_keep_the_queue_of_every_engine_filled(options, gpus, samples, wanted,
                                                                  monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    runtime = TeacherRuntime(base_url="http://a/v1", mirrors=["http://b/v1"])
    teacher = VllmTeacher(model="m", servers=2, vllm=options)
    assert concurrency_limits(teacher, runtime, samples) == (wanted, wanted)
    five = runtime.model_copy(update={"concurrency": 5})
    assert concurrency_limits(teacher, five, samples) == (5, 5)


def test_the_number_of_servers_is_not_part_of_the_key():
    assert VllmTeacher(model="m", servers=4).identity() == VllmTeacher(model="m").identity()


def test_a_hosts_key_is_not_sent_to_mirrors_elsewhere(monkeypatch):
    monkeypatch.delenv("LIMBECK_API_KEY", raising=False)
    monkeypatch.setenv("DEEPSEEK_API_KEY", "canary")
    home, elsewhere = "https://api.deepseek.com/v1", "https://notdeepseek.com/v1"
    for mirrors, key in (([home], "canary"), ([elsewhere], "")):
        runtime = TeacherRuntime(base_url=home, mirrors=mirrors)
        assert runtime.api_key().get_secret_value() == key
    with pytest.raises(ValidationError, match="base_url"):
        TeacherRuntime(mirrors=[home])
