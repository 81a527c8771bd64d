"""Many processes on one trace store: nothing lost, nothing twice, nobody waits for the dead."""

import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock

from pipeline import heartbeat
from pipeline.config.teacher import Sampling, TeacherRuntime
from pipeline.errors import LockedError, UserError
from pipeline.heartbeat import Heartbeat
from pipeline.leases import Leases
from pipeline.teacher import TraceStore, generate
from tests.conftest import PATIENCE
from tests.fault_server import Answer, FaultServer, completion
from tests.teacher.test_scheduler import PRICES, child, slowly, stored_rows
from tests.teacher.test_store import TEACHER, missing, requests, row
from tests.teacher_run import SAMPLING
from tests.teacher_run import requests as asked_requests


@pytest.fixture
def quick(monkeypatch):
    """Heartbeats for tests: ten a second, and three missed are a death."""
    monkeypatch.setattr("pipeline.heartbeat.BEAT", 0.1)
    monkeypatch.setattr("pipeline.heartbeat.MISSED", 3)


@pytest.mark.parametrize(("kills", "count"), [(5, 400), pytest.param(50, 5000, marks=[
    pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_kills_of_any_of_three_processes_lose_nothing_and_double_nothing(kills, count, tmp_path):
    rng, done, concurrency, folder = random.Random(kills), 0, 4, tmp_path / "store"
    server = FaultServer(slowly)
    with server.running() as url:
        running = [child(url, folder, count, concurrency) for _ in range(3)]
        while done < kills and len(server.calls) < count * 0.95:
            due = count * 0.9 * (done + 0.5) / kills         # spread over the whole run
            while len(server.calls) < due + rng.uniform(-5, 5):
                time.sleep(0.01)
            victim = rng.randrange(3)
            if running[victim].poll() is None:
                running[victim].send_signal(signal.SIGKILL)
                assert running[victim].wait(PATIENCE) == -signal.SIGKILL
                done += 1
                running[victim].communicate()
                running[victim] = child(url, folder, count, concurrency)
        for process in running:
            error = process.communicate(timeout=600)[1]
            assert not process.returncode, error
    asked = Counter(call.question for call in server.calls)
    again = sum(asked.values()) - count
    assert done == kills and len(asked) == count == stored_rows(folder)
    assert not missing(folder, asked_requests(count), SAMPLING) and again <= done * concurrency
    assert not list(folder.glob("*.journal"))
    print(f"{done} kills: 0 lost, 0 twice, {again} asked again of at most {done * concurrency}")


def dear(call):
    return Answer(completion("42", usage=(10, 90)), delay=0.02)


def test_a_ceiling_holds_over_three_writers(tmp_path):
    (tmp_path / "prices.yaml").write_text(PRICES)
    server, asked = FaultServer(dear), asked_requests(400)

    def write():
        with TraceStore(tmp_path / "store") as store:
            return generate(asked, teacher=TEACHER, sampling=SAMPLING, store=store,
                            runtime=TeacherRuntime(base_url=url, prices=tmp_path / "prices.yaml",
                                                   concurrency=4, max_usd=0.1))

    with server.running() as url, ThreadPoolExecutor(3) as threads:
        outcomes = [one.result() for one in [threads.submit(write) for _ in range(3)]]
    spent = TraceStore(tmp_path / "store").spent(asked, TEACHER, SAMPLING)
    assert 0.095 < spent <= 0.1 and spent == pytest.approx(len(server.calls) * 910 / 1e6)
    assert sum(outcome.cost_usd for outcome in outcomes) == pytest.approx(spent)
    assert all("max_usd" in outcome.stopped for outcome in outcomes)


@pytest.mark.slow
def test_a_ceiling_holds_over_three_processes_that_are_killed(tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES)
    server = FaultServer(dear)
    with server.running() as url:
        running = [child(url, tmp_path / "store", 400, 4, 0.1, prices) for _ in range(3)]
        for count in range(2):
            while len(server.calls) < 15 * (count + 1):
                time.sleep(0.01)
            running[count].send_signal(signal.SIGKILL)
        for process in running:
            process.communicate(timeout=PATIENCE)
    assert 0 < len(server.calls) * 910 / 1e6 <= 0.1


def test_what_a_dead_process_may_have_cost_is_known_to_those_who_begin_later(tmp_path):
    with Leases(tmp_path) as first:
        if (child_pid := os.fork()) == 0:
            Leases(tmp_path).take({"x": 0.5})
            os._exit(0)
        os.waitpid(child_pid, 0)
        assert first.take({"x": 0.25}) == {"x"} and first.forfeited == {"x": 0.5}
        for _ in range(300):                # past a change that holds all leases
            first.take({"y": 0.1})
            first.release(["y"])
        with Leases(tmp_path) as later:
            assert later.forfeited == {"x": 0.5}


def test_a_lease_is_given_once_and_ends_with_its_process(tmp_path):
    names = [str(number) for number in range(10)]
    with Leases(tmp_path) as first, Leases(tmp_path) as other:
        assert first.take(names[:6]) == set(names[:6])
        assert other.take(names) == set(names[6:])
        first.end("0", stored=True, usd=0.5)
        first.release(["1"])
        first.renew()
        assert other.take(names) == {"1", *names[6:]}
        assert other.ended["0"].stored and other.ended["0"].usd == 0.5
        with Leases(tmp_path) as third:
            assert not third.take(names[1:])
            child_pid = os.fork()
            if child_pid == 0:           # a process that takes one and dies
                Leases(tmp_path).take(["x"])
                os._exit(0)
            os.waitpid(child_pid, 0)
            assert third.take(["x"]) == {"x"}
    with Leases(tmp_path) as last:
        assert last.take(names) == set(names)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_process_of_another_machine_is_dead_once_it_misses_heartbeats(quick, tmp_path,
                                                                        monkeypatch):
    other = Heartbeat(tmp_path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(heartbeat, "machine", lambda: "another")
        mine = Heartbeat(tmp_path)
    monkeypatch.setattr(heartbeat.Heartbeat, "_same_machine", lambda *_: False)
    assert mine.alive(other.id) and other.alive(mine.id)
    for _ in range(6):
        time.sleep(0.01)
        other.beat()
        mine.beat()
        assert mine.alive(other.id) and other.alive(mine.id)
    for _ in range(3):
        assert mine.alive(other.id)
        mine.beat()
    assert not mine.alive(other.id)
    mine.bury(other.id)
    other.beat()
    assert other.is_lost()


def test_who_stood_still_and_was_taken_over_loses_no_row(quick, tmp_path):
    wanted, slow = requests(4), TraceStore(tmp_path)
    with slow.writing() as leases:
        assert leases.take(["a", "b"])
        slow.append(row(wanted[0], Sampling()))
        leases.heartbeat.bury(leases.heartbeat.id)       # as another does to the dead
        with TraceStore(tmp_path).writing() as others:
            assert others.take(["a"]) == {"a"} and not list(tmp_path.glob("*.journal"))
            leases.heartbeat.beat()
            slow.append(row(wanted[1], Sampling()))
            assert len(missing(tmp_path, wanted, Sampling())) == 2
            with pytest.raises(UserError, match="stood still"):
                leases.take(["b", "c"])
        slow.append(row(wanted[2], Sampling()))
    assert len(missing(tmp_path, wanted, Sampling())) == 1
    assert len(TraceStore(tmp_path).collect(wanted, TEACHER, Sampling())) == 3


def test_a_store_of_an_older_version_is_read_and_its_journal_folded(tmp_path):
    wanted = requests(3)
    with TraceStore(tmp_path) as store, store.writing():
        for request in wanted:
            store.append(row(request, Sampling()))
        (tmp_path / "old").write_bytes(next(tmp_path.glob("*.journal")).read_bytes())
    next(tmp_path.glob("*.parquet")).unlink()
    (tmp_path / "old").rename(tmp_path / "000001.journal")
    assert not missing(tmp_path, wanted, Sampling())
    with FileLock(tmp_path / "lock"), pytest.raises(LockedError, match="older version"), \
            TraceStore(tmp_path).writing():
        pass
    assert (tmp_path / "000001.journal").exists()
    with TraceStore(tmp_path).writing(), pytest.raises(TimeoutError):
        FileLock(tmp_path / "lock", timeout=0).acquire()
    assert [path.name[:7] for path in tmp_path.glob("0*")] == ["000001-"]
    assert not missing(tmp_path, wanted, Sampling())


def test_a_file_system_without_hard_links_lets_one_run_write_at_a_time(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", refuse)
    with TraceStore(tmp_path).writing() as leases:
        assert leases.take(["a"]) == {"a"}
        with pytest.raises(LockedError, match="no hard links"), \
                TraceStore(tmp_path).writing() as other:
            other.take(["b"])
    with TraceStore(tmp_path).writing() as leases:
        assert leases.take(["a"]) == {"a"}
