"""A Ray cluster of several nodes on this machine, for tests that lose some of them."""

import os
from contextlib import contextmanager

from tests.conftest import ROOT

MEMORY = 80 << 20
"""Bytes of each node's object store, the least that Ray takes."""
NODE = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}


@contextmanager
def ray_cluster(nodes=3, **options):
    """Yield a ray.cluster_utils.Cluster whose workers find this checkout; `options` of each."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)),
                   "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, **options})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**NODE, **options)
        yield cluster
    finally:
        cluster.shutdown()
