"""Training on the nodes of a Ray cluster: lost nodes, stops, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import tiny_rl
import tiny_sft
import yaml

from pipeline.cluster import ray_launch, train_node
from pipeline.cluster.ray_nodes import code_digest
from pipeline.config.experiment import Experiment, RayCluster, Runtime
from pipeline.config.load import load
from pipeline.config.rl import RlJob
from pipeline.errors import LackingError, StoppedError, UserError
from pipeline.rl.schedule import grpo_config, phase_settings
from pipeline.sft import trainer as sft
from pipeline.train import launch
from stages import rl
from tests.cluster import accelerate_stand_in
from tests.cluster.ray_nodes_here import ray_cluster
from tests.cluster.test_two_nodes import REWARDED, SHARDED, assert_same, rl_jobs, sft_jobs
from tests.conftest import ROOT, until

pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(
    find_spec("ray") is None, reason="needs Ray: pip install '.[ray]'")]
TWO = {"num_machines": 2}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of three nodes without GPUs; a test kills one of them."""
    with ray_cluster(3) as made:
        yield made


@pytest.fixture
def job(tmp_path):
    """A job of nothing, for the stand-in."""
    return tiny_sft.job(tmp_path, tmp_path / "out")


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(ray_launch, "ACCELERATE", (accelerate_stand_in.__file__,))


def trained(cluster, job, options=TWO, module="pipeline.sft.trainer", **settings):
    """The counts of `job` on the nodes of `cluster`."""
    return launch.launch(job, module, options,
                         cluster=RayCluster(address=cluster.address, **settings))


@contextmanager
def once_whole(job, step, act):
    """Call `act` in a thread once `job` has saved `step`; its failure is the test's."""
    def wait():
        until((job.out / f"checkpoints/checkpoint-{step}/whole.json").is_file, 300)
        act()

    def ended(future):
        if future.exception():
            (job.out / "go").touch()        # or the stand-in waits for ever

    with ThreadPoolExecutor() as pool:
        future = pool.submit(wait)
        future.add_done_callback(ended)
        yield
        future.result()


def started(job, rank):
    """What the process of `rank` was started with; the others do not wait for it."""
    path = job.out / f"started-{rank}.json"
    until(path.is_file)
    return json.loads(path.read_text())


def test_processes_of_two_nodes_find_each_other(cluster, job):
    assert trained(cluster, job, {**TWO, "num_processes": 4},
                   module="tests.cluster.gathered_ranks") == {"ranks": [0, 1, 2, 3]}


