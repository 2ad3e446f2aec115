"""slurm/submit.sh: the whole way by one command, and what it refuses before anything is queued."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_module
from tests.helpers.own_problems import HUMANEVAL
from tests.slurm.site import SHRUNK, VARIABLES, Project, cpu_site, edit_site, job_ids, make_project


@pytest.mark.slurm
def test_the_whole_way_from_a_corpus_to_pass_at_k(project: Project, tmp_path: Path) -> None:
    """With duplicates, and parts that two jobs share; the shards are those of one run on one machine."""
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


def copied_project(folder: Path, **site: object) -> Path:
    """A project that no cluster knows."""
    root = folder / "project"
    root.mkdir()
    for name in ("common", "data_prep", "ds_configs", "pipeline"):
        (root / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "slurm", root / "slurm")
    edit_site(root, **site)
    return root


def said_by(root: Path, *command: object, cwd: str = ".", **variables: str) -> str:
    """What a command that queues nothing says, with a sbatch that takes every job and writes it down."""
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


def refusal(folder: Path, *arguments: object, **site: object) -> str:
    """What submit.sh says where it queues nothing."""
    return said_by(copied_project(folder, **site), "slurm/submit.sh", *arguments)


def test_placeholders_left_in_are_all_named(tmp_path: Path) -> None:
    said = refusal(tmp_path, "prepare_data", "train_200B", "convert", "evaluate")
    for name in ("ACCOUNT", "CPU_PARTITION", "GPU_PARTITION", "INTERFACE", "CORPUS", "TOKENIZER", "PROBLEMS"):
        assert f"{name}=CHANGE_ME is to be filled in" in said


def test_a_stage_that_there_is_not(tmp_path: Path) -> None:
    said = refusal(tmp_path, "train_2T")
    assert "there is no stage train_2T; there are convert evaluate prepare_data train_1T train_200B" in said


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    site = cpu_site(CORPUS="nowhere", TOKENIZER="none.model", PROBLEMS="none.jsonl", PREPARE_JOBS=0, SHARDS="s3://b/c")
    said = refusal(tmp_path, "prepare_data", "evaluate", **site)
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
        ("train_200B model.dim=64", "there is no stage model.dim=64; there are convert"),
        ("convert train_200B -- train.seed=2", "stages come in the order"),
        ("train_200B train_1T", "each at most once"),
        ("prepare_data -- more", "prepare_data takes no arguments: more"),
        ("convert -- runs/a runs/b", "convert takes one argument, not 2"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path: Path, arguments: str, complaint: str) -> None:
    assert complaint in refusal(tmp_path, *arguments.split(), **cpu_site(SHARDS="data"))


@pytest.mark.parametrize(
    ("stage", "changes", "complaint"),
    [
        ("train_200B", {"TRAIN_NODES": 0}, "TRAIN_NODES=0 must be a number above 0"),
        ("train_200B", {"TRAIN_NODES": -1}, "TRAIN_NODES=-1 must be a number above 0"),
        ("train_200B", {"RANKS_PER_NODE": 0}, "RANKS_PER_NODE=0 must be a number above 0"),
        ("train_200B", {"RUNS": "", "NODE_SCRATCH": ""}, "RUNS is empty"),
        ("prepare_data", {"CPUS": "many"}, "CPUS=many must be a number above 0"),
        ("prepare_data", {"SHARDS": ""}, "SHARDS is empty"),
        ("prepare_data", {"MODULES": "cuda/99"}, 'MODULES="cuda/99"'),
        ("prepare_data", {"VENV": "nowhere"}, "VENV=nowhere has no bin/python"),
        ("prepare_data", {"DEVICE": "gpu"}, "DEVICE=gpu must be cuda or cpu"),
    ],
)
def test_values_that_cannot_be(tmp_path: Path, stage: str, changes: dict[str, object], complaint: str) -> None:
    site = cpu_site(**{"SHARDS": "data", "CORPUS": tmp_path, "TOKENIZER": "bytes", **changes})
    assert complaint in refusal(tmp_path, stage, **site)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("RUNS = runs", "slurm/site.env: line 1: RUNS: command not found"),
        ("CORPUS=my files", "slurm/site.env: line 1: files: command not found"),
        ('MEMORY="64G', "unexpected EOF"),
    ],
)
def test_lines_that_bash_cannot_read(tmp_path: Path, line: str, complaint: str) -> None:
    root = copied_project(tmp_path, **cpu_site(SHARDS="data"))
    path = root / "slurm" / "site.env"
    path.write_text(f"{line}\n{path.read_text()}")
    said = said_by(root, "slurm/submit.sh", "train_200B")
    assert complaint in said
    assert "lines are NAME=value" in said


@pytest.mark.parametrize("template", sorted(path.name for path in (REPOSITORY / "slurm").glob("*.sbatch")))
def test_a_template_that_is_not_started_as_it_should_be(tmp_path: Path, template: str) -> None:
    root = copied_project(tmp_path, **cpu_site(SHARDS="data"))
    assert f"slurm/submit.sh {template[:-7]} queues it" in said_by(root, "bash", f"slurm/{template}")
    said = said_by(root, "bash", template, cwd="slurm", SLURM_JOB_ID="1")
    assert "submit from the root of the repository" in said


def test_no_run_has_less_than_one_rank() -> None:
    inputs = ("--config", VARIABLES["RECIPE"], "--deepspeed_config", VARIABLES["DEEPSPEED_CONFIG"], 'data.shards=""')
    done = run_module("pipeline.check_run", "--nodes", 0, "--ranks_per_node", -1, *inputs)
    assert done.returncode == 2
    assert "--nodes must be at least 1, not 0" in done.stderr
    assert "--ranks_per_node must be at least 1, not -1" in done.stderr


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"TRAIN_NODES": 3}, "train.batch_tokens=256 is not a multiple of"),
        ({"TRAIN_NODES": 4}, "Slurm would not take train_200B: "),
        ({"GPU_PARTITION": "gpus"}, "invalid partition"),
        ({"SHARDS": "nowhere"}, "nowhere/metadata.json does not exist"),
        ({"SHARDS": "gs://bucket/shards"}, "gs://bucket/shards: only s3://bucket/prefix is supported"),
        ({"MODULES": "cuda/99"}, 'MODULES="cuda/99", but there is no module command on ctl'),
        ({"VENV": "nowhere"}, "VENV=nowhere has no bin/python on ctl"),
        ({"CONTAINER": "nowhere exec image"}, "CONTAINER: there is no nowhere on ctl"),
        ({"DEVICE": "tpu"}, "DEVICE=tpu must be cuda or cpu"),
    ],
)
def test_what_cannot_be_is_not_queued(
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
