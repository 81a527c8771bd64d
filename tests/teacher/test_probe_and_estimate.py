"""The vLLM server, the probe and the estimate, each against a stand-in."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipeline.config.experiment import Runtime
from pipeline.config.rl import RlJob
from pipeline.config.teacher import OpenAITeacher, Sampling, TeacherRuntime, VllmTeacher
from pipeline.errors import UserError
from pipeline.serving.processes import gpu_count
from pipeline.serving.vllm_server import flags, rollout_server, vllm_server
from pipeline.teacher import Request, TraceStore
from pipeline.teacher import generate as ask
from pipeline.teacher.answer import Usage
from pipeline.teacher.budget import PRICES, Price, price_of
from pipeline.teacher.estimate import estimate
from pipeline.teacher.outcome import Display, Outcome
from pipeline.teacher.probe import probe
from stages import generate, rl
from tests.fault_server import Answer, FaultServer, completion, stream
from tests.serving.test_engine_group import gone

TEACHER, SAMPLING = OpenAITeacher(model="m"), Sampling(max_tokens=100)

FAKE_VLLM = """#!{python}
import http.server, os, subprocess, sys, time
args = sys.argv[1:]
shown = sorted(k for k in os.environ if "KEY" in k)
print("fake vllm", args, shown, os.environ.get("CUDA_VISIBLE_DEVICES"),
      "dev mode", os.environ.get("VLLM_SERVER_DEV_MODE"), flush=True)
if "--fail" in args:
    print("ValueError: no such model", flush=True)
    sys.exit(3)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("worker", worker.pid, flush=True)
