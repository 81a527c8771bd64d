"""A Ray cluster of several nodes on this machine, and stand-ins for the vLLM servers on them."""

import os
import stat
import sys
from contextlib import contextmanager

from tests.conftest import ROOT

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
STAND_IN = """#!{python}
import os, pathlib, sys, time
sys.path.insert(0, {root!r})
from tests.fault_server import Answer, FaultServer, completion
asks = (pathlib.Path(__file__).parent / f"{{os.getpid()}}.asks").open("a")
def script(call):
    if call.path == "/health":
        return Answer(b"")
    asks.write(f"{{time.time()}} {{call.question}}\\n")
    asks.flush()
    return Answer(completion("42"), delay={delay})
port = int(sys.argv[sys.argv.index("--port") + 1])
with FaultServer(script, port).running():
    time.sleep(3600)
"""


@contextmanager
def ray_cluster(nodes=3, **options):
    """Yield a ray.cluster_utils.Cluster whose workers find this checkout; `options` of each."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)),
                   "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "(?s).*"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, **options})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**NODE, **options)
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def vllm_stand_in(folder, delay):
    """Put a `vllm` on the path that answers after `delay` seconds and notes each question."""
    path, before = folder / "bin" / "vllm", os.environ["PATH"]
    path.parent.mkdir()
    path.write_text(STAND_IN.format(python=sys.executable, root=str(ROOT), delay=delay))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    os.environ["PATH"] = f"{path.parent}:{before}"
    try:
        yield path.parent
    finally:
        os.environ["PATH"] = before


def asked(folder):
    """[(time, question, pid of the stand-in)] of all that was asked."""
    return [(float(line.split(" ", 1)[0]), line.split(" ", 1)[1].strip(), int(path.stem))
            for path in folder.glob("*.asks") for line in path.read_text().splitlines()]
