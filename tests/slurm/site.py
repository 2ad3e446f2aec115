"""A project on a cluster, as its user sees it: a folder with this repository's code and its own site.env."""

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

# make demo's recipe, with a smaller model on bytes, and fewer steps.
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
    """A working folder at the root of which everything is submitted."""

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
        """What the job itself has printed, without that of its ranks."""
        return "".join(path.read_text() for path in self.root.glob(f"slurm-{job_id}-*.log"))

    def train_log(self, run_name: str) -> str:
        """The run's own log, of all its starts."""
        return (self.run_dir(run_name) / "train.log").read_text()

    def run_dir(self, run_name: str) -> Path:
        return self.root / "runs" / run_name

    def metrics(self, run_name: str) -> Metrics:
        """Return the run's training lines of metrics.jsonl by step."""
        return metrics(self.run_dir(run_name))

    def losses(self, run_name: str) -> dict[int, list[float]]:
        """Every head's loss, by step."""
        return {
            step: [value for tag, value in line.items() if tag.startswith("loss/")]
            for step, line in self.metrics(run_name).items()
        }

    def ranks(self, run_name: str) -> dict[int, str]:
        """The pids of the run's ranks, seen from this machine, and the nodes they are on."""
        return self.cluster.processes(rf"\S*python -m pipeline\.train .*run\.name={re.escape(run_name)} ")

    def wait_for_step(self, run_name: str, step: int) -> None:
        """Wait until the run has reported a step."""
        wait_for(lambda: max(self.metrics(run_name), default=0) >= step, f"step {step} of {run_name}", every_s=0.02)

    def assert_went_on_as_if_nothing_had_happened(self, run_name: str, reference: str) -> None:
        """Assert that a run has the reference's losses, bit for bit."""
        assert self.losses(run_name) == self.losses(reference)
        assert list(self.losses(run_name)) == list(range(1, STEPS + 1))

    def assert_trained_like(self, run_name: str, reference: str) -> None:
        """Assert that a run has the reference's losses but for rounding: launchers differ in the threads they give."""
        assert list(self.losses(run_name)) == list(range(1, STEPS + 1))
        for step, losses in self.losses(run_name).items():
            assert losses == pytest.approx(self.losses(reference)[step], rel=1e-5)


def make_project(root: Path, *, cluster: Cluster, **site: object) -> Project:
    """Make a project at `root`; its templates are the repository's own, and `site` is what its site.env says."""
    root.mkdir()
    for name in ("common", "data_prep", "ds_configs", "pipeline"):
        (root / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "slurm", root / "slurm")
    edit_site(root, **site)
    return Project(root=root, cluster=cluster, shards=Path(str(site["SHARDS"])))


def edit_site(root: Path, **site: object) -> None:
    """Edit lines of a project's site.env as a user would."""
    path = root / "slurm" / "site.env"
    text = path.read_text()
    for name, value in site.items():
        text, n_lines = re.subn(rf"^{name}=[^ \n]*", f'{name}="{value}"', text, flags=re.MULTILINE)
        assert n_lines == 1, name
    path.write_text(text)


@contextlib.contextmanager
def edited_site(project: Project, **site: object) -> Iterator[None]:
    """Have other lines in a project's site.env for a while: jobs read it whenever they start."""
    path = project.root / "slurm" / "site.env"
    before = path.read_text()
    edit_site(project.root, **site)
    try:
        yield
    finally:
        path.write_text(before)


def cpu_site(**changes: object) -> dict[str, object]:
    """What a site.env says for the tests' cluster: two nodes train, with a rank each."""
    return {
        "ACCOUNT": "", "GPU_PARTITION": "", "CPU_PARTITION": "main", "CPUS": 2, "MEMORY": "", "DEVICE": "cpu",
        "RANKS_PER_NODE": 1, "TRAIN_NODES": 2, "INTERFACE": "eth0", "VENV": sys.prefix, "NODE_SCRATCH": SCRATCH,
        **changes,
    }  # fmt: skip


def job_ids(done: CompletedProcess[str]) -> list[str]:
    """Return the ids that submit.sh printed, in order."""
    return re.findall(r"^\S.* job (\d+)", done.stdout, flags=re.MULTILINE)
