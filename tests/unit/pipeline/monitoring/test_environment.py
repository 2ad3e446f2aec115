"""The versions and the git commit that a run records."""

import subprocess
from importlib import metadata

from pipeline.monitoring.environment import environment
from tests.conftest import REPOSITORY


def test_the_environment_names_versions_and_commit_only() -> None:
    values = environment()
    assert set(values) == {"python", "packages", "device", "git_commit"}
    assert values["packages"]["deepspeed"] == metadata.version("deepspeed")
    assert values["packages"]["torch"] == metadata.version("torch")
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--verify", "--quiet", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    assert values["git_commit"] == (head or None)
