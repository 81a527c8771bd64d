"""A Ray cluster of several nodes on this machine, and stand-ins for the vLLM servers on them."""

import json
import os
import stat
import sys
from contextlib import contextmanager

from tests.conftest import ROOT

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
STAND_IN = """#!{python}
import json, os, pathlib, sys, time
sys.path.insert(0, {root!r})
if "--fail" in sys.argv:
    sys.exit("no such model")
from tests.fault_server import Answer, FaultServer, completion
def placement():
    ray = sys.modules.get("ray")        # in an actor alone
    group = ray and ray.util.get_current_placement_group()
    return group and sorted(ray.util.placement_group_table(group)["bundles_to_node_id"].items())
(pathlib.Path(__file__).parent / f"{{os.getpid()}}.start").write_text(
    json.dumps([sys.argv[1:], placement()]))
asks = (pathlib.Path(__file__).parent / f"{{os.getpid()}}.asks").open("a")
def script(call):
    if call.path == "/health":
        return Answer(b"")
    asks.write(f"{{time.time()}} {{call.question}}\\n")
    asks.flush()
    while (pathlib.Path(__file__).parent / "hold").exists():
        time.sleep(0.05)
    return Answer(completion("42"), delay={delay})
port, host = (sys.argv[sys.argv.index(name) + 1] for name in ("--port", "--host"))
with FaultServer(script, int(port), host).running():
    time.sleep(3600)
"""


@contextmanager
def environment(**variables):
    """Set `variables` within the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def of_nodes(path=None):
    """Variables that nodes are started with: their workers find this checkout, and `path`."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [
                str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])),
            "PATH": os.pathsep.join([*([str(path)] if path else []), os.environ["PATH"]]),
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "(?s).*"}


@contextmanager
def ray_cluster(nodes=3, path=None, **options):
    """Yield a ray.cluster_utils.Cluster; `options` of each node, whose PATH begins with `path`."""
    with environment(**of_nodes(path)):
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={**NODE, **options})
        for _ in range(nodes - 1):
            cluster.add_node(**NODE, **options)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def one_more(cluster, path=None, **options):
    """Yield a further node of `cluster`, which the block may remove."""
    with environment(**of_nodes(path)):
        node = cluster.add_node(**{**NODE, **options})
    try:
        yield node
    finally:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)


def vllm_stand_in(folder, delay):
    """Write a `vllm` that answers after `delay` seconds and notes each question; its folder."""
    path = folder / "bin" / "vllm"
    path.parent.mkdir()
    path.write_text(STAND_IN.format(python=sys.executable, root=str(ROOT), delay=delay))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path.parent


def started(folder):
    """[(arguments, [(bundle, node)] of its placement group)] of each stand-in."""
    return [json.loads(path.read_text()) for path in folder.glob("*.start")]


def asked(folder):
    """[(time, question, pid of the stand-in)] of all that was asked."""
    return [(float(line.split(" ", 1)[0]), line.split(" ", 1)[1].strip(), int(path.stem))
            for path in folder.glob("*.asks") for line in path.read_text().splitlines()]
