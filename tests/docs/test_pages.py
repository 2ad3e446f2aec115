"""The README and the docs are complete: links, pictures, the index, the tree, versions, licence and hooks."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.config.schema import Config
from tests.conftest import REPOSITORY

PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MOST_LINES_OF_THE_README = 120
FIELDS = {f"{section}.{field}" for section, fields in Config().as_dict().items() for field in fields}
SECTIONS = {field.partition(".")[0] for field in FIELDS}
FILE_NAMES = ("py", "json", "jsonl", "yaml", "log", "md", "sh", "safetensors")  # names such as train.log are no fields
ELSEWHERE = ("torchtitan/", "hardwares/")  # files of other projects


def prose(page: Path) -> str:
    """Return a page without its fenced blocks and inline code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "code", text)


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield the file and the anchor of each link and picture of a page that stays in the repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_resolve(page: Path) -> None:
    missing = [
        f"{path}#{anchor}"
        for path, anchor in links(page)
        if not path.exists() or (anchor and anchor not in anchors(path))
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipe_fields_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(rf"(?<![\w/.])((?:{'|'.join(SECTIONS)})\.[a-z_]+)\b(?!\()", page.read_text(encoding="utf-8"))
    assert {field for field in named if field.partition(".")[2] not in FILE_NAMES} - FIELDS == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_this_repository_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`([\w.]+/[\w./-]+\.(?:py|json|yaml|sbatch|sh|env))`", text)
    own = [name for name in named if not name.startswith(ELSEWHERE) and "/a/" not in name]
    assert [name for name in own if not (REPOSITORY / name).exists()] == []


def test_the_index_names_every_page() -> None:
    index = REPOSITORY / "docs" / "README.md"
    assert {path for path, _ in links(index)} >= set((REPOSITORY / "docs").glob("*.md")) - {index}


def test_every_picture_is_shown() -> None:
    shown = {path for page in PAGES for path, _ in links(page)}
    assert set((REPOSITORY / "docs" / "images").iterdir()) - shown == set()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES_OF_THE_README


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_make_targets_exist(page: str) -> None:
    targets = re.findall(r"^    make ([\w-]+)|`make ([\w-]+)`", page, flags=re.MULTILINE)
    assert targets
    for target in {first or second for first, second in targets}:
        done = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_tree_names_what_is_there() -> None:
    tree = CONTRIBUTING.split("## The tree")[1]
    folders = re.findall(r"^    ([\w/]+)/  ", tree, flags=re.MULTILINE)
    assert {"pipeline", "pipeline/training", "data_prep", "tests", "docs"} <= set(folders)
    for folder in folders:
        assert (REPOSITORY / folder).is_dir(), folder
    packages = {path.parent for room in ("pipeline", "data_prep") for path in (REPOSITORY / room).glob("*/__init__.py")}
    assert {str(path.relative_to(REPOSITORY)) for path in packages} <= set(folders)


def test_the_version_and_licence_are_the_same_everywhere() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert f"## {PROJECT['version']}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    licence = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert f"Copyright 2026 {PROJECT['authors'][0]['name']}" in licence


def test_the_hooks_run_what_make_lint_runs() -> None:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (local,) = config["repos"]
    hooks = [re.sub(r"^bash -c '(.*)'$", r"\1", hook["entry"]) for hook in local["hooks"]]
    printed = subprocess.run(
        ["make", "-n", "--no-print-directory", "-o", ".venv/installed", "lint"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert hooks == printed.stdout.splitlines()
