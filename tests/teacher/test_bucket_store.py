"""The trace store in an object store: machines with copies of their own lose and double nothing."""

import errno
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.config.teacher import Sampling
from pipeline.errors import LackingError, LockedError, UserError
from pipeline.objects import address, bucket_of, local_copy
from pipeline.teacher import TraceStore
from tests.bucket_server import bucket_server
from tests.fault_server import FaultServer
from tests.teacher.test_scheduler import child, slowly, stored_rows
from tests.teacher.test_store import TEACHER, missing, requests, row
from tests.teacher_run import SAMPLING
from tests.teacher_run import requests as asked_requests

URL = "s3://group/traces"
CONFIG = Path(__file__).resolve().parents[2] / "configs/default.yaml"


@pytest.fixture
def server(tmp_path, monkeypatch):
    with bucket_server(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The local copy of the store on the machine of that name, which this process is on then."""
    def of(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return local_copy(URL)

    return of


@pytest.mark.parametrize("count", [120, pytest.param(2000, marks=[
    pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_a_machine_that_is_killed_and_comes_back_loses_nothing_and_doubles_nothing(
        count, server, copy, tmp_path, monkeypatch):
    concurrency, teacher = 4, FaultServer(slowly)

    def start(name):
        copy(name)
        return child(url, URL, count, concurrency)

    with teacher.running() as url:
        first, other = start("first"), start("other")
        while len(teacher.calls) < count / 2:
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        again = start("first")
        for process in (other, again):
            error = process.communicate(timeout=600)[1]
            assert not process.returncode, error
    asked = Counter(call.question for call in teacher.calls)
    twice = sum(asked.values()) - count
    third = copy("third")
    assert not missing(third, asked_requests(count), SAMPLING)
    assert len(asked) == count == stored_rows(third) and twice <= concurrency
    assert not list(third.rglob("*.journal"))
    print(f"0 lost, 0 twice, {twice} asked again of at most {concurrency}")


def test_what_one_machine_stored_the_others_know_while_it_works_and_when_it_is_gone(
        server, copy):
    wanted, first = requests(4), copy("first")
    with TraceStore(first) as store, store.writing() as leases:
        assert leases.take(["a", "b"]) == {"a", "b"}
        store.append(row(wanted[0], Sampling()))
        leases.end("a", stored=True)
        leases.renew()
        other = copy("other")
        assert len(missing(other, wanted, Sampling())) == 3
        with TraceStore(other).writing() as theirs:
            assert theirs.take(["b", "c"]) == {"c"}
            leases.release(["b"])
            store.append(row(wanted[1], Sampling()))
            leases.renew()
            assert theirs.take(["b"]) == {"b"}
            assert len(missing(other, wanted, Sampling())) == 2
    assert not missing(copy("third"), wanted[:2], Sampling())


def test_the_rows_of_a_dead_machine_become_a_segment_once(server, copy, monkeypatch):
    wanted, first = requests(5), copy("first")
    monkeypatch.setattr("pipeline.teacher.store_mirror.PIECE", 300)      # several pieces
    store = TraceStore(first)
    with store.writing() as leases:
        for request in wanted[:3]:
            store.append(row(request, Sampling()))
            store._push()
        name, bucket = leases.heartbeat.id, bucket_of(first / "journals")
        assert len(bucket.names()) > 1
        leases.heartbeat.bury(name)      # it is dead to the others, and does not know
        for machine in ("second", "third"):
            with TraceStore(copy(machine)).writing():
                pass
            assert len(missing(copy(machine), wanted, Sampling())) == 2
        assert not bucket.names() and stored_rows(copy("third")) == 3
        leases.heartbeat.beat()
        store.append(row(wanted[3], Sampling()))
        assert leases.heartbeat.id != name
    assert len(TraceStore(copy("fourth")).collect(wanted, TEACHER, Sampling())) == 4


def test_rows_that_could_not_be_uploaded_are_by_the_next_run(server, copy):
    wanted, first = requests(2), copy("first")
    with pytest.raises(UserError, match=r"cannot be reached.*kept here"), \
            TraceStore(first) as store, store.writing():
        store.append(row(wanted[0], Sampling()))
        server.refuse = lambda method, path: method == "PUT" and path.endswith(".parquet")
    assert stored_rows(first) == 1
    server.refuse = lambda method, path: False
    with TraceStore(first).writing():
        pass
    assert len(missing(copy("other"), wanted, Sampling())) == 1


def test_an_append_and_the_end_of_a_lease_wait_for_no_network(server, copy):
    first, reached, go = copy("first"), threading.Event(), threading.Event()

    def hang(method, path):
        reached.set()
        go.wait(60)

    with TraceStore(first) as store, store.writing() as leases:
        leases.take(["p0:0"])
        server.refuse = hang
        telling = threading.Thread(target=leases.renew)
        leases.end("p0:0", stored=True)
        telling.start()
        assert reached.wait(60)
        for request in requests(20):     # while the object store does not answer
            store.append(row(request, Sampling()))
            leases.end(f"{request.problem_id}:0", stored=True)
        assert telling.is_alive() and len(store._journal.rows) == 20
        go.set()
        telling.join()
    assert not missing(copy("other"), requests(20), Sampling())


def test_a_store_without_creation_only_once_takes_one_writer(server, copy, monkeypatch):
    monkeypatch.setattr("pipeline.objects.ATOMIC", set())
    with TraceStore(copy("first")) as store, store.writing() as leases:
        assert leases.take(["a"]) == {"a"}
        store.append(row(requests(1)[0], Sampling()))
        with pytest.raises(LockedError, match=r"ask the same unawares.*one writes at a time"), \
                TraceStore(copy("other")).writing() as theirs:
            theirs.take(["b"])
    with TraceStore(copy("other")).writing() as theirs:
        assert theirs.take(["b"]) == {"b"}
    assert not missing(copy("other"), requests(1), Sampling())


def test_what_is_wrong_with_an_object_store_is_one_sentence(server, copy, monkeypatch):
    with pytest.raises(UserError, match="no bucket for s3://nowhere/x"):
        bucket_of(local_copy("s3://nowhere/x")).check()
    with pytest.raises(LackingError, match="pip install gcsfs"):
        bucket_of(local_copy("gs://group/x")).check()
    with pytest.raises(UserError, match="no object store that fsspec knows"):
        bucket_of(local_copy("zz://group/x")).check()
    for wrong in ("s3://", "s3://a/../b", "s3://a//b", "s3://a/b?c=d", "simplecache::s3://a/b"):
        with pytest.raises(UserError, match="no address of a folder"):
            local_copy(wrong)
    with pytest.raises(UserError, match="batch"):
        load(Experiment, [CONFIG], [f"runtime.traces={URL}", "runtime.teacher.batch=true",
                                    "generate.teacher={type: openai, model: m}"])
    store = TraceStore(copy("first"))
    for number, said in ((errno.ENOSPC, "no space is left for.*XDG_CACHE_HOME"),
                         (errno.EACCES, "refuses this key")):
        def fails(*_, number=number, **__):
            raise OSError(number, "refused")

        with monkeypatch.context() as patch:
            patch.setattr(bucket_of(store.folder).fs, "ls", fails)
            with pytest.raises(UserError, match=said):
                store.missing(requests(1), TEACHER, Sampling())


def test_an_address_is_its_local_copy_and_back(copy):
    folder = copy("first")
    assert address(folder) == URL and address(Path("data/traces")) == "data/traces"
    made = load(Experiment, [CONFIG], [f"runtime.traces={URL}",
                                       f"runtime.artifacts=[{URL}, data/artifacts]"])
    assert made.runtime.traces == folder and made.runtime.folders()[1] == Path("data/artifacts")
    tree = made.model_dump(mode="json", context="everything")["runtime"]
    assert tree["traces"] == URL and tree["artifacts"] == [URL, "data/artifacts"]
    assert bucket_of(Path("data/traces")) is None
    assert local_copy("file:///data/traces") == Path("/data/traces")
