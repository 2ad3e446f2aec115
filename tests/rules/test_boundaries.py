"""The import rules, read from the source: which package may import which, and where a file may lie."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_module
from tests.helpers.heavy import HEAVY

# Each package, and the packages that it may import. Every package may also import itself and `common`.
ALLOWED: dict[str, set[str]] = {
    "common": set(),
    "pipeline.config": set(),
    "pipeline.runtime": {"pipeline.config"},
    "pipeline.model": {"pipeline.config", "pipeline.runtime"},
    "pipeline.data": {"pipeline.config", "pipeline.runtime"},
    "pipeline.weights": {"pipeline.config", "pipeline.model", "pipeline.runtime"},
    "pipeline.monitoring": {"pipeline.config", "pipeline.model", "pipeline.runtime", "pipeline.weights"},
    "pipeline.planning": {"pipeline.config", "pipeline.model", "pipeline.runtime"},
    "pipeline.inference": {"pipeline.config", "pipeline.model", "pipeline.weights"},
    "pipeline.training": {
        "pipeline.config", "pipeline.runtime", "pipeline.model", "pipeline.data", "pipeline.weights",
        "pipeline.monitoring",
    },
    "data_prep.workers": set(),
    "data_prep.sources": {"data_prep.workers"},
    "data_prep.filters": {"data_prep.workers", "data_prep.sources"},
    "data_prep.tokens": {"data_prep.workers", "data_prep.sources"},
    "data_prep.shards": {"data_prep.workers", "data_prep.sources", "data_prep.tokens", "data_prep.filters"},
    "data_prep.dedup": {"data_prep.workers", "data_prep.sources", "data_prep.filters", "data_prep.shards"},
}  # fmt: skip
COMMANDS = (
    "data_prep.train_tokenizer",
    "data_prep.write_shards",
    "data_prep.merge_shards",
    "data_prep.check_shards",
    "data_prep.upload_shards",
    "data_prep.deduplicate_corpus",
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
MOST_MODULES_IN_A_FOLDER = 10
TORCH_FREE = ("pipeline/config/", "pipeline/planning/", "pipeline/model/formulas.py", "pipeline/model/partition.py")
PACKAGES = ("common", "data_prep", "pipeline")
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))}


def imported_names(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, also inside functions, or uses as attributes of torch."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports would hide from this test"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
            yield ast.unparse(node)


def module_of(name: str) -> str | None:
    """Return the module of this project that a dotted name names or lies in; None for a name from elsewhere."""
    while name and (name not in SOURCES or SOURCES[name].name == "__init__.py"):
        name = name.rpartition(".")[0]
    return name or None


IMPORTS = {
    module: {found for name in imported_names(path) if (found := module_of(name)) not in (None, module)}
    for module, path in SOURCES.items()
}


def package_of(module: str) -> str | None:
    """Return the row of `ALLOWED` that a module belongs to; None for commands and the modules beside them."""
    return next((row for row in ALLOWED if module == row or module.startswith(f"{row}.")), None)


def importers(name: str) -> set[str]:
    """Return the files, as paths in the repository, that import `name` or something in it."""
    return {
        str(path.relative_to(REPOSITORY))
        for path in SOURCES.values()
        if any(imported == name or imported.startswith(f"{name}.") for imported in imported_names(path))
    }


def test_the_imports_are_found() -> None:
    assert "pipeline.model.loss" in IMPORTS["pipeline.model.network"]
    assert "pipeline/model/network.py" in importers("torch")
    assert all(any(package_of(module) == row for module in SOURCES) for row in ALLOWED)


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_the_table_allows(package: str) -> None:
    allowed = {package, "common", *ALLOWED[package]}
    wrong = {
        f"{module} imports {imported}"
        for module, of_module in IMPORTS.items()
        if package_of(module) == package
        for imported in of_module
        if package_of(imported) not in allowed
    }
    assert wrong == set()


def test_nothing_imports_a_command() -> None:
    assert {f"{m} imports {c}" for m, imported in IMPORTS.items() for c in COMMANDS if c in imported} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert set(TopologicalSorter(IMPORTS).static_order()) >= set(SOURCES)  # CycleError names the circle


def test_data_prep_and_pipeline_do_not_import_each_other() -> None:
    assert {path for path in importers("data_prep") if not path.startswith("data_prep/")} == set()
    assert {path for path in importers("pipeline") if not path.startswith("pipeline/")} == set()
    assert importers("benchmarks") == importers("tests") == set()


def test_only_training_imports_deepspeed() -> None:
    assert {path.rpartition("/")[0] for path in importers("deepspeed")} == {"pipeline/training"}


def test_only_one_module_imports_streaming() -> None:
    assert importers("streaming") == set()  # common.mds imports it by name, around torchvision
    assert "pipeline/data/batches.py" in importers("common.mds.streaming")


def test_checks_and_plans_need_no_torch() -> None:
    assert {path for path in importers("torch") if path.startswith(("common/", *TORCH_FREE))} == set()


@pytest.mark.parametrize("module", ["pipeline.config.inputs", "pipeline.model.partition", "pipeline.plan"])
def test_checks_and_plans_import_nothing_that_needs_torch(module: str) -> None:
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {module, "pipeline.config.schema"} <= imported
    assert imported.isdisjoint(HEAVY)


def test_the_model_does_not_import_distribution() -> None:
    knowing = importers("torch.distributed") | importers("pipeline.runtime.collectives")
    assert any(path.startswith("pipeline/weights/checkpoint/") for path in knowing)
    assert not any(path.startswith(("pipeline/model/", "pipeline/inference/", "pipeline/config/")) for path in knowing)


def test_modules_that_execute_programs_do_not_import_torch() -> None:
    for name in ("problems", "completion_log", "pass_at_k", "sandbox", "sandbox_init", "sandbox_program"):
        assert f"pipeline/inference/evaluation/{name}.py" not in importers("torch")


def test_modules_inside_the_sandbox_import_only_the_standard_library() -> None:
    for name in ("sandbox_init", "sandbox_program"):
        imported = imported_names(SOURCES[f"pipeline.inference.evaluation.{name}"])
        assert {module.partition(".")[0] for module in imported} <= set(sys.stdlib_module_names)


def test_no_folder_is_crowded() -> None:
    """A folder holds at most ten modules, not counting commands."""
    for folder in sorted({path.parent for path in SOURCES.values()}):
        modules = {module_name(path) for path in folder.glob("*.py") if path.name != "__init__.py"}
        assert len(modules - set(COMMANDS)) <= MOST_MODULES_IN_A_FOLDER, folder


def test_an_init_is_one_sentence() -> None:
    for path in REPOSITORY.glob("*/**/__init__.py"):
        if ".venv" not in path.parts:
            (docstring,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(docstring, ast.Expr), path
            assert len(path.read_text(encoding="utf-8").splitlines()) == 1, path


def test_a_unit_test_lies_where_its_module_does() -> None:
    """A test of a/b/c.py is tests/unit/a/b/test_c.py or test_c_<aspect>.py."""
    unit = REPOSITORY / "tests" / "unit"
    for path in unit.rglob("test_*.py"):
        folder, name = REPOSITORY / path.parent.relative_to(unit), path.stem.removeprefix("test_")
        assert any(name == module.stem or name.startswith(f"{module.stem}_") for module in folder.glob("*.py")), path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_works_without_the_heavy_libraries(command: str) -> None:
    result = run_module(command, "--help", PYTHONPROFILEIMPORTTIME="1")
    imports = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    assert result.returncode == 0
    assert result.stdout.startswith("usage: ")
    assert command in result.stdout
    assert len(imports) == len(result.stderr.splitlines())
    assert {line.rpartition("|")[2].strip() for line in imports}.isdisjoint(HEAVY)


@pytest.mark.parametrize("command", COMMANDS)
def test_versions_and_errors_look_alike(command: str) -> None:
    version = run_module(command, "--version")
    assert (version.returncode, version.stdout) == (0, f"{command} {PYPROJECT['project']['version']}\n")
    mistaken = run_module(command, "--no_such_option")
    assert mistaken.returncode == 2
    assert mistaken.stderr.startswith(f"usage: python -m {command} ")
    assert mistaken.stderr.splitlines()[-1].startswith(f"{command}: error: ")
