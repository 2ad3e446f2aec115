"""Who may import whom, read from the source; and every command answers --help without the heavy libraries."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_module

PACKAGES = ("common", "data_prep", "pipeline")
COMMANDS = (
    "data_prep.train_tokenizer",
    "data_prep.write_shards",
    "data_prep.merge_shards",
    "data_prep.check_shards",
    "data_prep.upload_shards",
    "data_prep.report",
    "data_prep.stats",
    "pipeline.train",
    "pipeline.audit",
    "pipeline.report",
    "pipeline.check_run",
    "pipeline.requeue",
    "pipeline.convert",
    "pipeline.generate",
    "pipeline.evaluate",
    "pipeline.plan",
    "benchmarks.decode",
)
HEAVY = {"torch", "streaming", "deepspeed", "transformers"}


def sources(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported_names(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports anywhere in it, or reaches as torch's attribute."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports would hide from this test"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
            yield ast.unparse(node)


def importers(module: str, *, within: tuple[str, ...] = PACKAGES) -> set[str]:
    """Return the files, relative to the repository, that import `module` or something in it."""
    return {
        str(path.relative_to(REPOSITORY))
        for package in within
        for path in sources(package)
        if any(name == module or name.startswith(f"{module}.") for name in imported_names(path))
    }


def test_the_packages_are_where_this_looks() -> None:
    assert all(len(sources(package)) > 3 for package in PACKAGES)
    assert "pipeline/model.py" in importers("torch")


def test_data_prep_and_pipeline_meet_in_the_shards_alone() -> None:
    assert importers("data_prep", within=("common", "pipeline")) == set()
    assert importers("pipeline", within=("common", "data_prep")) == set()


def test_common_starts_without_torch() -> None:
    assert importers("torch", within=("common",)) == set()


def test_only_engine_stages_and_sequence_import_deepspeed() -> None:
    assert importers("deepspeed") == {f"pipeline/{name}.py" for name in ("engine", "stages", "sequence")}


def test_what_is_checked_before_a_run_needs_no_torch() -> None:
    for name in ("config", "recipe", "layout", "balance", "architecture", "inputs"):
        assert f"pipeline/{name}.py" not in importers("torch")


def test_what_executes_programs_is_apart_from_the_model() -> None:
    for name in ("problems", "sample_log", "pass_at_k", "sandbox", "sandbox_init", "sandbox_program"):
        assert f"pipeline/evaluation/{name}.py" not in importers("torch")


def test_inside_the_sandbox_is_the_standard_library_alone() -> None:
    for name in ("sandbox_init", "sandbox_program"):
        imported = imported_names(REPOSITORY / "pipeline" / "evaluation" / f"{name}.py")
        assert {module.partition(".")[0] for module in imported} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", ["pipeline.inputs", "pipeline.balance", "pipeline.plan"])
def test_nor_does_anything_that_it_imports(module: str) -> None:
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {module, "pipeline.architecture", "pipeline.config"} <= imported
    assert imported.isdisjoint(HEAVY)


def test_only_one_door_leads_to_streaming() -> None:
    assert importers("streaming") == set()  # common.mds imports it by name, around torchvision
    assert "pipeline/data.py" in importers("common.mds.streaming")


def test_the_model_and_what_is_computed_of_it_know_nothing_of_distribution() -> None:
    knowing = importers("torch.distributed") | importers("deepspeed") | importers("pipeline.distributed")
    assert "pipeline/checkpoint.py" in knowing
    pure = ("architecture", "balance", "config", "layers", "layout", "loss", "model", "optim")
    assert knowing.isdisjoint({f"pipeline/{name}.py" for name in pure})
    assert not any(path.startswith("pipeline/decoding/") for path in knowing)


def test_nothing_that_runs_needs_the_benchmarks() -> None:
    assert importers("benchmarks") == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_works_without_the_heavy_libraries(command: str) -> None:
    result = run_module(command, "--help", PYTHONPROFILEIMPORTTIME="1")
    imports = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    assert result.returncode == 0
    assert result.stdout.startswith("usage: ")
    assert command in result.stdout
    assert len(imports) == len(result.stderr.splitlines())
    assert {line.rpartition("|")[2].strip() for line in imports}.isdisjoint(HEAVY)
