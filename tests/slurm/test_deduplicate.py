"""Near deduplication as job arrays of a real Slurm: the files equal those of one run on one machine."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_module
from tests.slurm.cluster import Cluster, wait_for


def _files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "documents").iterdir()}


@pytest.mark.slurm
def test_stages_run_as_job_arrays_and_the_same_command_then_has_nothing_to_do(cluster: Cluster, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for name in ("a", "b"):  # each file twice, except one
        shutil.copytree(REPOSITORY / "common", corpus / name, ignore=shutil.ignore_patterns("__pycache__"))
    (corpus / "a" / "files.py").unlink()
    words = ["--input", str(corpus), "--tasks", "3", "--num_workers", "1", "--out"]
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert run_module("data_prep.deduplicate_corpus", *words, alone).returncode == 0
    command = [sys.executable, "-m", "data_prep.deduplicate_corpus", *words, out]
    refused = cluster.run(*command, "--slurm_partition", "none", check=False)
    assert refused.returncode == 2
    assert "sbatch does not accept the jobs" in refused.stderr
    done = cluster.run(*command, "--slurm_partition", "main", "--slurm_time", "10")
    assert "the same command without --slurm_partition" in done.stdout
    assert len(re.findall(r"^\w+: job \d+$", done.stdout, flags=re.MULTILINE)) == 4
    wait_for(lambda: not cluster.run("squeue", "-h").stdout.strip(), "the end of all jobs", timeout_s=900)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("logs/documents/completions/*")}
    assert len(finished) == 3
    done = cluster.run(*command)
    assert "is finished" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # nothing ran again
    assert _files(out) == _files(alone)
