"""Whole runs: killed and resumed, several at once, on a full disk, under a budget, with a key."""

import asyncio
import base64
import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import polars as pl
import pytest

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.config.teacher import (
    JudgeRuntime,
    OpenAITeacher,
    Sampling,
    SolverTeacher,
    TeacherRuntime,
)
from pipeline.errors import UserError
from pipeline.judge import Problem
from pipeline.teacher import Request, TraceStore, generate, scheduler
from pipeline.teacher.accept_rate import AcceptRate
from pipeline.teacher.request import canonical_json
from pipeline.teacher.share import SharedQueue
from pipeline.teacher.solver import serve
from stages.generate import summary
from tests.conftest import PATIENCE
from tests.fault_server import Answer, FaultServer, completion
from tests.teacher_run import SAMPLING, TEACHER, requests

ROOT = Path(__file__).parents[2]


def child(url, folder, count, concurrency=8, *budget, **options):
    command = [sys.executable, "-m", "tests.teacher_run", url, str(folder), str(count),
               str(concurrency), *map(str, budget)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, **options)


def answer_to(call):
    return f"answer to {call.question} " + "word " * (len(call.question) * 7 % 50)


def slowly(call):
    delay = random.Random(call.number).uniform(0.0, 0.04)
    return Answer(completion(answer_to(call), reasoning_content="so"), delay=delay)


def collected(folder, count):
    return TraceStore(folder).collect(requests(count), TEACHER, SAMPLING).drop("seconds")


