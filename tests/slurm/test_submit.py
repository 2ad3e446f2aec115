"""slurm/submit.sh: everything by one command, and what it refuses before anything is queued."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_module
from tests.helpers.own_problems import HUMANEVAL
from tests.slurm.site import SHRUNK, VARIABLES, Project, copy_project, cpu_site, job_ids, make_project


@pytest.mark.slurm
def test_one_command_leads_from_a_corpus_to_pass_at_k(project: Project, tmp_path: Path) -> None:
    """The corpus has duplicates, and two jobs share it; the shards equal those of one process on one machine."""
    corpus = tmp_path / "corpus"
    shutil.copytree(REPOSITORY / "common", corpus, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(corpus / "files.py", corpus / "copied.py")
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(problem) + "\n" for problem in HUMANEVAL[:1]))
    prepare = "--seq_len 32 --val_fraction 0.3 --part_bytes 8000 --dedup exact"
    way = make_project(
        tmp_path / "way", cluster=project.cluster,
        **cpu_site(
            SHARDS="data/own", CORPUS=corpus, TOKENIZER="bytes", PREPARE_JOBS=2, PREPARE_OPTIONS=prepare,
            PROBLEMS=problems, EVALUATE_OPTIONS="--n_samples 1 --k 1 --max_gen_len 4 --temperatures 0",
        ),
    )  # fmt: skip
    stages = ("prepare_data", "train_200B", "convert", "evaluate")
    short = ("train.total_tokens=1024", "optim.warmup_steps=1")
    done = way.submit(*stages, "--", *SHRUNK, *short, RUN_NAME="own")
    ids = job_ids(done)
    assert len(ids) == 6  # survey, write shards, merge, and the other three
    job = way.cluster.wait_for_end(ids[-1], timeout_s=900)
    assert job.state == "COMPLETED", "".join(path.read_text() for path in sorted(way.root.glob("slurm-*.log")))
    alone = tmp_path / "alone"
    subprocess.run(
        [sys.executable, *["-m", "data_prep.write_shards", "--input"], corpus, "--tokenizer", "bytes", "--out", alone,
         *prepare.split()],
        cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    assert (way.root / "data/own/train/index.json").read_bytes() == (alone / "train/index.json").read_bytes()
    assert (way.root / "exports/own/consolidated.pth").exists()
    results = json.loads((way.root / "evaluations/own/results.json").read_text())
    assert sum(results["outcomes"]["0.0"].values()) == results["n_problems"] == 1


def error_of_command(root: Path, *command: object, cwd: str = ".", **variables: str) -> str:
    """Return the error output of a command that must queue nothing; its sbatch accepts and records every job."""
    (root / "bin").mkdir(exist_ok=True)
    (root / "bin" / "sbatch").write_text('#!/bin/sh\ncase "$*" in *test-only*) ;; *) echo "$@" >> queued ;; esac\n')
    (root / "bin" / "sbatch").chmod(0o755)
    done = subprocess.run(
        list(map(str, command)), cwd=root / cwd, capture_output=True, text=True, check=False,
        env={"PATH": f"{root / 'bin'}:/usr/bin:/bin", **VARIABLES, **variables},
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert not (root / "queued").exists()
    assert "Traceback" not in done.stderr
    return done.stderr


def error_of_submit(folder: Path, *arguments: object, **site: object) -> str:
    """Return the error output of submit.sh, which must queue nothing."""
    return error_of_command(copy_project(folder / "project", **site), "slurm/submit.sh", *arguments)


def test_all_remaining_placeholders_are_named(tmp_path: Path) -> None:
    said = error_of_submit(tmp_path, "prepare_data", "train_200B", "convert", "evaluate")
    for name in ("ACCOUNT", "CPU_PARTITION", "GPU_PARTITION", "INTERFACE", "CORPUS", "TOKENIZER", "PROBLEMS"):
        assert f"{name}=CHANGE_ME must be filled in" in said


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    said = error_of_submit(tmp_path, "train_2T")
    assert "unknown stage train_2T; the stages are convert evaluate prepare_data train_1T train_200B" in said


def test_missing_inputs_are_all_named(tmp_path: Path) -> None:
    site = cpu_site(CORPUS="nowhere", TOKENIZER="none.model", PROBLEMS="none.jsonl", PREPARE_JOBS=0, SHARDS="s3://b/c")
    said = error_of_submit(tmp_path, "prepare_data", "evaluate", **site)
    for problem in (
        "CORPUS: nowhere",
        "TOKENIZER=none.model",
        "PROBLEMS=none.jsonl",
        "PREPARE_JOBS=0",
        "SHARDS=s3://b/c: ",
    ):
        assert problem in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("train_200B model.dim=64", "unknown stage model.dim=64; the stages are convert"),
        ("convert train_200B -- train.seed=2", "stages must be in the order"),
        ("train_200B train_1T", "each at most once"),
        ("prepare_data -- more", "prepare_data takes no arguments: more"),
        ("convert -- runs/a runs/b", "convert takes one argument, not 2"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path: Path, arguments: str, complaint: str) -> None:
    assert complaint in error_of_submit(tmp_path, *arguments.split(), **cpu_site(SHARDS="data"))


@pytest.mark.parametrize(
    ("stage", "changes", "complaint"),
    [
        ("train_200B", {"TRAIN_NODES": 0}, "TRAIN_NODES=0 must be a whole number above 0"),
        ("train_200B", {"TRAIN_NODES": -1}, "TRAIN_NODES=-1 must be a whole number above 0"),
        ("train_200B", {"RANKS_PER_NODE": 0}, "RANKS_PER_NODE=0 must be a whole number above 0"),
        ("train_200B", {"RUNS": "", "NODE_SCRATCH": ""}, "RUNS must not be empty"),
        ("prepare_data", {"CPUS": "many"}, "CPUS=many must be a whole number above 0"),
        ("prepare_data", {"SHARDS": ""}, "SHARDS must not be empty"),
        ("prepare_data", {"MODULES": "cuda/99"}, 'MODULES="cuda/99"'),
        ("prepare_data", {"VENV": "nowhere"}, "VENV=nowhere has no bin/python"),
        ("prepare_data", {"DEVICE": "gpu"}, "DEVICE=gpu must be cuda or cpu"),
    ],
)
def test_impossible_settings_are_refused(
    tmp_path: Path, stage: str, changes: dict[str, object], complaint: str
) -> None:
    site = cpu_site(**{"SHARDS": "data", "CORPUS": tmp_path, "TOKENIZER": "bytes", **changes})
    assert complaint in error_of_submit(tmp_path, stage, **site)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("RUNS = runs", "slurm/site.env: line 1: RUNS: command not found"),
        ("CORPUS=my files", "slurm/site.env: line 1: files: command not found"),
        ('MEMORY="64G', "unexpected EOF"),
    ],
)
def test_settings_that_bash_cannot_read_are_refused(tmp_path: Path, line: str, complaint: str) -> None:
    root = copy_project(tmp_path / "project", **cpu_site(SHARDS="data"))
    path = root / "slurm" / "site.env"
    path.write_text(f"{line}\n{path.read_text()}")
    said = error_of_command(root, "slurm/submit.sh", "train_200B")
    assert complaint in said
    assert "lines must be NAME=value" in said


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("echo loading", 'prints "loading'),
        ("echo loading >&2", 'prints "loading'),
        ("exit 0", "ends the shell that reads it"),
        ("echo bye; exit", 'ends the shell that reads it, and prints "bye"'),
        ("exec true", "ends the shell that reads it"),
    ],
)
@pytest.mark.parametrize("where", ["first", "last"])
def test_settings_that_print_or_exit_are_refused(tmp_path: Path, line: str, complaint: str, where: str) -> None:
    """Also by a job, which would otherwise end as if it had done its work."""
    root = copy_project(tmp_path / "project", **cpu_site(SHARDS="data"))
    path = root / "slurm" / "site.env"
    lines = [line, path.read_text()]
    path.write_text("\n".join(lines if where == "first" else reversed(lines)) + "\n")
    assert complaint in error_of_command(root, "slurm/submit.sh", "train_200B")
    assert complaint in error_of_command(root, "bash", "slurm/convert.sbatch", "runs/x", SLURM_JOB_ID="1")


# An sbatch that accepts trials, and does with the second real job what SECOND says; it and scancel record their jobs.
QUEUE = """#!/bin/bash
case "$*" in *test-only*) exit ;; esac
echo job >> queued
number=$(wc -l < queued)
[ "$number" = 1 ] || eval "$SECOND"
echo "$number"
"""


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ("echo no more jobs >&2; exit 1", "Slurm refused merge"),
        ("exit 0", 'sbatch printed "" instead of the number of the job for merge'),
        ("echo Submitted; exit 0", 'sbatch printed "Submitted" instead of the number of the job for merge'),
        ("kill -TERM $PPID; exit 1", ""),
    ],
)
@pytest.mark.parametrize("can_cancel", [True, False])
def test_all_stages_are_queued_or_none(tmp_path: Path, second: str, complaint: str, can_cancel: bool) -> None:
    root = copy_project(tmp_path / "project", **cpu_site(SHARDS="data", CORPUS=tmp_path, TOKENIZER="bytes"))
    (root / "bin").mkdir()
    scancel = f'#!/bin/sh\necho "$@" >> cancelled\nexit {0 if can_cancel else 1}\n'
    for name, text in (("sbatch", QUEUE), ("scancel", scancel)):
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    done = subprocess.run(
        ["slurm/submit.sh", "prepare_data"], cwd=root, capture_output=True, text=True, check=False,
        env={"PATH": f"{root / 'bin'}:/usr/bin:/bin", "SECOND": second, "TMPDIR": "/nowhere"},
    )  # fmt: skip
    assert done.returncode == (2 if complaint else 143), done.stderr
    assert complaint in done.stderr
    assert (root / "cancelled").read_text() == "1\n"
    if can_cancel:
        assert "cancelled the stages before it: 1; nothing of this command is left in the queue" in done.stderr
    else:
        assert "still queued; cancel them with: scancel 1\n" in done.stderr


# The commands of a node, of which python answers with the exit codes ANSWER, and srun with RANKS.
NODE = {
    "python": 'case "$*" in *check_run*) echo runs/x ;; *) exit "$ANSWER" ;; esac',
    "srun": 'case "$*" in *check_node*) ;; *) exit "$RANKS" ;; esac',
    "squeue": 'echo RUNNING None "$SLURM_RESTART_COUNT"',
    "scontrol": 'echo "$@" >> requeued',
    "sleep": "true",
}


@pytest.mark.parametrize(
    ("ranks", "answer", "restarts", "goes_on"),
    [
        (137, 0, 0, True),
        (137, 3, 0, False),
        (137, 1, 0, True),  # Python's own code for a traceback
        (137, 2, 0, True),
        (1, 127, 19, True),
        (1, 127, 20, False),
        (2, 1, 0, False),  # exit codes that are final by themselves
        (77, 127, 0, False),
    ],
)
def test_only_a_documented_no_keeps_a_job_from_starting_again(
    tmp_path: Path, ranks: int, answer: int, restarts: int, goes_on: bool
) -> None:
    root = copy_project(tmp_path / "project", **cpu_site(SHARDS="data", VENV="", NODE_SCRATCH=tmp_path))
    (root / "bin").mkdir()
    for name, line in NODE.items():
        (root / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (root / "bin" / name).chmod(0o755)
    of_job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_CPUS_ON_NODE": "2",
    }
    done = subprocess.run(
        ["bash", "slurm/train_200B.sbatch"], cwd=root, capture_output=True, text=True, check=False,
        env={"PATH": f"{root / 'bin'}:/usr/bin:/bin", **VARIABLES, **of_job, "ANSWER": str(answer), "RANKS": str(ranks),
             "SLURM_RESTART_COUNT": str(restarts)},
    )  # fmt: skip
    assert done.returncode == ranks, done.stderr
    assert (root / "requeued").exists() == goes_on, done.stderr
    assert ("in doubt the job starts again" in done.stderr) == (answer not in (0, 3))


@pytest.mark.parametrize("template", sorted(path.name for path in (REPOSITORY / "slurm").glob("*.sbatch")))
def test_a_template_refuses_to_run_outside_of_a_job_and_of_the_root(tmp_path: Path, template: str) -> None:
    root = copy_project(tmp_path / "project", **cpu_site(SHARDS="data"))
    assert f"slurm/submit.sh {template[:-7]} queues it" in error_of_command(root, "bash", f"slurm/{template}")
    said = error_of_command(root, "bash", template, cwd="slurm", SLURM_JOB_ID="1")
    assert "submit from the root of the repository" in said


def test_a_run_needs_at_least_one_rank() -> None:
    inputs = ("--config", VARIABLES["RECIPE"], "--deepspeed_config", VARIABLES["DEEPSPEED_CONFIG"], 'data.shards=""')
    done = run_module("pipeline.check_run", "--nodes", 0, "--ranks_per_node", -1, *inputs)
    assert done.returncode == 2
    assert "--nodes must be a whole number from 1 to 100,000, not 0" in done.stderr
    assert "--ranks_per_node must be a whole number from 1 to 1,024, not -1" in done.stderr


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"TRAIN_NODES": 3}, "train.batch_tokens=256 is not a multiple of"),
        ({"TRAIN_NODES": 4}, "Slurm refuses train_200B: "),
        ({"GPU_PARTITION": "gpus"}, "invalid partition"),
        ({"SHARDS": "nowhere"}, "nowhere/metadata.json does not exist"),
        ({"SHARDS": "gs://bucket/shards"}, "gs://bucket/shards: only s3://bucket/prefix is supported"),
        ({"MODULES": "cuda/99"}, 'MODULES="cuda/99", but there is no module command on ctl'),
        ({"VENV": "nowhere"}, "VENV=nowhere has no bin/python on ctl"),
        ({"CONTAINER": "nowhere exec image"}, "CONTAINER: command nowhere not found on ctl"),
        ({"DEVICE": "tpu"}, "DEVICE=tpu must be cuda or cpu"),
    ],
)
def test_a_job_that_cannot_run_is_not_queued(
    project: Project, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    site = cpu_site(**{"SHARDS": project.shards, **changes})
    other = make_project(tmp_path / "other", cluster=project.cluster, **site)
    queued = project.cluster.run("squeue", "--noheader").stdout
    done = other.submit("train_200B", "--", *SHRUNK, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert project.cluster.run("squeue", "--noheader").stdout == queued