time.sleep(0.5)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if "--sick" in args else 200)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(args[args.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def fake_vllm(tmp_path, monkeypatch):
    path = tmp_path / "bin" / "vllm"
    path.parent.mkdir()
    path.write_text(FAKE_VLLM.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("LIMBECK_API_KEY", "canary")
    return tmp_path / "vllm.log"


def worker_of(log):
    return int(re.search(r"worker (\d+)", log.read_text())[1])


def test_vllm_is_served_with_its_options_on_all_gpus_and_stopped(fake_vllm):
    options = {"max_model_len": 4096, "enforce_eager": True, "reasoning_parser": "deepseek_r1"}
    with pytest.raises(ZeroDivisionError), vllm_server("some/model", options, log=fake_vllm) as url:
        assert urllib.request.urlopen(url.replace("/v1", "/health")).status == 200
        worker = worker_of(fake_vllm)
        raise ZeroDivisionError
    said = fake_vllm.read_text()
    for part in ("'serve', 'some/model'", "'--max-model-len', '4096'", "'--enforce-eager'",
                 "'--data-parallel-size', '2'", "'--reasoning-parser', 'deepseek_r1'"):
        assert part in said
    assert "LIMBECK_API_KEY" not in said and "canary" not in said
    assert gone(worker)


@pytest.mark.parametrize(("launched", "left"), [({}, "0"), ({"num_processes": 2}, "0,3")])
def test_refinement_gets_a_server_of_its_own_that_ends_with_it(fake_vllm, tmp_path, monkeypatch,
                                                               launched, left):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    job = RlJob(rl={"server": {"max_model_len": 4096}, "server_gpus": "1, 2"}, model="some/model",
                tokenizer=tmp_path, rows=[], held_out=[], judge_workers=1, engine={},
                out=tmp_path, seed=0)

    def train(line, environment):
        given = json.loads((tmp_path / "job.json").read_text())["rl"]["trainer"]
        url = given.pop("vllm_server_base_url")
        assert urllib.request.urlopen(f"{url}/health").status == 200
        assert given == {"use_vllm": True, "vllm_mode": "server"}
        assert environment["CUDA_VISIBLE_DEVICES"] == left
        (tmp_path / "failure.txt").write_text("rl: the loss is not finite")
        return 2

    monkeypatch.setattr("pipeline.train.launch.run", train)
    with pytest.raises(UserError, match="not finite"):
        rl._refined(job, Runtime(launch=launched))
    said = fake_vllm.read_text()
    for part in ("'serve', 'some/model'", "'--max-model-len', '4096'", "'--dtype', 'bfloat16'",
                 "'--tensor-parallel-size', '2'", "'--logprobs-mode', 'processed_logprobs'",
                 """'--weight-transfer-config', '{"backend": "nccl"}'""", "1,2 dev mode 1"):
        assert part in said
    assert "--data-parallel-size" not in said and gone(worker_of(fake_vllm))


def test_a_server_on_every_gpu_leaves_none_to_train_on(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with (pytest.raises(UserError, match="no GPU for training"),
          rollout_server("m", {}, "0,1", tmp_path / "log")):
        pass


def test_vllm_that_fails_shows_the_end_of_its_log(fake_vllm):
    with (pytest.raises(UserError, match="no such model"),
          vllm_server("m", {"fail": True}, log=fake_vllm)):
        pass


def test_vllm_that_never_gets_well_is_given_up(fake_vllm):
    with (pytest.raises(UserError, match="did not answer within 2 s"),
          vllm_server("m", {"sick": True}, log=fake_vllm, timeout=2)):
        pass
    assert gone(worker_of(fake_vllm))


def test_vllm_ends_with_a_parent_that_is_killed(fake_vllm):
    program = ("from pathlib import Path; import time\n"
               "from pipeline.serving.vllm_server import vllm_server\n"
               f"with vllm_server('m', {{}}, log=Path({str(fake_vllm)!r})) as url:\n"
               "    print(url, flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
                               cwd=Path(__file__).parents[2])
    url = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until = time.monotonic() + 10
    with pytest.raises(OSError):
        while time.monotonic() < until:
            urllib.request.urlopen(url.replace("/v1", "/health"), timeout=1)
            time.sleep(0.1)
    os.kill(worker_of(fake_vllm), signal.SIGKILL)       # the stand-in's own child, not vLLM's


def test_a_missing_vllm_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="not installed"), vllm_server("m", {}, log=tmp_path / "l"):
        pass


def test_options_become_flags_under_their_own_names(monkeypatch):
    assert flags({"a_b": 1, "c": True, "d": False, "e": {"x": 1}, "f": [1, 2], "g": None}) == [
        "--a-b", "1", "--c", "--no-d", "--e", '{"x": 1}', "--f", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_count() == 0


def endpoint(call):
    """An endpoint that honours n and streams, and knows no logprobs."""
    if call.body.get("logprobs"):
        return Answer(b'{"error": "logprobs are not supported"}', 400)
    if call.body.get("stream"):
        return Answer(stream("17 and 25", "42"), headers={"Content-Type": "text/event-stream"})
    body = completion(*["42"] * call.body.get("n", 1), reasoning="17 and 25")
    return Answer(body, headers={"x-ratelimit-limit-requests": "300"})


def test_probe_says_what_an_endpoint_speaks_and_honours():
    with FaultServer(endpoint).running() as url:
        found = probe(TeacherRuntime(base_url=url, max_attempts=1), "m")
    assert (found.dialect, found.thinking, found.answer) == ("thinking in message.reasoning",
                                                             "17 and 25", "42")
    assert found.n and found.streams and not found.logprobs and found.usage
    assert found.requests_a_minute == 300 and not found.warnings
    assert any("n         yes" in line for line in found.lines())


def test_probe_warns_of_thinking_that_does_not_arrive():
    with FaultServer(lambda call: Answer(completion("42"))).running() as url:
        found = probe(TeacherRuntime(base_url=url), "m")
    assert not found.n and "no thinking arrived" in found.warnings[0]
    assert found.dialect == "plain content"


def test_probe_reads_an_endpoint_that_counts_choices_from_one():
    body = completion("42", reasoning="17 and 25").replace(b'"index": 0', b'"index": 1')
    with FaultServer(lambda call: Answer(body)).running() as url:
        assert probe(TeacherRuntime(base_url=url), "m").answer == "42"


def test_probe_of_a_dead_endpoint_is_one_sentence():
    with pytest.raises(UserError, match="base_url"):
        probe(TeacherRuntime(base_url="http://127.0.0.1:9/v1"), "m")


def questions(count):
    return [Request(f"p{i}", 0, [{"role": "user", "content": f"question {i}"}])
            for i in range(count)]


def test_an_estimate_without_a_pilot_sends_nothing_and_with_one_is_near(tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("m: {input: 1, output: 10}\n")

    def script(call):
        return Answer(completion("42", usage=(12, 900 + 20 * (call.number % 11))))

    server = FaultServer(script)
    with server.running() as url, TraceStore(tmp_path / "store") as store:
        runtime = TeacherRuntime(base_url=url, prices=prices)
        common = {"teacher": TEACHER, "sampling": Sampling(max_tokens=2000), "runtime": runtime,
                  "store": store}
        blind = estimate(questions(200), pilot=0, **common)
        assert not server.calls and blind.completion_tokens == 200 * 2000
        close = estimate(questions(200), **common)
        assert len(server.calls) == 20 and close.missing == 180 and close.stored == 20
        assert close.completion_tokens == pytest.approx(180 * 1000, rel=0.05)
        assert close.usd == pytest.approx(180 * 1000 * 10 / 1e6, rel=0.06)
        estimate(questions(200), **common)
        assert len(server.calls) == 20
    assert close.prompt_tokens == 180 * 12
    assert any("180 traces" in line for line in close.lines())


def test_an_estimate_keeps_to_rates_slots_and_what_the_endpoint_charged(tmp_path):
    def script(call):
        n = call.body.get("n", 1)
        body = json.loads(completion(*["42"] * n, usage=(1000, 500 * n)))
        body["usage"]["cost"] = 0.01 * n
        return Answer(json.dumps(body).encode(), delay=0.1)

    wanted = [Request(f"p{i}", s, [{"role": "user", "content": f"question {i}"}])
              for i in range(50) for s in range(8)]
    with FaultServer(script).running() as url, TraceStore(tmp_path) as store:
        common = {"sampling": SAMPLING, "store": store}
        runtime = TeacherRuntime(base_url=url, concurrency=4)
        ask(wanted[:160], teacher=TEACHER, runtime=runtime, **common)

        def found(teacher=TEACHER, **changes):
            return estimate(wanted, teacher=teacher, pilot=0, **common,
                            runtime=runtime.model_copy(update=changes))

        assert found().usd == pytest.approx(240 * 0.01)
        took = store.collect(wanted, TEACHER, SAMPLING)["seconds"].mean()
        assert found().hours == pytest.approx(240 / 8 * took / 4 / 3600)
        assert found(rpm=10).hours == pytest.approx(240 / 8 / 10 / 60)
        assert found(tpm=1000).hours == pytest.approx(240 * (500 + 1000 / 8) / 1000 / 60)
        local = VllmTeacher(model="m", vllm={"max_num_seqs": 64, "data_parallel_size": 1})
        seconds = 100 / 40
        assert found(local, concurrency=None).hours == pytest.approx(400 * seconds / 80 / 3600)


def test_prices_are_read_matched_and_summed(tmp_path):
    price = Price(input=1, cached_input=0.1, output=10, reasoning=5)
    assert price.cost(Usage(1000, 400, 300, 100)) == pytest.approx(
        (600 * 1 + 400 * 0.1 + 200 * 10 + 100 * 5) / 1e6)
    assert price.cost(Usage(usd=0.5)) == 0.5
    assert price.cost(Usage(completion=50, reasoning=400)) == pytest.approx(400 * 5 / 1e6)
    assert price_of(OpenAITeacher(model="deepseek-reasoner"), TeacherRuntime()).output > 0
    known = [price_of(OpenAITeacher(model=f"gpt-4.1{name}"), TeacherRuntime()).output
             for name in ("", "-2025-04-14", "-mini", "-nano-2025-04-14")]
    assert known == [8, 8, 1.6, 0.4]
    assert price_of(OpenAITeacher(model="unheard-of"), TeacherRuntime()) is None
    assert PRICES.is_file()
    (tmp_path / "p.yaml").write_text("m: {inputt: 1}")
    with pytest.raises(UserError, match="price file"):
        price_of(TEACHER, TeacherRuntime(prices=tmp_path / "p.yaml"))


def test_the_progress_line_says_speed_load_shares_money_and_time_left():
    outcome = Outcome(wanted=1000)
    row = {"finish_reason": "stop", "prompt_tokens": 10, "completion_tokens": 90, "cost_usd": 0.01}
    for number in range(100):
        outcome.count(row | {"finish_reason": "length" if number < 10 else "stop"})
    outcome.retries = 3
    line = outcome.line(seconds=30.0, in_flight=64)
    for part in ("300 tok/s", "64 in flight", "3 retries", "10% cut off",
                 "$1.00 of about $10.00", "4 min left"):
        assert part in line


def test_a_line_a_minute_is_printed_where_no_terminal_is(capsys, monkeypatch):
    seen = []
    display = Display(Outcome(wanted=5), lambda steps, note: seen.append((steps, note)))
    display.show(1, 2)
    assert capsys.readouterr().err == ""
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    display.show(1, 2)
    display.show(1, 2)
    assert capsys.readouterr().err.count("teacher: 0 of 5") == 1 and len(seen) == 3


def test_the_closing_line_says_what_may_have_been_billed_besides():
    counts = dict.fromkeys(("traces", "asked", "reused", "failed", "cut_off"), 1)
    assert "1 cut off, $2.00)" in generate.summary(counts | {"cost_usd": 2.0, "unsure_usd": 0.0})
    assert "$2.00, up to $0.50 more for what came without a bill)" in generate.summary(
        counts | {"cost_usd": 2.0, "unsure_usd": 0.5})
