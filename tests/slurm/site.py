"""A project on a cluster as its user sees it: a folder with the code of this repository and a site.env of its own."""

import contextlib
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.helpers.run_results import Metrics, metrics
from tests.slurm.cluster import SCRATCH, Cluster, wait_for

# The demo recipe with a smaller model, on bytes, and fewer steps.
STEPS, EVERY = 120, 30
SHRUNK = (
    "model.dim=32", "model.n_layers=6", "model.vocab_size=258", "model.multiple_of=16", "data.seq_len=32",
    f"train.total_tokens={STEPS * 256}", "train.batch_tokens=256", "train.micro_batch_size=2",
    f"train.eval_every_steps={EVERY}", "train.eval_tokens=1024", "optim.warmup_steps=2",
    f"checkpoint.every_steps={EVERY}", "log.every_steps=1",
)  # fmt: skip
VARIABLES = {"RECIPE": "pipeline/recipes/demo.yaml", "DEEPSPEED_CONFIG": "ds_configs/zero1_fp32.json"}


@dataclass(frozen=True, kw_only=True)
class Project:
    """A working folder; all jobs are submitted from its root."""

    root: Path
    cluster: Cluster
    shards: Path

    def submit(self, *arguments: object, check: bool = True, **variables: str) -> CompletedProcess[str]:
        """Call slurm/submit.sh."""
        environment = {**VARIABLES, "CHECK_ONLY": "", **variables}
        return self.cluster.run("slurm/submit.sh", *arguments, cwd=self.root, check=check, **environment)

    def train(self, run_name: str, *options: object, **variables: str) -> str:
        """Submit the shrunk demo on two nodes; return the job's id."""
        of_job: dict[str, Any] = {"RUN_NAME": run_name, **variables}
        done = self.submit("train_200B", "--", *SHRUNK, *options, **of_job)
        return job_ids(done)[0]

    def log(self, job_id: str) -> str:
        """Return the output of the job itself, without that of its ranks."""
        return "".join(path.read_text() for path in self.root.glob(f"slurm-{job_id}-*.log"))

    def train_log(self, run_name: str) -> str:
        """Return the run's log, which covers all its starts."""
        return (self.run_dir(run_name) / "train.log").read_text()

    def run_dir(self, run_name: str) -> Path:
        return self.root / "runs" / run_name

    def metrics(self, run_name: str) -> Metrics:
        """Return the run's training lines of metrics.jsonl by step."""
        return metrics(self.run_dir(run_name))

    def losses(self, run_name: str) -> dict[int, list[float]]:
        """Return the losses of all heads by step."""
        return {
            step: [value for tag, value in line.items() if tag.startswith("loss/")]
            for step, line in self.metrics(run_name).items()
        }

    def ranks(self, run_name: str) -> dict[int, str]:
        """Return the pids of the run's ranks, as seen from this machine, and the node of each."""
        return self.cluster.processes(rf"\S*python -m pipeline\.train .*run\.name={re.escape(run_name)} ")

    def wait_for_step(self, run_name: str, step: int) -> None:
        """Wait until the run has reported a step."""
        wait_for(lambda: max(self.metrics(run_name), default=0) >= step, f"step {step} of {run_name}", every_s=0.02)

    def assert_same_losses(self, run_name: str, reference: str) -> None:
        """Assert that a run has the reference's losses, bit for bit."""
        assert self.losses(run_name) == self.losses(reference)
        assert list(self.losses(run_name)) == list(range(1, STEPS + 1))

    def assert_close_losses(self, run_name: str, reference: str) -> None:
        """Assert that a run has the reference's losses except for rounding: thread counts differ between launchers."""
        assert list(self.losses(run_name)) == list(range(1, STEPS + 1))
        for step, losses in self.losses(run_name).items():
            assert losses == pytest.approx(self.losses(reference)[step], rel=1e-5)


def make_project(root: Path, *, cluster: Cluster, **site: object) -> Project:
    """Make a project at `root` with the repository's templates, and with the settings `site` in its site.env."""
    return Project(root=copy_project(root, **site), cluster=cluster, shards=Path(str(site["SHARDS"])))


def copy_project(root: Path, **site: object) -> Path:
    """Make a working folder at `root` without a cluster; return `root`."""
    root.mkdir()
    for name in ("common", "data_prep", "ds_configs", "pipeline"):
        (root / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "slurm", root / "slurm")
    edit_site(root, **site)
    return root


def edit_site(root: Path, **site: object) -> None:
    """Change settings in a project's site.env, as a user would."""
    path = root / "slurm" / "site.env"
    text = path.read_text()
    for name, value in site.items():
        text, n_lines = re.subn(rf"^{name}=[^ \n]*", f'{name}="{value}"', text, flags=re.MULTILINE)
        assert n_lines == 1, name
    path.write_text(text)


@contextlib.contextmanager
def edited_site(project: Project, **site: object) -> Iterator[None]:
    """Change settings in a project's site.env inside the context; jobs read the file at every start."""
    path = project.root / "slurm" / "site.env"
    before = path.read_text()
    edit_site(project.root, **site)
    try:
        yield
    finally:
        path.write_text(before)


def cpu_site(**changes: object) -> dict[str, object]:
    """Return the settings for the tests' cluster: two training nodes with one rank each."""
    return {
        "ACCOUNT": "", "GPU_PARTITION": "", "CPU_PARTITION": "main", "CPUS": 2, "MEMORY": "", "DEVICE": "cpu",
        "RANKS_PER_NODE": 1, "TRAIN_NODES": 2, "INTERFACE": "eth0", "VENV": sys.prefix, "NODE_SCRATCH": SCRATCH,
        **changes,
    }  # fmt: skip


def job_ids(done: CompletedProcess[str]) -> list[str]:
    """Return the ids that submit.sh printed, in order."""
    return re.findall(r"^\S.* job (\d+)", done.stdout, flags=re.MULTILINE)
