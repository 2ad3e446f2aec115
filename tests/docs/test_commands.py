"""Every fenced `sh` and `python` block of the README and the docs runs as it is printed, page after page.

The pages share one folder: the README's commands come first, and later pages go on from what they wrote.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, free_port
from tests.helpers.own_problems import HUMANEVAL

CODE = ("common", "data_prep", "pipeline", "ds_configs")
# The training commands as printed take minutes. The tests shorten them by overrides of the recipe.
SHORTER = " train.total_tokens=16384 optim.warmup_steps=1 train.eval_every_steps=4 train.eval_tokens=4096"
# `make setup` removes a torchvision that does not import. For an environment that still has one, this hides it.
HIDE_TORCHVISION = """
import sys
try:
    import torchvision
except Exception:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules["torchvision"] = None
"""
# The pages with commands, in the order in which they run.
LATER_PAGES = (
    "docs/tutorial.md", "docs/data.md", "docs/parallelism.md", "docs/weights.md", "docs/operations.md",
    "docs/monitoring.md",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A command of a page, and what it printed."""

    command: str
    output: str


def commands_of(page: str) -> list[str]:
    """Return the commands of a page: each line of its `sh` blocks, and each of its `python` blocks as a whole."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    commands = []
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if language == "python":
            commands.append(f"python - <<'END'\n{block}END")
        else:
            commands += block.replace("\\\n", " ").splitlines()
    return commands


def run_page(page: str, folder: Path) -> list[Ran]:
    """Run the commands of a page in `folder`, each in a shell of its own, with `.venv/bin` on the PATH."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CORPUS": str(Path(sysconfig.get_path("stdlib")) / "asyncio"),
        "PROBLEMS": "problems.jsonl",
        "PET_MASTER_PORT": str(free_port()),  # torchrun's; other runs on this machine use the default
    }
    ran = []
    for command in commands_of(page):
        shortened = command.replace("deepspeed --num_gpus", f"deepspeed --master_port {free_port()} --num_gpus")
        shortened += SHORTER if "--module pipeline.train" in command else ""
        hidden = {"PYTHONPATH": str(folder / "hide")} if command.startswith("python - ") else {}
        done = subprocess.run(
            ["bash", "-c", shortened], cwd=folder, env=environment | hidden, capture_output=True, text=True,
            timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{page}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        ran.append(Ran(command=command, output=done.stdout))
    return ran


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository; the commands write their outputs into it."""
    folder = tmp_path_factory.mktemp("docs")
    for name in CODE:
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in HUMANEVAL))
    (folder / "hide").mkdir()
    (folder / "hide" / "sitecustomize.py").write_text(HIDE_TORCHVISION)
    return folder


@pytest.fixture(scope="module")
def readme(sandbox: Path) -> list[Ran]:
    """Return what the README's commands printed."""
    return run_page("README.md", sandbox)


def output_of(part: str, ran: list[Ran]) -> str:
    """Return what the one command that contains `part` printed."""
    (output,) = [of.output for of in ran if part in of.command]
    return output


def test_the_readmes_commands_run(readme: list[Ran], sandbox: Path) -> None:
    assert len(readme) == 5
    assert "tokens per forward" in output_of("pipeline.generate", readme)
    assert {path.name for path in (sandbox / "exports" / "mine").iterdir()} == {
        "README.md", "consolidated.pth", "export.json", "params.json", "tokenizer.model",
    }  # fmt: skip


@pytest.mark.parametrize("page", LATER_PAGES)
def test_the_pages_commands_run(page: str, readme: list[Ran], sandbox: Path) -> None:
    ran = run_page(page, sandbox)
    assert ran
    if page == "docs/tutorial.md":
        assert "tokens per forward" in output_of("pipeline.generate", ran)
        assert output_of("AutoModelForCausalLM", ran).startswith("import ")
    if page == "docs/weights.md":
        assert "pass@1" in output_of("pipeline.evaluate", ran)
        first, again = (sandbox / "exports" / name / "consolidated.pth" for name in ("mine", "mine-again"))
        assert first.read_bytes() == again.read_bytes()


def test_every_page_with_commands_is_run() -> None:
    pages = [path.relative_to(REPOSITORY) for path in sorted((REPOSITORY / "docs").glob("*.md"))]
    assert {str(page) for page in pages if commands_of(str(page))} == set(LATER_PAGES)
