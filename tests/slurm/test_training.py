"""Training jobs on a real Slurm, by the shipped templates: what can happen to them, and how they go on."""

import pytest

from tests.slurm.site import STEPS, Project

pytestmark = pytest.mark.slurm


def test_two_nodes_train_as_one_launcher_does(project: Project, uninterrupted: str) -> None:
    shards = next(path for path in [project.root] if path)  # replaced below
    assert list(project.losses(uninterrupted)) == list(range(1, STEPS + 1))
