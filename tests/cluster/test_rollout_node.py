"""The server that samples for GRPO on a cluster: its GPUs, its address, its end, a new one."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from importlib.util import find_spec

import psutil
import pytest
import tiny_rl
import tiny_sft

from pipeline.cluster import ray_launch
from pipeline.cluster.rollout_node import OVER_NODES, RolloutServer, left_to_train
from pipeline.config.experiment import RayCluster
from pipeline.config.rl import RlConfig, RlJob
from pipeline.errors import LackingError, StoppedError, UserError
from pipeline.serving.vllm_server import trl_server
from pipeline.train import launch
from stages import rl
from tests.cluster import accelerate_stand_in, trl_stand_in
from tests.cluster.ray_nodes_here import NODE, environment, of_nodes, ray_cluster
from tests.cluster.test_ray_training import TWO, experiment, once_whole, started
from tests.cluster.test_two_nodes import REWARDED, assert_same, rl_jobs
from tests.conftest import ROOT, until
from tests.serving.test_engine_group import gone

pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(
    find_spec("ray") is None, reason="needs Ray: pip install '.[ray]'")]


@pytest.fixture(scope="module")
def cluster(stand_in_folder):
    """Three nodes with two GPUs each, as far as Ray knows; nothing runs there yet."""
    with ray_cluster(3, stand_in_folder, num_gpus=2) as made:
        yield made


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job of nothing, for the stand-in in the place of accelerate."""
    monkeypatch.setattr(ray_launch, "ACCELERATE", (accelerate_stand_in.__file__,))
    return RlJob(rl=RlConfig(), model="some/model", tokenizer=tmp_path, rows=[], held_out=[],
                 judge_workers=1, out=tmp_path)


def trained(cluster, job, patience=600, **options):
    return launch.launch(job, "pipeline.rl.phases", TWO,
                         cluster=RayCluster(address=cluster.address, patience=patience),
                         server=RolloutServer(job.model, options, job.at))


def server_of(bin_folder, job):
    """(pid, arguments, nodes) of the server that answers where `job` was told."""
    trainer = json.loads((job.out / "job.json").read_text())["rl"]["trainer"]
    url = trainer.pop("vllm_server_base_url")
    assert trainer == {"use_vllm": True, "vllm_mode": "server"}
    assert urllib.request.urlopen(f"{url}/health").status == 200
    host, port = url.removeprefix("http://").split(":")
    for path in bin_folder.glob("*.start"):
        words, places = json.loads(path.read_text())
        if words[2:6] == ["--host", host, "--port", port]:
            return int(path.stem), words, places
    raise AssertionError(url)


def until_free(ray):
    until(lambda: ray.available_resources().get("GPU") == 6)


def test_a_lost_server_is_started_anew_and_ends_with_training(cluster, connection, bin_folder, job,
                                                              capfd):
    servers = []

    def lose():
        servers.append(server_of(bin_folder, job))
        trainer = started(job, 0)["pid"]
        os.kill(servers[0][0], signal.SIGKILL)
        until(lambda: started(job, 0)["pid"] != trainer)
        servers.append(server_of(bin_folder, job))
        (job.out / "go").touch()

    with once_whole(job, 2, lose):
        assert trained(cluster, job, max_model_len=64) == {"steps": accelerate_stand_in.STEPS}
    until_free(connection)
    (one, words, _), (other, _, _) = servers
    assert one != other and gone(other)
    assert words[:2] == ["serve", "some/model"] and words[6:] == [
        "--dtype", "bfloat16", "--max-model-len", "64", "--weight-transfer-config",
        '{"backend": "nccl"}', "--logprobs-mode", "processed_logprobs"]
    told = started(job, 0)
    assert told["environment"]["VLLM_HOST_IP"] == told["argv"][
        told["argv"].index("--main_process_ip") + 1]
    assert ("the server of rl.server ended with code -9; going on from checkpoint-2"
            in capfd.readouterr().err)


def test_a_stop_ends_the_server(cluster, connection, bin_folder, job):
    servers = []

    def stop():
        servers.append(server_of(bin_folder, job))
        os.kill(os.getpid(), signal.SIGTERM)

    with once_whole(job, 2, stop), pytest.raises(StoppedError, match="after step 2"):
        trained(cluster, job)
    until_free(connection)
    assert gone(servers[0][0])


def test_a_server_may_lie_on_several_nodes(cluster, connection, bin_folder, job):
    (job.out / "go").touch()
    trained(cluster, job, tensor_parallel_size=3)
    until_free(connection)
    [start] = bin_folder.glob("*.start")
    words, places = json.loads(start.read_text())
    assert words[words.index("--distributed-executor-backend") + 1] == "ray"
    assert len({node for _, node in places}) == 2 and gone(int(start.stem))


