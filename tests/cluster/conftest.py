"""One Ray cluster for all tests of this folder: starting one takes longer than most of them."""

import pytest

from pipeline.cluster.ray_nodes import connected
from pipeline.config.experiment import RayCluster
from tests.cluster.ray_nodes_here import ray_cluster, vllm_stand_in


@pytest.fixture(scope="session")
def stand_in_folder(tmp_path_factory):
    """The folder of the stand-in for `vllm` that the cluster's nodes find."""
    return vllm_stand_in(tmp_path_factory.mktemp("vllm"), delay=0.5)


@pytest.fixture
def bin_folder(stand_in_folder):
    """That folder without what stand-ins noted in earlier tests."""
    for path in [*stand_in_folder.glob("*.asks"), *stand_in_folder.glob("*.start")]:
        path.unlink()
    return stand_in_folder


@pytest.fixture(scope="session")
def cluster(stand_in_folder):
    """A cluster of two nodes with a GPU each, as far as Ray knows."""
    with ray_cluster(2, stand_in_folder, num_gpus=1) as made:
        yield made


@pytest.fixture(scope="module")
def address(cluster):
    return cluster.address


@pytest.fixture(scope="module")
def connection(address):
    """Stay connected over a module's tests, which share the processes that ran before."""
    with connected(RayCluster(address=address)) as ray:
        yield ray