def raylet_of(cluster, job):
    """The Ray process of a node that trains `job`; not the head's, on which the driver is."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
    return next(raylet for raylet in map(psutil.Process, raylets) if any(
        str(job.out / "job.json") in one.cmdline() for one in raylet.children(recursive=True)))


def crash(cluster, job):
    """Kill all processes of a node that trains `job`."""
    raylet = raylet_of(cluster, job)
    for process in (raylet, *raylet.children(recursive=True)):
        process.kill()


def test_after_a_lost_node_training_goes_on_with_another(cluster, job, stand_in, capfd):
    def lose():
        before = [started(job, rank)["pid"] for rank in (0, 1)]
        raylet_of(cluster, job).kill()      # the machine itself goes on
        until(lambda: not any(map(psutil.pid_exists, before)))
        (job.out / "go").touch()

    with once_whole(job, 2, lose):
        assert trained(cluster, job) == {"steps": accelerate_stand_in.STEPS}
    said = capfd.readouterr().err
    assert "was lost; going on from checkpoint-2" in said and said.count("rank 0 has begun") == 2


def test_a_stop_is_passed_on_and_the_same_command_goes_on(cluster, job, stand_in, monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    with once_whole(job, 2, lambda: os.kill(os.getpid(), signal.SIGTERM)), \
            pytest.raises(StoppedError, match="stopped after step 2"):
        trained(cluster, job)
    (job.out / "go").touch()
    assert trained(cluster, job)["steps"] == accelerate_stand_in.STEPS
    one, other = started(job, 0), started(job, 1)
    assert one["argv"][2:] == other["argv"][2:] and one["actor"] != other["actor"]
    given = {name: one["argv"][one["argv"].index(f"--{name}") + 1]
             for name in ("num_machines", "num_processes", "main_process_ip")}
    assert given["num_machines"] == given["num_processes"] == "2"
    assert (one["environment"]["NCCL_DEBUG"], one["environment"]["GLOO_SOCKET_IFNAME"]) == (
        "WARN", train_node.gloo_interface(given["main_process_ip"])["GLOO_SOCKET_IFNAME"])


def test_two_attempts_that_come_no_further_end_it(cluster, job, stand_in, capfd):
    (job.out / "fails").write_text("1")
    with pytest.raises(UserError, match=r"no further than its beginning in two attempts, the "
                                        r"second ended as machine 1 \(.*\) ended with code 1"):
        trained(cluster, job)
    assert capfd.readouterr().err.count("rank 1 fails") == 2


def test_what_cannot_train_is_refused_in_one_sentence(cluster, job, stand_in, monkeypatch):
    with pytest.raises(UserError, match=r"num_machines=9 wants so many nodes, and the cluster has "
                                        r"\d, after 0 s .*add nodes by"):
        trained(cluster, job, {"num_machines": 9}, patience=0)
    with pytest.raises(LackingError, match="use_fsdp shards over GPUs and no node of the cluster"):
        trained(cluster, job, {**TWO, "use_fsdp": True})
    with pytest.raises(UserError, match=r"not valid for accelerate .*num_machine_s"):
        trained(cluster, job, {**TWO, "num_machine_s": 2})
    with pytest.raises(UserError, match=r"no Ray cluster answers at .*:9 "):
        launch.launch(job, "x", TWO, cluster=RayCluster(address="127.0.0.1:9"))
    with monkeypatch.context() as patch, \
            pytest.raises(UserError, match=r"node .* of the cluster has another limbeck"):
        patch.setattr(ray_launch, "code_digest", lambda: "other")
        trained(cluster, job)


@pytest.mark.parametrize(("options", "nodes", "expected"), [
    ({}, [0, 0], (2, 0)), ({"num_processes": 6}, [0, 0], (6, 0)), ({}, [8, 4, 0], (8, 4)),
    ({}, [4], (2, 1)), ({"num_processes": 4, "use_fsdp": True}, [8, 8], (4, 2)),
])
def test_each_node_starts_as_many_processes_on_as_many_gpus(options, nodes, expected):
    assert ray_launch.layout({**TWO, **options}, dict(enumerate(nodes))) == expected


def test_plan_refuses_what_nodes_could_not_share(monkeypatch):
    runtime = Runtime(cluster=RayCluster(), launch={**TWO, "num_processes": 3})
    with pytest.raises(UserError, match="give a multiple of 2"):
        ray_launch.check_launch(runtime)
    for options in ({"num_machines": "many"}, {**TWO, "num_processes": "all"}):
        with pytest.raises(UserError, match=r"is no number"):
            ray_launch.check_launch(Runtime(cluster=RayCluster(), launch=options))
    for launched in ({"num_processes": 3}, {**TWO, "machine_rank": 0}):
        assert not ray_launch.spans_cluster(RayCluster(), launched)
    monkeypatch.setattr("pipeline.cluster.ray_nodes.find_spec", lambda name: None)
    with pytest.raises(LackingError, match=r"pip install '\.\[ray\]'"):
        ray_launch.check_launch(runtime)


def test_a_node_without_the_folders_says_so(tmp_path):
    with pytest.raises(UserError, match=r"does not see .*elsewhere; put it on a file system"):
        train_node.TrainNode().prepare("127.0.0.1", code_digest(), [tmp_path / "elsewhere"], [])


def experiment(*overrides):
    return load(Experiment, [ROOT / "configs/default.yaml"], [
        "runtime.cluster.type=ray", "runtime.launch.num_machines=2", "rl.phases=[]", *overrides])


def test_rl_trains_on_the_nodes_with_engines_that_they_reach(tmp_path, monkeypatch):
    there = experiment("rl.trainer.use_vllm=true", "rl.trainer.vllm_mode=server",
                       "rl.trainer.vllm_server_base_url=http://10.0.0.3:8000")
    rl.check(there)
    [settings] = phase_settings(there.rl)
    args = grpo_config(settings, tmp_path, 0)
    assert (args.vllm_mode, args.vllm_server_base_url) == ("server", "http://10.0.0.3:8000")
    job, given = tiny_sft.job(tmp_path, tmp_path / "out"), {}
    job = RlJob(rl=there.rl, model=job.model, tokenizer=job.tokenizer, rows=[], held_out=[],
                judge_workers=1, out=job.out)
    monkeypatch.setattr(rl, "launch", lambda *_, **options: given.update(options) or {})
    rl._refined(job, there.runtime)
    assert given == {"cluster": there.runtime.cluster}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("overlay", ["", "fsdp2", pytest.param("zero2", marks=pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install deepspeed"))])
def test_sft_that_lost_a_node_has_the_losses_of_one_process(tmp_path, monkeypatch, capfd, overlay):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    Path("sharded.py").write_text(SHARDED)
    given = yaml.safe_load((ROOT / f"configs/{overlay}.yaml").read_text())["runtime"]["launch"] \
        if overlay else {}
    options = {**given, **TWO, "num_processes": 2, "mixed_precision": "no"}
    module, gpus = ("sharded", 1) if overlay == "fsdp2" else ("pipeline.sft.trainer", 0)
    alone, two = sft_jobs(tmp_path, epochs=30)
    sft.train(alone)
    with ray_cluster(3, num_gpus=gpus) as cluster, \
            once_whole(two, 4, lambda: crash(cluster, two)):
        counts = trained(cluster, two, options, module)
    assert (counts["steps"], counts["processes"]) == (60, 2)
    assert "going on from checkpoint-" in capfd.readouterr().err
    assert_same(alone.out, two.out, 60)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_rl_that_lost_a_node_has_the_losses_of_two_processes_on_one(tmp_path, monkeypatch,
                                                                    capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("rewarded.py").write_text(REWARDED)
    jobs = rl_jobs(tmp_path)
    launch.launch(jobs[0], "rewarded", tiny_sft.TWO)
    with ray_cluster(3) as cluster, once_whole(jobs[1], 3, lambda: crash(cluster, jobs[1])):
        assert trained(cluster, jobs[1], module="rewarded")["steps"] == 12
    assert "going on from checkpoint-" in capfd.readouterr().err
    assert_same(jobs[0].out, jobs[1].out, 12)
    rewards = [[line["reward"] for line in tiny_rl.log(job.out)] for job in jobs]
    assert rewards[0] == rewards[1] and len(set(rewards[0])) > 1
