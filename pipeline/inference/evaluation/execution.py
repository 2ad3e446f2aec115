"""Executing completions of problems in the sandbox, and the reference solutions of the problems before them.

A reference solution that fails shows that the problems are not read as what they are, or that the sandbox lacks
something that they need. Then no score would mean anything.
"""

import importlib.util
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.command_line import UserError, raise_if_any, say
from pipeline.inference.evaluation.problems import Problem
from pipeline.inference.evaluation.sandbox import Isolation, Limits, ProgramResult, run_program

_MAX_REPORTED = 10


def execute(problem: Problem, completion: str, *, isolation: Isolation, limits: Limits) -> ProgramResult:
    """Run a completion of a problem and its checks."""
    packages = [_package(name) for name in problem.packages]
    program = problem.head + completion
    return run_program(program, problem.checks, isolation=isolation, limits=limits, packages=packages)


def check_references(problems: Sequence[Problem], *, isolation: Isolation, limits: Limits, n_workers: int) -> None:
    """Run the reference solutions of the problems, and print how many there are.

    Raises:
        UserError: lists those that do not pass.
    """
    from tqdm import tqdm

    with_reference = [(problem, problem.reference) for problem in problems if problem.reference is not None]
    with ThreadPoolExecutor(n_workers) as pool:
        results = pool.map(lambda pair: execute(*pair, isolation=isolation, limits=limits), with_reference)
        done = list(tqdm(results, desc="reference solutions", total=len(with_reference), disable=None, leave=False))
    wrong = [
        f"{problem.task_id}: {result.outcome}{f' ({result.detail})' if result.detail else ''}"
        for (problem, _), result in zip(with_reference, done, strict=True)
        if result.outcome != "passed"
    ]
    heading = (
        f"{len(wrong)} of {len(with_reference)} reference solutions of --problems do not pass their own checks, so "
        "scores would mislead; check the file and its --format, raise --timeout_s if they timed out, or give "
        "--no-check_references"
    )
    raise_if_any(wrong[:_MAX_REPORTED], heading=heading)
    n_without = len(problems) - len(with_reference)
    told = [f"reference solutions that pass their checks: {len(with_reference)}"] if with_reference else []
    told += [f"problems without a reference solution, whose checks are not checked: {n_without}"] if n_without else []
    say("; ".join(told), file=sys.stderr)


def _package(name: str) -> Path:
    """Return the folder of an installed package.

    Raises:
        UserError: it is not installed.
    """
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise UserError(f"--problems: the checks import {name}, which is not installed here; install it")
    return Path(found.origin).parent
