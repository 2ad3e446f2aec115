"""One cluster of three nodes for all tests, with one project and one uninterrupted run to compare with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, unavailable
from tests.slurm.site import Project, cpu_site, make_project


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("cluster") / "slurm", n_nodes=3) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def project(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, byte_shards: Path) -> Project:
    root = tmp_path_factory.mktemp("site") / "project"
    return make_project(root, cluster=cluster, **cpu_site(SHARDS=byte_shards))


@pytest.fixture(scope="session")
def uninterrupted(project: Project) -> str:
    """Train an uninterrupted run; return its name."""
    job_id = project.train("uninterrupted")
    job = project.cluster.wait_for_end(job_id)
    assert (job.state, job.restarts) == ("COMPLETED", 0), project.log(job_id)
    return "uninterrupted"