def test_what_cannot_serve_is_refused_in_one_sentence(cluster, connection, bin_folder, job):
    with pytest.raises(LackingError, match=r"rl\.server needs 5 GPU\(s\) beside 1 on each of 2 "
                                           r"machines that train, and .* have 2, 2, 2; add nodes"):
        trained(cluster, job, tensor_parallel_size=5)
    with pytest.raises(UserError, match=r"ended with code 1 before .*vllm\.log:\nno such model"):
        trained(cluster, job, fail=True)
    until_free(connection)
    others = connection.util.placement_group([{"GPU": 1}] * 3, strategy="STRICT_SPREAD")
    connection.get(others.ready())
    with pytest.raises(UserError, match=r"wants 2 GPU\(s\) beside 2 on each of 2 machines, and the "
                                        r"cluster has 6, not all of them free, after 0 s"):
        trained(cluster, job, patience=0, tensor_parallel_size=2)
    connection.util.remove_placement_group(others)
    until_free(connection)


@pytest.mark.parametrize(("gpus", "server", "count", "expected"), [
    ([8, 8], 2, 2, {0: 6, 1: 6}), ([8, 8, 1], 1, 2, {0: 7, 1: 7, 2: 8}),
    ([8, 4, 4], 8, 2, {0: 4}), ([4, 3], 1, 2, {0: 3, 1: 2}), ([1, 1, 1, 1], 2, 2, {OVER_NODES: 1}),
    ([1, 1], 1, 2, {0: 0, 1: 0}), ([4], 1, 2, {0: 0}), ([1, 1], 3, 2, {})])
def test_the_server_goes_where_it_leaves_most_to_train(gpus, server, count, expected):
    assert left_to_train(dict(enumerate(gpus)), server, count) == expected


def test_training_gets_the_gpus_that_the_server_leaves():
    server = RolloutServer("m", {"tensor_parallel_size": 2}, lambda url: None)
    gpus = {"a": 8, "b": 8}
    assert ray_launch.layout(TWO, gpus, server) == (12, 6)
    assert ray_launch.layout({**TWO, "num_processes": 8}, gpus, server) == (8, 4)
    with pytest.raises(LackingError, match=r"beside 8 on each of 2 machines .* have 8, 8;"):
        ray_launch.layout({**TWO, "num_processes": 16}, gpus, server)
    with pytest.raises(UserError, match=r"remove rl\.server\.data_parallel_size"):
        ray_launch.layout(TWO, dict.fromkeys("abcd", 1),
                          RolloutServer("m", {"data_parallel_size": 2}, lambda url: None))


@pytest.mark.parametrize(("given", "said"), [
    (["rl.server_gpus=1"], "rl.server_gpus=1 names GPUs of this machine"),
    (["rl.server.tensor_parallel_size=all"], "rl.server.tensor_parallel_size='all' is no number"),
    (["rl.overlap=true"], "works with one training process"),
    (["rl.phases=[{until_step: 1}, {}]"], "weights of one trainer")])
def test_plan_refuses_a_server_that_could_not_serve(given, said):
    rl.check(experiment("rl.server={}"))
    with pytest.raises(UserError, match=said):
        rl.check(experiment("rl.server={}", *given))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_grpo_that_lost_the_node_of_its_server_has_the_losses_of_one_machine(tmp_path, monkeypatch,
                                                                             capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = trl_stand_in.install(tmp_path)
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    (tmp_path / "served.py").write_text(
        f"from tests.cluster import trl_stand_in\ntrl_stand_in.without_vllm()\n{REWARDED}")
    alone, two = rl_jobs(tmp_path)
    with trl_server(alone.model, {}, tmp_path / "vllm.log", {}) as url:
        launch.launch(alone.at(url), "served", tiny_sft.TWO)

    def lose_the_server():
        port = json.loads((two.out / "job.json").read_text())["rl"]["trainer"][
            "vllm_server_base_url"].rpartition(":")[2]
        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid)
                   for node in cluster.worker_nodes]
        for raylet in raylets:
            processes = [raylet, *raylet.children(recursive=True)]
            if any(port in one.cmdline() for one in processes):
                for one in processes:
                    one.kill()

    with ray_cluster(1, path) as cluster, environment(**of_nodes(path)):
        for _ in range(4):
            cluster.add_node(**NODE, num_gpus=1)
        with once_whole(two, 3, lose_the_server):
            counts = launch.launch(two, "served", TWO, cluster=RayCluster(address=cluster.address),
                                   server=RolloutServer(two.model, {}, two.at))
    assert counts["steps"] == 12 and "going on from checkpoint-" in capfd.readouterr().err
    assert_same(alone.out, two.out, 12)
    rewards = [[line["reward"] for line in tiny_rl.log(job.out)] for job in (alone, two)]
    assert rewards[0] == rewards[1] and len(set(rewards[0])) > 1
