"""The batch API: submitted once, collected days later, by function, stage and command."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.config.teacher import OpenAITeacher, Sampling, TeacherRuntime
from pipeline.errors import LockedError, StoppedError, UserError
from pipeline.teacher import Request, TraceStore, batch, generate
from pipeline.teacher.estimate import estimate
from stages.gpu_work import Given, _estimate_teacher
from stages.make import make, plan_of
from tests.conftest import PATIENCE
from tests.fault_server import Answer, FaultServer, completion

ROOT = Path(__file__).parents[2]
TEACHER, SAMPLING = OpenAITeacher(model="m"), Sampling(max_tokens=100)
KEY = "sk-canary-7f3a9"
ODD = "question 0\u2028of two \x85 lines"


class BatchEndpoint:
    """Files, batches and chat of an endpoint; its batches end as `ends` once that is set."""

    def __init__(self, ends=None, fault=None, answer="42", finish="stop"):
        self.files, self.batches, self.ends, self.fault = {}, {}, ends, fault
        self.text, self.finish = answer, finish

    def __call__(self, call):
        answer = self.answer(call)
        return self.fault(call, answer) or answer if self.fault else answer

    def answer(self, call):
        kind, _, name = unquote(call.path.removeprefix("/v1/").partition("?")[0]).partition("/")
        if kind == "chat":
            return Answer(completion(self.text, usage=(10, 100)))
        if kind == "files" and name:
            return Answer(self.results(name.removesuffix("/content")))
        if kind == "files":
            name = f"file-{len(self.files)}"
            lines = re.findall(rb"^\{.*\}", call.body["raw"], re.MULTILINE)
            self.files[name] = [json.loads(line) for line in lines]
            return said({"id": name, "object": "file"})
        if call.body.get("input_file_id"):
            name = f"batch/{len(self.batches)}"
            self.batches[name] = call.body
        return said(self.shown(name) if name else {
            "object": "list", "has_more": False, "data": list(map(self.shown, self.batches))})

    def shown(self, name):
        """Half of the requests are done until the batch ends."""
        sent, status = self.batches[name], self.ends or "in_progress"
        count = len(self.files[sent["input_file_id"]])
        came = {"completed": count, "failed": 0}.get(status, count // 2)
        more = {"completed": {"output_file_id": sent["input_file_id"]},
                "failed": {"errors": {"data": [{"message": f"token limit reached by {KEY}"}]}}}
        return {"id": name, "metadata": sent["metadata"], "status": status,
                "request_counts": {"total": count, "failed": 0, "completed": came},
                **more.get(status, {})}

    def results(self, name):
        lines = ["not JSON", json.dumps({"custom_id": "nobody's"})]
        for sent in self.files[name]:
            body = json.loads(completion(self.text, finish=self.finish, usage=(10, 100)))
            bad = sent["body"]["messages"][0]["content"] == "question 3"
            response = {"status_code": 400, "body": {"error": {"message": "bad"}}} if bad else {
                "status_code": 200, "body": body}
            lines.append(json.dumps({"custom_id": sent["custom_id"], "response": response},
                                    ensure_ascii=False))
        return "\n".join(lines).encode()

    def sent(self):
        return [len(self.files[sent["input_file_id"]]) for sent in self.batches.values()]


def said(body):
    return Answer(json.dumps(body).encode())


def questions(count):
    return [Request(f"p{i}", 0, [{"role": "user", "content": f"question {i}" if i else ODD}])
            for i in range(count)]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Asks through the batch API; Ctrl-C comes where it would wait for the `polls`-th time."""
    (tmp_path / "prices.yaml").write_text("m: {input: 1, output: 10, batch: 0.5}\n")

    def run(url, count=10, polls=1, sampling=SAMPLING, teacher=TEACHER, **runtime):
        waits = iter(range(polls))

        def sleep(seconds):
            if next(waits) == polls - 1:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, TraceStore(tmp_path / "store") as store:
            patch.setattr(batch.time, "sleep", sleep)
            outcome = batch.generate_in_batches(
                questions(count), teacher=teacher, sampling=sampling, store=store,
                runtime=TeacherRuntime(base_url=url, prices=tmp_path / "prices.yaml",
                                       **{"max_attempts": 1, **runtime}))
            return outcome, store.collect(questions(count), teacher, sampling)

    return run


def stopped(asked, *arguments, **options):
    with pytest.raises(StoppedError) as stop:
        asked(*arguments, **options)
    return str(stop.value)


