"""Servers over several nodes, each with GPUs of its own, and on nodes that come and go."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec

import psutil
import pytest

from pipeline.config.experiment import RayCluster
from pipeline.config.teacher import TeacherRuntime, VllmTeacher
from pipeline.errors import UserError
from pipeline.teacher import TraceStore
from pipeline.teacher.on_cluster import generate
from tests.cluster import ray_run
from tests.cluster.ray_nodes_here import asked, one_more, started

pytestmark = [pytest.mark.usefixtures("connection"), pytest.mark.skipif(
    find_spec("ray") is None, reason="needs Ray: pip install '.[ray]'")]


def ask(address, folder, count, teacher, **cluster):
    with TraceStore(folder) as store:
        return generate(ray_run.requests(count), teacher=teacher, sampling=ray_run.SAMPLING,
                        runtime=TeacherRuntime(concurrency=4, max_wait=0.5, timeout=600),
                        store=store, cluster=RayCluster(address=address, **cluster))


def test_two_servers_over_two_nodes_each_take_no_gpu_of_the_other(cluster, bin_folder, tmp_path):
    teacher = VllmTeacher(model="m", vllm={"tensor_parallel_size": 1, "pipeline_parallel_size": 2,
                                           "max_model_len": 64})
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(one_more(cluster, bin_folder, num_gpus=1))
        outcome = ask(cluster.address, tmp_path, 60, teacher)
    servers = started(bin_folder)
    assert outcome.asked == 60 and not outcome.failed and len(servers) == 2
    assert len(asked(bin_folder)) == 60
    for arguments, bundles in servers:
        text = json.dumps(arguments)
        assert '"--distributed-executor-backend", "ray"' in text
        assert '"--pipeline-parallel-size", "2"' in text and '"--max-model-len", "64"' in text
        assert [bundle for bundle, _ in bundles] == [0, 1]
    # Each node has one GPU, so four nodes are four GPUs.
    assert len({node for _, bundles in servers for _, node in bundles}) == 4


def test_what_one_server_over_nodes_cannot_do_is_refused(address, tmp_path):
    for teacher, said in (
            (VllmTeacher(model="m", servers=2, vllm={"tensor_parallel_size": 2}), "servers=2"),
            (VllmTeacher(model="m", vllm={"data_parallel_size": 2}), "data_parallel_size=2")):
        with pytest.raises(UserError, match=said):
            ask(address, tmp_path, 1, teacher)


def test_servers_asked_for_start_on_nodes_that_come_and_a_lost_nodes_requests_go_elsewhere(
        cluster, bin_folder, tmp_path):
    hold = bin_folder / "hold"

    def servers(count):
        while len(found := {pid for _, _, pid in asked(bin_folder)}) < count:
            assert not running.done() or running.result()
            time.sleep(0.1)
        return found

    hold.touch()                    # nothing is answered before that node is gone
    try:
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(ask, cluster.address, tmp_path, 40, VllmTeacher(model="m"),
                                     servers=3)
            before = servers(2)
            with one_more(cluster, bin_folder, num_gpus=1):     # as an autoscaler would
                [lost_pid] = servers(3) - before
            while psutil.pid_exists(lost_pid):      # a moment longer than its node
                time.sleep(0.1)
            hold.unlink()
            outcome = running.result()
    finally:
        hold.unlink(missing_ok=True)
    asks = asked(bin_folder)
    lost = {question for _, question, pid in asks if pid == lost_pid}
    assert 0 < len(lost) <= 4 and lost <= {question for _, question, pid in asks if pid != lost_pid}
    assert outcome.asked == 40 and not outcome.failed and len(asks) == 40 + len(lost)


def test_servers_that_no_node_comes_for_end_the_run_after_its_patience(address, tmp_path):
    teacher = VllmTeacher(model="m", vllm={"tensor_parallel_size": 4})
    with pytest.raises(UserError, match=r"no node of the cluster could work for \d s; add nodes"):
        ask(address, tmp_path, 1, teacher, servers=1, patience=1)
