"""slurm/check_node.sh: it names all problems of a node, and passes a node without any."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

GPU = "GPU {index}: NVIDIA H100 80GB HBM3 (UUID: GPU-{index})"
LOST = "Unable to determine the device handle for GPU{index}: 0000:1B:00.0: Unknown Error"


def checked(
    folder: Path, *, gpus: list[str] | None = None, cwd: Path = REPOSITORY, **variables: object
) -> tuple[int, str]:
    """Check a node whose nvidia-smi prints these lines, one per GPU; return exit code and error output."""
    environment = {
        "RANKS_PER_NODE": "2", "DEVICE": "cuda", "INTERFACE": "lo", "run_dir": folder, "NODE_SCRATCH": folder,
        "SLURMD_NODENAME": "n7", **variables,
    }  # fmt: skip
    tool = folder / "nvidia-smi"
    lines = [line.format(index=index) for index, line in enumerate(gpus or [])]
    tool.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    tool.chmod(0o755)
    done = subprocess.run(
        ["bash", REPOSITORY / "slurm" / "check_node.sh"], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **{k: str(v) for k, v in environment.items()}},
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_good_node_passes(tmp_path: Path) -> None:
    assert checked(tmp_path, gpus=[GPU, GPU]) == (0, "")
    assert checked(tmp_path, DEVICE="cpu") == (0, "")


@pytest.mark.parametrize("gpus", [[], [GPU], [GPU, LOST]])
def test_missing_and_lost_gpus_are_counted(tmp_path: Path, gpus: list[str]) -> None:
    code, said = checked(tmp_path, gpus=gpus)
    assert code == 1
    assert said == f"slurm: error: node n7: has {gpus.count(GPU)} working GPUs instead of 2\n"


def test_all_problems_of_a_node_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    code, said = checked(tmp_path, cwd=tmp_path, INTERFACE="ib7", run_dir=missing, NODE_SCRATCH=missing, DEVICE="cpu")
    assert code == 1
    assert [line.partition("node n7: ")[2].partition(" (")[0] for line in said.splitlines()] == [
        "cannot see the repository",
        "has no network interface ib7",
        f"cannot write to {missing}",
        f"cannot write to {missing}",
    ]