def test_batches_are_submitted_once_and_collected_days_later(asked):
    endpoint = BatchEndpoint(answer="4\u20282")
    with FaultServer(endpoint).running() as url:
        said = stopped(asked, url)
        assert said == "stopped; 1 batch is pending; the same command collects the answers"
        stopped(asked, url, polls=3)
        assert endpoint.sent() == [10]
        assert "2 batches are" in stopped(asked, url, count=12) and endpoint.sent() == [10, 2]
        endpoint.ends = "completed"
        outcome, traces = asked(url, count=12)
    assert endpoint.sent() == [10, 2, 1] and (outcome.asked, outcome.failed) == (13, 2)
    assert len(traces) == 11 and set(traces["answer"]) == {"4\u20282"}
    assert outcome.cost_usd == pytest.approx(11 * 0.5 * (10 + 100 * 10) / 1e6)


@pytest.mark.parametrize("created", [True, False])
def test_a_batch_whose_creation_broke_off_is_found_again_or_sent_again(asked, created):
    def fault(call, answer):
        if call.body.get("input_file_id") and not tried:
            tried.append(call)
            if not created:
                endpoint.batches.clear()
            return Answer(b"{}", cut=0, reset=True)
        return None

    tried, endpoint = [], BatchEndpoint(fault=fault)
    server = FaultServer(endpoint)
    with server.running() as url:
        with pytest.raises(UserError, match="run again to go on"):
            asked(url, max_attempts=3)
        assert len(endpoint.batches) == created     # and no second attempt at what may be billed
        stopped(asked, url)
        endpoint.ends = "completed"
        _, traces = asked(url)
    assert endpoint.sent() == [10, 1] and len(traces) == 9      # question 3 fails twice


def test_a_wait_outlives_an_endpoint_that_is_away_and_says_so_line_by_line(asked, capsys):
    def fault(call, answer):
        polls.extend(re.findall("batches/.", call.path))
        endpoint.ends = "completed" if len(polls) > 3 else None
        return Answer(b"{}", 503) if 1 < len(polls) < 4 else None

    polls, endpoint = [], BatchEndpoint(fault=fault)
    with FaultServer(endpoint).running() as url:
        outcome, traces = asked(url, count=3, polls=20)
    assert outcome.failed == 0 and len(traces) == 3 and endpoint.sent() == [3]
    waiting = "teacher: 1 batches pending · 1 of 3 requests done"
    assert capsys.readouterr().err.splitlines() == [
        waiting, *[waiting + " · the endpoint does not answer"] * 2, waiting,
        "teacher: 0 batches pending · 3 of 3 requests done"]


class NewNames(BatchEndpoint):
    """Refuses `max_tokens`, as OpenAI's reasoning models do."""

    def results(self, name):
        if any("max_completion_tokens" in sent["body"] for sent in self.files[name]):
            return super().results(name)
        body = {"error": {"message": "Unsupported parameter: 'max_tokens'. Use "
                                     "'max_completion_tokens' instead."}}
        return "\n".join(json.dumps({"custom_id": sent["custom_id"], "response": {
            "status_code": 400, "body": body}}) for sent in self.files[name]).encode()


def test_a_model_that_wants_another_name_for_the_limit_is_asked_again_in_the_same_run(asked):
    endpoint = NewNames(ends="completed")
    with FaultServer(endpoint).running() as url:
        outcome, traces = asked(url, count=3)
        assert len(traces) == 3 and outcome.failed == 3
        assert asked(url, count=3)[0].asked == 0
    assert endpoint.sent() == [3, 3]


def test_a_batch_whose_answers_are_not_there_yet_is_waited_for(asked):
    endpoint, shown = BatchEndpoint(ends="completed"), BatchEndpoint.shown
    late = iter([True, False])
    endpoint.shown = lambda name: {**shown(endpoint, name), **(
        {"output_file_id": None} if next(late, False) else {})}
    with FaultServer(endpoint).running() as url:
        outcome, traces = asked(url, count=3, polls=2)
    assert endpoint.sent() == [3] and len(traces) == 3 and not outcome.failed


def test_a_wait_outlives_another_run_that_is_storing(asked, tmp_path, capsys, monkeypatch):
    endpoint = BatchEndpoint(ends="completed")
    real, calls = TraceStore.writing, iter(["submit", "busy"])

    def writing(store):
        if next(calls, None) == "busy":
            raise LockedError("another run is writing")
        return real(store)

    monkeypatch.setattr(TraceStore, "writing", writing)
    with FaultServer(endpoint).running() as url:
        _, traces = asked(url, count=3, polls=2)
    assert endpoint.sent() == [3] and len(traces) == 3
    assert "another run is storing" in capsys.readouterr().err


