"""`make setup` leaves an environment in which transformers loads our exports."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.helpers.exports import exported
from tests.helpers.references import tiny_model

LOAD = """
import sys
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)
"""


@pytest.mark.parametrize("imports", [True, False])
def test_setup_removes_a_torchvision_that_does_not_import(tmp_path: Path, imports: bool) -> None:
    """With programs that only record how they are called, in place of Python and pip."""
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python", "pip"):
        fails = "" if imports else 'case "$*" in *"import torchvision"*) exit 1;; esac'
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n{fails}\n')
        (programs / name).chmod(0o755)
    (tmp_path / ".venv").mkdir()
    command = ["make", "setup", f"BIN={programs}", f"PYTHON={programs}/python"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "python -c import torchvision" in calls
    removed = [call for call in calls if call.startswith("pip uninstall") and call.endswith(" torchvision")]
    assert len(removed) == (0 if imports else 1)


def test_transformers_loads_an_export_without_torchvision(tmp_path: Path) -> None:
    """In a copy of this environment that lacks it."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith("torchvision"):
            (packages / path.name).symlink_to(path)
    folder = exported(tmp_path / "export", tiny_model(), to="hf")
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    command = [sys.executable, "-S", "-c", LOAD, str(folder)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "LlamaForCausalLM"), done.stderr
