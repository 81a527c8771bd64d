"""Asking and judging on a Ray cluster: shared by nodes, lost nodes, and what is refused."""

import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

import pytest
from pydantic import ValidationError

from pipeline.cluster import parts, ray_nodes
from pipeline.cluster.judging import ClusterPool
from pipeline.config.experiment import RayCluster
from pipeline.config.teacher import Sampling, TeacherRuntime, VllmTeacher
from pipeline.errors import LackingError, UserError
from pipeline.judge import JudgePool, Problem
from pipeline.teacher import TraceStore
from pipeline.teacher.on_cluster import generate
from tests.cluster import ray_run
from tests.cluster.ray_nodes_here import asked
from tests.conftest import ROOT
from tests.fault_server import Answer, FaultServer, completion

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install '.[ray]'")
FORTY_TWO = completion("42")


def endpoint(delay=0.2):
    return FaultServer(lambda call: Answer(FORTY_TWO, delay=delay))


def stored(folder, count, teacher=ray_run.REMOTE):
    """How many of `count` questions have an answer, and how many rows the store holds."""
    store = TraceStore(folder)
    found = store.collect(ray_run.requests(count), teacher, ray_run.SAMPLING)
    return len(found), len(store._index("key"))


def test_nodes_ask_at_their_own_concurrency_and_nothing_twice(address, tmp_path):
    server = endpoint()
    with server.running() as url:
        outcome = ray_run.run(address, tmp_path, 120, 8, url)
        again = ray_run.run(address, tmp_path, 120, 8, url)
    assert (outcome.asked, outcome.failed, len(server.calls)) == (120, 0, 120)
    assert server.most_in_flight == 16
    assert stored(tmp_path, 120) == (120, 120)
    assert (again.asked, again.reused) == (0, 120)


def test_the_ceiling_holds_over_all_nodes(address, tmp_path):
    (tmp_path / "prices.yaml").write_text("m: {input: 0, output: 1000}\n")     # 0.02 an answer
    server = endpoint()
    with server.running() as url:
        outcome = ray_run.run(address, tmp_path, 120, 8, url, max_usd=1.0)
    # A request may cost 0.1, so the last ones are not sent though they would have cost less.
    assert 0.02 * len(server.calls) <= 1.0 and outcome.cost_usd > 0.8
    assert "might exceed max_usd 1" in outcome.stopped
    assert stored(tmp_path, 120)[0] == len(server.calls)


@pytest.mark.slow
def test_a_wrong_key_ends_the_run_with_its_sentence(address, tmp_path):
    server = FaultServer(lambda call: Answer(b"{}", status=401))
    with server.running() as url, pytest.raises(UserError, match="LIMBECK_API_KEY to a valid key"):
        ray_run.run(address, tmp_path, 40, 8, url)
    assert len(server.calls) <= 32


def test_a_server_that_dies_is_started_again_and_its_requests_asked(address, bin_folder, tmp_path):
    def kill():
        while len(asked(bin_folder)) < 20:
            time.sleep(0.1)
        killed = asked(bin_folder)[0][2]
        os.kill(killed, signal.SIGKILL)
        # The others stand still until the new one was asked, however long it takes to start.
        while len(pids := {pid for _, _, pid in asked(bin_folder)}) < 3:
            for pid in pids - {killed}:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(0.1)
        for pid in pids - {killed}:
            os.kill(pid, signal.SIGCONT)

    threading.Thread(target=kill, daemon=True).start()
    outcome = ray_run.run(address, tmp_path, 100, 4)
    asks = asked(bin_folder)
    assert stored(tmp_path, 100, ray_run.VLLM) == (100, 100)
    assert outcome.failed == 0 and len({pid for _, _, pid in asks}) == 3
    assert {question for _, question, _ in asks} == {f"question {i}" for i in range(100)}
    assert len(asks) <= 100 + 4


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_command(address, tmp_path):
    server = endpoint(0.5)
    with server.running() as url:
        line = [sys.executable, "-m", "tests.cluster.ray_run", address, str(tmp_path), "100", "4",
                url]
        with subprocess.Popen(line, cwd=ROOT) as driver:
            while len(server.calls) < 30:
                time.sleep(0.05)
            driver.kill()
        outcome = ray_run.run(address, tmp_path, 100, 4, url)
    assert outcome.reused >= 16 and stored(tmp_path, 100) == (100, 100)
    assert len(server.calls) <= 100 + 8


def test_a_cluster_judges_as_one_machine_does(address):
    problems = [Problem(f"p{i}", "q", str(i)) for i in range(60)]
    texts = [f"</think>So it is \\boxed{{{i + (i % 3 == 0)}}}." for i in range(60)]
    texts[7] = "</think>" + "\\boxed{\\frac{14}{2}}"
    seen = []
    with JudgePool(1) as alone, ClusterPool(RayCluster(address=address), 1) as pool:
        here = alone.judge_many(texts, problems)
        assert pool.judge_many(texts, problems, progress=seen.append) == here
    assert seen[-1] == 60 and len({one.verdict for one in here}) == 2


def test_what_cannot_work_is_refused_in_one_sentence(address, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no Ray cluster answers at .*:9 "):
        ray_run.run("127.0.0.1:9", tmp_path, 1, 1, "http://127.0.0.1:9/v1")
    with pytest.raises(ValidationError, match="give HOST:PORT of the head"):
        RayCluster(address="ray://head:10001")
    needy = VllmTeacher(model="m", vllm={"tensor_parallel_size": 4})
    with pytest.raises(UserError, match=r"needs 4 GPU\(s\) and the cluster has 2"):
        generate(ray_run.requests(1), teacher=needy, sampling=Sampling(), cluster=RayCluster(
            address=address), runtime=TeacherRuntime(), store=TraceStore(tmp_path))
    monkeypatch.setattr(parts, "code_digest", lambda: "other")
    with ClusterPool(RayCluster(address=address), 1) as pool, \
            pytest.raises(UserError, match=r"has another limbeck .* install the same on every"):
        pool.judge_many(["x"], [Problem("p", "q", "1")])
    monkeypatch.setattr(ray_nodes, "find_spec", lambda name: None)
    with pytest.raises(LackingError, match=r"pip install '\.\[ray\]'"):
        ray_nodes.check_cluster(type("Runtime", (), {"cluster": RayCluster()}))


def test_what_a_killed_writer_stored_is_not_asked_again(tmp_path):
    program = (
        "import sys, time\n"
        "from pipeline.teacher import TraceStore\n"
        "with TraceStore(sys.argv[1]) as store, store.writing() as leases:\n"
        "    assert leases.take({'k:0': 0.5, 'k:1': 0.5}) == {'k:0', 'k:1'}\n"
        "    store.append({'key': 'k', 'sample': 0, 'cost_usd': 0.25, 'failure': None})\n"
        "    print('stored', flush=True)\n"
        "    time.sleep(60)\n")
    with TraceStore(tmp_path) as store, store.writing() as leases:
        with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT,
                              stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"stored\n"
            assert leases.take(["k:0", "k:1"]) == set()
            writer.kill()
        assert leases.take(["k:0", "k:1"]) == {"k:1"}
        assert leases.ended["k:0"] == (True, 0.25)