def test_a_failed_batch_says_why_and_is_sent_again_by_the_next_run(asked, monkeypatch):
    monkeypatch.setenv("LIMBECK_API_KEY", KEY)
    endpoint = BatchEndpoint(ends="failed", answer=f"42 {KEY}")
    with FaultServer(endpoint).running() as url:
        outcome, traces = asked(url, count=3)
        assert dict(outcome.reasons) == {
            "batch failed without it: token limit reached by [key]": 3}
        assert not len(traces) and endpoint.sent() == [3]
        endpoint.ends = "completed"
        outcome, traces = asked(url, count=3)
    assert endpoint.sent() == [3, 3] and not outcome.failed
    assert traces["answer"].to_list() == ["42 [key]"] * 3


def test_an_endpoint_without_batches_or_a_refused_batch_leaves_nothing_pending(asked, tmp_path):
    for path in ("/v1/files", "/v1/batches"):
        endpoint = BatchEndpoint(fault=lambda call, answer, path=path:
                                 Answer(b"{}", 404) if call.path == path else None)
        with (FaultServer(endpoint).running() as url,
              pytest.raises(UserError, match=r"404.*runtime.teacher.batch=false")):
            asked(url)
        assert not list((tmp_path / "store").rglob("*.jsonl"))


def test_a_budget_counts_what_is_on_its_way_at_its_worst(asked):
    endpoint = BatchEndpoint()
    with FaultServer(endpoint).running() as url:
        stopped(asked, url, max_usd=0.006)          # 10 requests of 100 tokens at $5 a million
        assert endpoint.sent() == [10]
        stopped(asked, url, count=12, max_usd=0.006)
        assert endpoint.sent() == [10]
        endpoint.ends = "completed"
        outcome, traces = asked(url, count=12, max_usd=0.0055)
        assert "max_usd" in outcome.stopped and len(traces) == 9 and endpoint.sent() == [10]
        outcome, traces = asked(url, count=12, max_usd=0.008)
    assert endpoint.sent() == [10, 3] and len(traces) == 11 and outcome.stopped is None


def test_answers_count_for_the_limit_they_were_sent_with_and_for_their_own_teacher(asked):
    endpoint = BatchEndpoint(finish="length")
    other, longer = OpenAITeacher(model="other"), Sampling(max_tokens=200)
    with FaultServer(endpoint).running() as url:
        stopped(asked, url, count=2)
        stopped(asked, url, count=2, teacher=other)
        endpoint.ends = "completed"
        _, traces = asked(url, count=2, sampling=longer)
    assert endpoint.sent() == [2, 2, 2] and len(traces) == 2
    limits = [[line["body"]["max_tokens"] for line in lines] for lines in endpoint.files.values()]
    assert limits == [[100, 100], [100, 100], [200, 200]]


def test_answers_stored_again_after_a_kill_count_once_in_what_was_spent(asked, tmp_path,
                                                                        monkeypatch):
    def killed(path, target):
        if target.suffix == ".done":
            raise InterruptedError
        return rename(path, target)

    rename = Path.rename
    with FaultServer(BatchEndpoint(ends="completed")).running() as url:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            for _ in range(2):
                with pytest.raises(InterruptedError):
                    asked(url)
        _, traces = asked(url)
    spent = TraceStore(tmp_path / "store").spent(questions(10), TEACHER, SAMPLING)
    assert len(traces) == 9 and spent == pytest.approx(traces["cost_usd"].sum()) and spent > 0


def test_batches_keep_to_what_the_api_takes(asked, monkeypatch):
    monkeypatch.setattr(batch, "MAX_REQUESTS", 4)
    endpoint = BatchEndpoint(ends="completed")
    with FaultServer(endpoint).running() as url:
        asked(url)
        assert endpoint.sent() == [4, 4, 2]
        monkeypatch.setattr(batch, "MAX_BYTES", 600)
        asked(url, count=16)
    largest = [sum(len(json.dumps(line)) for line in lines) for lines in endpoint.files.values()]
    assert sum(endpoint.sent()) == 17 and max(largest[3:]) < 700 and len(largest) > 5


