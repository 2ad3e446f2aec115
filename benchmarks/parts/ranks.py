"""Functions that run on several ranks of this machine, each in a process of its own.

    python -m benchmarks.parts.ranks MODULE FUNCTION FILE     what `on_ranks` starts on each rank

The task goes to the ranks as JSON in a file, and rank 0's result comes back the same way.
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.parts.harness import REPOSITORY
from common.files import write_json

# oneDNN crashes on virtual machines that advertise AMX without supporting it. GPUs are not affected.
ENVIRONMENT = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}


def on_ranks(function: Callable[[Any], Any], task: Any, *, ranks: int, threads: int = 1, **variables: str) -> Any:
    """Call `function(task)` on several ranks at once; return rank 0's result.

    Args:
        function: a function of a module, which does not depend on what that module's `main` did.
        task: its argument; JSON must be able to hold it, as well as the result.
        ranks: number of processes.
        threads: CPU threads of each process.
        variables: environment variables to set; DS_ACCELERATOR="cpu" keeps DeepSpeed off a GPU.

    Raises:
        RuntimeError: a rank failed; the message has the end of the ranks' output.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.json"
        write_json(path, task)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command += ["--module", "benchmarks.parts.ranks", *_address(function), str(path)]
        environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads), **variables}
        errors = None if sys.stderr.isatty() else subprocess.STDOUT  # a person sees rank 0's progress bar
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=errors, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stdout.decode(errors="replace")[-8000:])
        return json.loads(_result_path(path).read_text(encoding="utf-8"))


def _address(function: Callable[[Any], Any]) -> tuple[str, str]:
    """Return the module and name of a function; a command's module has its own name, not `__main__`."""
    module = inspect.getmodule(function)
    assert module is not None
    assert module.__spec__ is not None
    return module.__spec__.name, function.__name__


def _run_here(module: str, function: str, path: Path) -> None:
    """Call the function as one of the ranks; rank 0 writes the result."""
    result = getattr(import_module(module), function)(json.loads(path.read_text(encoding="utf-8")))
    if os.environ["RANK"] == "0":
        write_json(_result_path(path), result)


def _result_path(task: Path) -> Path:
    return task.with_name("result.json")


if __name__ == "__main__":
    _run_here(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
