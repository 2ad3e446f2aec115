"""Starts a module of the tests on several ranks of this machine, with torchrun."""

import subprocess
import sys

from tests.conftest import REPOSITORY, free_port


def run_on_ranks(
    module: str, *arguments: object, ranks: int, timeout_s: float, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `torchrun --nproc_per_node RANKS -m module arguments` from the repository root, and wait for its end.

    Args:
        module: dotted name of the module.
        arguments: its command line.
        ranks: number of processes.
        timeout_s: seconds after which the test fails.
        check: fail, with the end of the output, if a rank fails.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    worker = ["--master_port", str(free_port()), "-m", module, *map(str, arguments)]
    done = subprocess.run(
        [*launcher, *worker], cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done