@pytest.mark.parametrize("kills", [5, pytest.param(
    200, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_kills_lose_nothing_and_double_nothing(kills, tmp_path):
    count, concurrency, rng, done, folder = 500, 8, random.Random(kills), 0, tmp_path / "0"
    rebilled, worst, round_ = 0, 0, 0
    server = FaultServer(slowly)
    with server.running() as url:
        generate_whole(url, tmp_path / "whole", count)
        whole = collected(tmp_path / "whole", count)
        while done < kills:
            server.calls.clear()
            round_, folder, killed_now = round_ + 1, tmp_path / str(round_), 0
            while True:
                process = child(url, folder, count, concurrency)
                process.stdout.readline()
                if done < kills and killed_now < 8:
                    time.sleep(rng.uniform(0.0, 0.3))
                    process.kill()
                killed = process.wait(PATIENCE) == -signal.SIGKILL
                process.communicate()
                if not killed:
                    break
                done, killed_now = done + 1, killed_now + 1
            asked = Counter(call.question for call in server.calls)
            again = sum(asked.values()) - count
            assert len(asked) == count and again <= killed_now * concurrency
            rebilled, worst = rebilled + again, max(worst, *asked.values())
            assert collected(folder, count).equals(whole)
            assert stored_rows(folder) == count
    print(f"{done} kills: 0 lost, 0 twice, {rebilled} asked again of at most {done * concurrency}")


def generate_whole(url, folder, count):
    with TraceStore(folder) as store:
        generate(requests(count), teacher=TEACHER, sampling=SAMPLING, store=store,
                 runtime=TeacherRuntime(base_url=url, concurrency=8))


def stored_rows(folder):
    store = TraceStore(folder)
    return store._index("key").height


@pytest.mark.parametrize("processes", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_several_processes_on_one_store_share_what_is_missing(processes, tmp_path):
    server = FaultServer(lambda call: Answer(completion("42"), delay=0.3))
    with server.running() as url:
        started = [child(url, tmp_path, 60, 2) for _ in range(processes)]
        for process in started:
            error = process.communicate(timeout=PATIENCE)[1]
            assert not process.returncode, error
            assert len(TraceStore(tmp_path).missing(requests(60), TEACHER, SAMPLING)) == 0
    assert max(Counter(call.question for call in server.calls).values()) == 1
    assert len(server.calls) == 60 == stored_rows(tmp_path) == len(collected(tmp_path, 60))
    assert server.most_in_flight > 2


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    server = FaultServer(lambda call: Answer(completion("42 " * 1000), delay=0.01))
    with server.running() as url:
        process = child(url, tmp_path, 100, 4, preexec_fn=limit_files)
        error = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode and "cannot be written" in error and "Traceback" not in error
        kept = len(collected(tmp_path, 100))
        assert 10 < kept < 100
        process = child(url, tmp_path, 100, 4)
        assert process.communicate(timeout=PATIENCE) and process.returncode == 0
    assert len(collected(tmp_path, 100)) == 100
    assert len(server.calls) <= 100 + 4


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (pytest.raises(UserError, match="cannot be written"),
          TraceStore(tmp_path / "file").writing()):
        pass
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match="cannot be written"), TraceStore(tmp_path).writing():
            pass
        tmp_path.chmod(0o700)


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(tmp_path):
    server = FaultServer(slowly)
    with server.running() as url:
        process = child(url, tmp_path, 500)
        while len(server.calls) < 60:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
        asked = len(server.calls)
        kept = len(collected(tmp_path, 500))
        assert process.returncode and asked - 16 <= kept < 500
        assert not list(tmp_path.glob("*.journal"))
        assert child(url, tmp_path, 500).wait(PATIENCE) == 0
    assert len(collected(tmp_path, 500)) == 500 and len(server.calls) <= 500 + 8


PRICES = "m: {input: 1.0, cached_input: 0.1, output: 10.0}\n"


@pytest.mark.parametrize("share", [0.37, 0.9])
def test_a_ceiling_is_never_passed_whatever_fails(share, tmp_path):
    """The endpoint bills every answer it sends: whole, cut off, empty or broken off."""
    limit, billed = 2000, []

    def script(call):
        rng = random.Random(call.question + str(share))
        tokens = limit if rng.random() < 0.2 else rng.randrange(50, limit)
        billed.append((30 * 1.0 + tokens * 10.0) / 1e6)
        body = completion("42", usage=(30, tokens),
                          finish="length" if tokens == limit else "stop")
        fault = call.number % 13 == 0
        return Answer(b"" if fault else body, delay=0.01)

    (tmp_path / "prices.yaml").write_text(PRICES)
    wanted = [Request(f"p{i}", 0, [{"role": "user", "content": f"question {i}"}])
              for i in range(300)]
    whole = 300 * (30 + 0.6 * limit * 10) / 1e6
    server = FaultServer(script)
    with server.running() as url, TraceStore(tmp_path / "store") as store:
        runtime = TeacherRuntime(base_url=url, prices=tmp_path / "prices.yaml", max_wait=0.01,
                                 max_usd=share * whole, concurrency=16)
        outcome = generate(wanted, teacher=TEACHER, sampling=Sampling(max_tokens=limit),
                           runtime=runtime, store=store)
    assert outcome.stopped and "max_usd" in outcome.stopped
    assert sum(billed) <= share * whole
    assert outcome.cost_usd <= sum(billed) <= outcome.cost_usd + outcome.unsure_usd + 1e-9
    assert outcome.cost_usd + outcome.unsure_usd > 0.9 * share * whole


def test_a_ceiling_without_a_price_or_a_limit_is_refused(tmp_path):
    runtime = TeacherRuntime(base_url="http://127.0.0.1:9/v1", max_usd=1.0)
    for teacher, sampling, word in ((TEACHER, SAMPLING, "price"),
                                    (OpenAITeacher(model="deepseek-chat"), Sampling(),
                                     "max_tokens")):
        with TraceStore(tmp_path) as store, pytest.raises(UserError, match=word):
            generate(requests(1), teacher=teacher, sampling=sampling, runtime=runtime, store=store)


CANARY = "sk-canary/7f3a9+Zq=="
FORMS = [CANARY, quote(CANARY, safe=""), base64.b64encode(CANARY.encode()).decode().rstrip("="),
         base64.b64encode(b"Bearer " + CANARY.encode()).decode().rstrip("=")]


def echo(call):
    """A server that says the key back wherever it can."""
    shown = " ".join([call.headers["authorization"], *FORMS[1:3]])
    kind = call.number % 4
    if kind == 0:
        return Answer(shown.encode(), 500)
    if kind == 1:
        body = completion(f"your key is {shown}", reasoning_content=shown)
        return Answer(body.replace(b"/", b"\\/"))         # as some servers write JSON
    if kind == 2:
        return Answer(f'{{"error": "{shown}"}}'.encode(), 400)
    return Answer(shown.encode())


def assert_no_key(*texts):
    for text in texts:
        for form in FORMS:
            assert form not in text


@pytest.mark.parametrize("script", [echo, lambda c: Answer(c.headers["authorization"].encode(),
                                                           401)])
@pytest.mark.parametrize("where", ["LIMBECK_API_KEY", "file"])
def test_the_key_reaches_the_server_and_nothing_else(script, where, tmp_path):
    environment = {**os.environ, "OPENAI_LOG": "debug", "PYTHONFAULTHANDLER": "1"}
    environment |= {"LIMBECK_API_KEY": CANARY}
    server = FaultServer(script)
    with server.running() as url:
        process = child(url, tmp_path, 40, env=environment)
        shown = []
        while process.poll() is None:
            shown.append(Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
                         if Path(f"/proc/{process.pid}/cmdline").exists() else "")
            time.sleep(0.05)
        out, error = process.communicate()
    assert all(call.headers["authorization"] == f"Bearer {CANARY}" for call in server.calls)
    assert server.calls
    files = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*")
             if path.is_file()]
    frame = str(collected(tmp_path, 40).to_dicts())
    assert_no_key(out, error, frame, *shown, *files)


def test_a_key_comes_from_its_variable_a_file_or_its_hosts_variable(tmp_path, monkeypatch):
    for name in ("LIMBECK_API_KEY", "DEEPSEEK_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "key").write_text(" from-file\n")
    deepseek = TeacherRuntime(base_url="https://api.deepseek.com/v1", key_file=tmp_path / "key")
    elsewhere = TeacherRuntime(base_url="https://notdeepseek.com/v1")
    assert deepseek.api_key().get_secret_value() == "from-file"
    monkeypatch.setenv("DEEPSEEK_API_KEY", "from-host")
    assert deepseek.api_key().get_secret_value() == "from-host"
    assert elsewhere.api_key().get_secret_value() == ""
    monkeypatch.setenv("LIMBECK_API_KEY", "own")
    assert elsewhere.api_key().get_secret_value() == "own" != str(elsewhere.api_key())
    with pytest.raises(UserError, match="key_file"):
        monkeypatch.delenv("LIMBECK_API_KEY")
        TeacherRuntime(base_url="http://x/v1", key_file=tmp_path / "none").api_key()


@pytest.mark.parametrize("address", ["https://me:secret@host:8443/v1", "me:secret@host/v1",
                                     "https://host/v1?key=secret", "https://secret@[host/v1"])
@pytest.mark.parametrize("name", ["base_url", "mirrors"])
def test_an_address_with_a_secret_is_refused_and_not_shown(address, name):
    value = f"{name}=[{address!r}]" if name == "mirrors" else f"{name}={address}"
    with pytest.raises(UserError) as refusal:
        load(Experiment, [ROOT / "configs/default.yaml"], [f"runtime.teacher.{value}"])
    assert f"runtime.teacher.{name} holds a user name" in str(refusal.value)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("address", ["api.deepseek.com/v1", "localhost:8000/v1", "ftp://host/v1",
                                     "https:///v1", "http://host:port/v1", "http://host:99999/v1"])
def test_what_is_no_address_is_refused_by_its_name(address):
    with pytest.raises(UserError, match=r"runtime\.llm_judge\.base_url is .*no address"):
        JudgeRuntime(base_url=address)
    assert TeacherRuntime(base_url="http://[::1]:80/v1").shown_url() == "http://[::1]:80/v1"


@pytest.mark.parametrize("stream", [False, True])
def test_the_embedded_server_answers_like_an_endpoint(stream, tmp_path):
    wanted = [Request(f"p{i}", s, [{"role": "user", "content": f"question {i}"}])
              for i in range(30) for s in range(3)]
    teacher, sampling = SolverTeacher(), Sampling(temperature=1.0, max_tokens=1000)
    with serve("tests.narrator:narrate") as url, TraceStore(tmp_path) as store:
        steps = []
        outcome = generate(wanted, teacher=teacher, sampling=sampling, store=store,
                           runtime=TeacherRuntime(base_url=url, stream=stream),
                           on_progress=lambda n, note: steps.append(n))
        again = generate(wanted, teacher=teacher, sampling=sampling, store=store,
                         runtime=TeacherRuntime(base_url=url))
        traces = tables.Trace.validate(store.collect(wanted, teacher, sampling).with_columns(
            source=pl.lit("set")), cast=True)
    assert outcome.asked == sum(steps) == len(traces) == 90 and again.reused == 90
    for row in traces.iter_rows(named=True):
        assert row["answer"] == f"the answer is {row['sample'] % 7}" and row["complete"]
        assert row["thinking"].endswith(f"seed {row['sample']}")


def test_the_embedded_server_cuts_at_max_tokens_and_a_higher_limit_mends_it(tmp_path):
    wanted = [Request("p", s, [{"role": "user", "content": "why"}]) for s in range(4)]
    teacher = SolverTeacher()
    with serve("tests.narrator:narrate") as url, TraceStore(tmp_path) as store:
        counts = []
        for limit in (3, 9, 100, 100):
            outcome = generate(wanted, teacher=teacher, sampling=Sampling(max_tokens=limit),
                               runtime=TeacherRuntime(base_url=url), store=store)
            counts.append((outcome.asked, outcome.cut_off))
    assert counts == [(4, 4), (4, 4), (4, 0), (0, 0)]


def test_the_embedded_server_ends_with_the_block_even_on_an_error():
    import urllib.request

    with pytest.raises(ZeroDivisionError), serve("tests.narrator:narrate") as url:
        health = url.replace("/v1", "/health")
        assert urllib.request.urlopen(health).status == 200
        assert b"solver" in urllib.request.urlopen(f"{url}/models").read()
        raise ZeroDivisionError
    with pytest.raises(OSError):
        urllib.request.urlopen(health)


def test_it_runs_in_a_thread_beside_a_running_loop(tmp_path):
    outcome = []

    def work():
        with serve("tests.narrator:narrate") as url, TraceStore(tmp_path) as store:
            outcome.append(generate(requests(5), teacher=TEACHER, sampling=SAMPLING, store=store,
                                    runtime=TeacherRuntime(base_url=url)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE)
    assert outcome and outcome[0].asked == 5


def budgeted(tmp_path, script, count=40, max_usd=0.01, **runtime):
    """(outcome, traces' cost, calls) of a run with a limit of 100 tokens at $10 a million."""
    (tmp_path / "prices.yaml").write_text(PRICES)
    server = FaultServer(script)
    with server.running() as url, TraceStore(tmp_path / "store") as store:
        outcome = generate(requests(count), teacher=TEACHER, sampling=SAMPLING, store=store,
                           runtime=TeacherRuntime(base_url=url, prices=tmp_path / "prices.yaml",
                                                  max_usd=max_usd, **{"n": 1, "max_wait": 0.01,
                                                                      **runtime}))
        return outcome, store.spent(requests(count), TEACHER, SAMPLING), server.calls


def unbilled(call):
    """A hundred tokens that look like ten, without a word of what they cost."""
    body = json.loads(completion("\u4e8c" * 40))
    del body["usage"]
    return Answer(json.dumps(body).encode())


def erring(call):
    """An upstream that dies, and bills, in every second answer."""
    return Answer(b'{"error": {"message": "provider died", "code": 502}}') if call.number % 2 \
        else Answer(completion("42", usage=(10, 100)))


@pytest.mark.parametrize("script", [unbilled, erring])
def test_a_ceiling_holds_where_the_bill_is_not_sent(script, tmp_path):
    outcome, stored, calls = budgeted(tmp_path, script, concurrency=2)
    assert "max_usd" in outcome.stopped and outcome.cost_usd == pytest.approx(stored)
    assert len(calls) * (10 * 1 + 100 * 10) / 1e6 <= 0.01
    assert outcome.cost_usd + outcome.unsure_usd <= 0.01 and outcome.unsure_usd > 0


@pytest.mark.parametrize(("limit", "said"), [(100, "up to $0.00"), (None, "an unknown amount")])
def test_what_came_without_a_bill_has_no_bound_where_answers_have_none(limit, said, tmp_path):
    (tmp_path / "prices.yaml").write_text(PRICES)
    with FaultServer(unbilled).running() as url, TraceStore(tmp_path / "store") as store:
        outcome = generate(requests(1), teacher=TEACHER, sampling=Sampling(max_tokens=limit),
                           store=store, runtime=TeacherRuntime(
                               base_url=url, prices=tmp_path / "prices.yaml"))
    counts = dict.fromkeys(("traces", "asked", "reused", "failed", "cut_off"), 1)
    money = {"cost_usd": outcome.cost_usd, "unsure_usd": outcome.unsure_usd}
    assert f"{said} more for what came without a bill" in summary(counts | money)


def test_a_ceiling_counts_what_earlier_runs_of_the_same_command_spent(tmp_path):
    def script(call):
        return Answer(completion("42", usage=(10, 90)))

    first, spent, _ = budgeted(tmp_path, script)
    again, total, calls = budgeted(tmp_path, script)
    assert 0.008 < first.cost_usd == spent == total <= 0.01 and not calls
    assert f"(earlier runs spent ${spent:.2f})" in again.stopped
    more, total, _ = budgeted(tmp_path, script, max_usd=0.02)
    assert 0.018 < total <= 0.02 and more.cost_usd == pytest.approx(total - spent)


def test_what_an_answer_frees_of_a_ceiling_while_it_is_counted_is_spent(tmp_path, monkeypatch):
    count_others = SharedQueue.count_others

    async def slowly_counted(queue):
        await asyncio.sleep(0.1)
        await count_others(queue)

    monkeypatch.setattr(SharedQueue, "count_others", slowly_counted)
    _, spent, calls = budgeted(tmp_path, lambda call: Answer(completion("42", usage=(10, 90))))
    assert len(calls) == 10 and spent == pytest.approx(10 * 0.00091)


def test_the_share_that_the_judge_accepts_is_shown_while_traces_come(tmp_path):
    golds = {canonical_json(asked.messages): Problem(asked.problem_id, "", str(i % 2))
             for i, asked in enumerate(requests(40))}
    lines = []
    server = FaultServer(lambda call: Answer(completion("\\boxed{0}"), delay=0.02))
    with server.running() as url, TraceStore(tmp_path) as store, AcceptRate(golds) as accept_rate:
        generate([*requests(40), Request("no gold", 0, [{"role": "user", "content": "?"}])],
                 teacher=TEACHER, sampling=SAMPLING, store=store, accept_rate=accept_rate,
                 runtime=TeacherRuntime(base_url=url, concurrency=2),
                 on_progress=lambda steps, note: lines.append(note))
        accept_rate.thread.shutdown()
    assert (accept_rate.judged, accept_rate.accepted) == (40, 20)
    assert any("% accepted" in line for line in lines)
    assert accept_rate.parts(0.01) == ["50% accepted", "$0.0200 each"]


def test_a_stop_that_a_task_meets_is_not_reported_as_an_error_of_it(caplog):
    async def stopped():
        raise KeyboardInterrupt

    async def main(handler):
        asyncio.get_running_loop().set_exception_handler(handler)
        task = asyncio.create_task(stopped())
        await asyncio.wait([task])

    for handler, said in ((None, True), (scheduler._report, False)):
        caplog.clear()
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main(handler))
        gc.collect()
        assert ("never retrieved" in caplog.text) is said
