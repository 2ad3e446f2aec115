"""The README is true: its commands run as printed, and its tree and run directory are what is there."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.helpers.own_problems import HUMANEVAL

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CODE = ("common", "data_prep", "pipeline", "ds_configs")
# The commands as printed train for minutes; the same run is cut short by overrides of the same kind as theirs.
SHORTER = " train.total_tokens=16384 optim.warmup_steps=1 train.eval_every_steps=4 train.eval_tokens=4096"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository, so that what the commands write lands in it."""
    folder = tmp_path_factory.mktemp("readme")
    for name in CODE:
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in HUMANEVAL))
    return folder


def readme_commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def test_every_command_runs(sandbox: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CORPUS": str(Path(sysconfig.get_path("stdlib")) / "asyncio"),
        "PROBLEMS": "problems.jsonl",
    }
    outputs = {}
    for command in readme_commands():
        done = subprocess.run(
            ["bash", "-c", command + (SHORTER if "pipeline.train" in command else "")],
            cwd=sandbox, env=environment, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        outputs[command] = done.stdout
    assert len(outputs) == 13
    assert "tokens per forward" in outputs[readme_commands()[7]]
    assert "pass@1" in outputs[readme_commands()[-1]]
    exports = sandbox / "exports"
    assert {path.name for path in (exports / "mine").iterdir()} == {
        "README.md", "consolidated.pth", "params.json", "tokenizer.model",
    }  # fmt: skip
    first, again = (exports / name / "consolidated.pth" for name in ("mine", "mine-again"))
    assert first.read_bytes() == again.read_bytes()


def test_make_targets_exist() -> None:
    for target in re.findall(r"^    make (\w+)", README, flags=re.MULTILINE):
        done = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_tree_names_what_is_there() -> None:
    tree = README.split("## The tree")[1]
    folders = re.findall(r"^    ([\w/]+)/  ", tree, flags=re.MULTILINE)
    assert {"pipeline", "pipeline/training", "data_prep", "tests", "docs"} <= set(folders)
    for folder in folders:
        assert (REPOSITORY / folder).is_dir(), folder
    packages = {path.parent for path in (REPOSITORY / "pipeline").glob("*/__init__.py")}
    assert {str(path.relative_to(REPOSITORY)) for path in packages} <= set(folders)