def test_what_is_on_its_way_is_not_asked_directly_too(asked, tmp_path):
    endpoint = BatchEndpoint()
    server = FaultServer(endpoint)
    with server.running() as url, TraceStore(tmp_path / "store") as store:
        stopped(asked, url)
        common = {"teacher": TEACHER, "sampling": SAMPLING, "store": store,
                  "runtime": TeacherRuntime(base_url=url, batch=True)}
        with pytest.raises(UserError, match="10 of the requests are in pending batches"):
            generate(questions(12), **common)
        generate(questions(12)[10:], **common)
        with pytest.raises(UserError, match="in pending batches"):
            estimate(questions(12), **common)
    assert sum("chat" in call.path for call in server.calls) == 2


def test_an_estimate_is_at_the_price_of_batches_and_its_pilot_waits_for_none(tmp_path):
    (tmp_path / "prices.yaml").write_text("m: {input: 1, output: 10, batch: 0.25}\n")
    endpoint = BatchEndpoint()
    with FaultServer(endpoint).running() as url, TraceStore(tmp_path / "store") as store:
        def cost(**runtime):
            return estimate(questions(200), teacher=TEACHER, sampling=SAMPLING, store=store,
                            pilot=5, runtime=TeacherRuntime(
                                base_url=url, prices=tmp_path / "prices.yaml", **runtime))

        batched, direct = cost(batch=True), cost()
    assert batched.usd == pytest.approx(direct.usd / 4) and direct.hours < batched.hours == 24
    assert "batch API" in batched.source and batched.stored == 5 and not endpoint.batches


def test_an_estimate_from_answers_of_batches_still_knows_hours(asked, tmp_path):
    with FaultServer(BatchEndpoint(ends="completed")).running() as url:
        asked(url, count=3)
        with TraceStore(tmp_path / "store") as store:
            found = estimate(questions(50), teacher=TEACHER, sampling=SAMPLING, store=store,
                             runtime=TeacherRuntime(base_url=url), pilot=0)
    assert found.stored == 3 and found.hours > 0


@pytest.mark.parametrize(("override", "sentence"), [
    ("runtime.teacher.batch=true", "generate.teacher is of type solver; name a teacher of type"),
    ("runtime.llm_judge.batch=true", "'runtime.llm_judge.batch' .*should be False")])
def test_only_an_endpoint_is_asked_in_batches_and_the_judge_never(override, sentence):
    with pytest.raises(UserError, match=sentence):
        load(Experiment, [ROOT / "configs/default.yaml"], [override])


ASKED = ("prepare.held_out=0", "prepare.limit=8", "generate.samples=2",
         "generate.teacher={type: openai, model: m}", "runtime.teacher.batch=true",
         "runtime.teacher.max_attempts=1")


@contextmanager
def started(url, folder):
    """`limbeck generate` that waits for its batch, and the arguments that go on with it."""
    arguments = ("generate", *ASKED, f"runtime.teacher.base_url={url}")
    with subprocess.Popen([sys.executable, "-m", "stages", *arguments], cwd=folder, text=True,
                          stderr=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        try:
            line = next(line for line in process.stderr if line.startswith("teacher"))
            assert line == "teacher: 1 batches pending · 8 of 16 requests done\n"
            yield process, arguments
        finally:
            process.kill()


def test_generate_waits_is_stopped_by_one_sentence_and_collects_later(tmp_path, limbeck):
    server = FaultServer(endpoint := BatchEndpoint())
    with server.running() as url, started(url, tmp_path) as (process, arguments):
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 130 and said == (
            "limbeck: stopped; 1 batch is pending; the same command collects the answers\n")
        endpoint.ends = "completed"
        assert "generate: 16 traces (16 asked, 0 reused, 0 failed" in limbeck(*arguments).stderr
    assert endpoint.sent() == [16] and not any("chat" in call.path for call in server.calls)


def test_the_stage_goes_on_from_a_killed_run_and_a_failed_batch(tmp_path, monkeypatch, capsys):
    endpoint = BatchEndpoint()
    with FaultServer(endpoint).running() as url:
        with started(url, tmp_path) as (process, arguments):
            process.kill()
        monkeypatch.chdir(tmp_path)
        experiment = load(Experiment, [ROOT / "configs/default.yaml"], arguments[1:])
        endpoint.ends = "failed"
        with pytest.raises(UserError, match=r"no trace at all: .*token limit reached"):
            make(experiment, "generate")
        assert endpoint.sent() == [16, 16]          # what failed before, once more
        endpoint.ends = "completed"
        make(experiment, "generate")
        assert "generate: 16 traces (16 asked, 0 reused, 0 failed" in capsys.readouterr().err
        left = _estimate_teacher(plan_of(experiment, "generate"), 0, Given())
    assert endpoint.sent() == [16, 16, 16] and left is not None and left.missing == 0
