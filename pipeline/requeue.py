"""Decide whether a training job that has ended should start again: exit code 0 if so, 3 if not. For job scripts.

Any other exit code is a failure of this command, and no answer; a job script should then start the job again.

A job does not start again after an exit code that is final (docs/operations.md): its run is finished, or would end in
the same way again. After any other code it starts again, unless it makes no progress: it ended for the second time at
the same step, or for the fifth time without a new checkpoint. If a machine failed, the next failure comes at another
step; a defect, or a time limit too short for the start, ends the job at the same step again.

requeues.json in the run directory remembers where one job has ended since its newest checkpoint. A job that is
submitted anew starts with an empty memory. If the run directory cannot be read or written, the job starts again.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from common.command_line import UserError, a_path, command_parser, one_line, say, whole_number
from common.files import write_json
from common.small_files import BadFileError, read_json
from pipeline.runtime.metrics_lines import METRICS, is_step, last_step
from pipeline.runtime.stop import ExitCode
from pipeline.weights.checkpoint.listing import checkpoints_in, step_of

PROGRAM = "pipeline.requeue"
FINAL = {ExitCode.FINISHED, ExitCode.MISTAKE, ExitCode.BAD_NUMBERS, ExitCode.FAILED_SAVE, ExitCode.TAKEN_OVER}
NO = 3  # neither 1 nor 2, with which Python and mistakes end
MOST_ENDS = 5  # without a new checkpoint


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """The progress of a run."""

    step: int
    """The last step that it reported."""
    checkpoint: int
    """The step of its newest checkpoint; 0 if there is none."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The steps at which a job has ended since its newest checkpoint."""

    job: str
    """The job's id."""
    checkpoint: int
    """The step of the newest checkpoint."""
    steps: tuple[int, ...] = ()
    """The step of each end, in order."""


def decide(exit_code: int, *, progress: RunProgress, job: str, before: Ends | None) -> tuple[str | None, Ends]:
    """Return why a job should not start again, or None if it should; and the ends to remember.

    Args:
        exit_code: the highest exit code of its ranks.
        progress: of the run, at this end.
        job: the job's id, which requeueing keeps.
        before: the ends that were remembered last, of any job; None if there are none.
    """
    if before is None or (before.job, before.checkpoint) != (job, progress.checkpoint):
        before = Ends(job=job, checkpoint=progress.checkpoint)
    ends = Ends(job=job, checkpoint=progress.checkpoint, steps=(*before.steps, progress.step))
    if exit_code in FINAL:
        return f"exit code {exit_code} is final (docs/operations.md)", ends
    if progress.step in before.steps:
        return f"it ended twice after step {progress.step}", ends
    if len(ends.steps) >= MOST_ENDS:
        return f"it ended {len(ends.steps)} times without a new checkpoint after step {progress.checkpoint}", ends
    return None, ends


def progress_of(run_dir: Path) -> RunProgress:
    """Return how far the run in a directory came."""
    newest = next(iter(checkpoints_in(run_dir / "checkpoints")), None)
    checkpoint = 0 if newest is None else step_of(newest) or 0
    return RunProgress(step=max(checkpoint, last_step(run_dir / METRICS)), checkpoint=checkpoint)


def read_ends(path: Path) -> Ends | None:
    """Return the remembered ends; None if there are none, or the file is damaged."""
    try:
        values = read_json(path)
        job, checkpoint, steps = (values[name] for name in ("job", "checkpoint", "steps"))
    except (BadFileError, KeyError, TypeError):
        return None
    is_sound = isinstance(job, str) and isinstance(steps, list) and all(map(is_step, [checkpoint, *steps]))
    return Ends(job=job, checkpoint=checkpoint, steps=tuple(steps)) if is_sound else None


def main() -> None:
    """Parse the command line, decide, and remember this end; exit with 0 if the job should start again, else with 3."""
    arguments = _parser().parse_args()
    if not arguments.run_dir.is_dir():
        raise UserError(f"{arguments.run_dir} is not a run directory")
    reason = _reason(arguments)
    if reason is not None:
        say(f"job {arguments.job} does not start again: {reason}; see {arguments.run_dir}/train.log")
        sys.exit(NO)


def _reason(arguments: argparse.Namespace) -> str | None:
    """Return why the job should not start again, or None if it should, or if the run directory does not tell.

    Any failure here must not end with the exit code that means "do not start again".
    """
    run_dir, progress, before = arguments.run_dir, RunProgress(step=0, checkpoint=0), None
    memory = run_dir / "requeues.json"
    try:
        progress, before = progress_of(run_dir), read_ends(memory)
    except Exception as error:
        _warn(f"{run_dir} cannot be read: {one_line(error)}")
    reason, ends = decide(arguments.exit_code, progress=progress, job=arguments.job, before=before)
    try:
        write_json(memory, asdict(ends))
    except Exception as error:
        _warn(f"{memory} cannot be written: {one_line(error)}; this end will not be remembered")
    return reason


def _warn(message: str) -> None:
    say(f"warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(PROGRAM, description=__doc__)
    parser.add_argument("run_dir", type=a_path, metavar="RUN", help="run directory")
    code = whole_number(at_least=0, at_most=255)
    parser.add_argument("--exit_code", type=code, required=True, metavar="N", help="highest exit code of the ranks")
    parser.add_argument("--job", required=True, metavar="ID", help="the job's id, which requeueing keeps")
    return parser


if __name__ == "__main__":
    exit_on_user_error(main, program=PROGRAM)
