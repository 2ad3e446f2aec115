"""Command line: whether a training job that has ended should be started again; for job scripts.

Exit codes say what is certain: a run that is finished, or ended over what would come again, does not start again
(docs/operations.md). After any other code it does, unless it gets nowhere: when it ends for the second time at the same
step, or for the fifth time without a new checkpoint. A failure of a machine comes at another step the next time; a
defect, or a time limit that is shorter than a start, does not.

What is remembered of earlier ends lies in the run's folder, as requeues.json: for one job, and only since its newest
checkpoint. A job that is submitted anew begins anew.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from common.command_line import UserError, command_parser, exit_on_user_error
from common.files import write_json
from pipeline.runtime.metrics_lines import METRICS, last_step
from pipeline.runtime.stop import ExitCode

PROGRAM = "pipeline.requeue"
FINAL = {ExitCode.FINISHED, ExitCode.MISTAKE, ExitCode.BAD_NUMBERS, ExitCode.FAILED_SAVE, ExitCode.TAKEN_OVER}
MOST_ENDS = 5  # without a new checkpoint


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run came. step: the last one reported.  checkpoint: the newest one's step; 0 if there is none."""

    step: int
    checkpoint: int


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Ends of a job since its newest checkpoint. job: its id.  checkpoint: the step of that.  steps: where it ended."""

    job: str
    checkpoint: int
    steps: tuple[int, ...] = ()


def verdict(exit_code: int, *, progress: Progress, job: str, before: Ends | None) -> tuple[str | None, Ends]:
    """Return why a job should not start again, or None if it should, and what to remember.

    Args:
        exit_code: the highest of its ranks'.
        progress: of its run, at its end.
        job: its id, which requeueing keeps.
        before: what was remembered at the end before, of whatever job; None if nothing.
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


def progress_of(run_dir: Path) -> Progress:
    """Read from a run's folder how far it came."""
    names = [path.name.removeprefix("step_") for path in (run_dir / "checkpoints").glob("step_*")]
    checkpoint = max((int(name) for name in names if name.isdigit()), default=0)
    reported = last_step(run_dir / METRICS)
    return Progress(step=max(checkpoint, reported), checkpoint=checkpoint)


def read_ends(path: Path) -> Ends | None:
    """Return what was remembered, or None; what cannot be read was not."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Ends(job=values["job"], checkpoint=values["checkpoint"], steps=tuple(values["steps"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def main() -> None:
    """Parse the command line, decide, and remember; exit with 0 if the job should start again, else with 1."""
    arguments = _parser().parse_args()
    if not arguments.run_dir.is_dir():
        raise UserError(f"{arguments.run_dir} is no run's folder")
    record = arguments.run_dir / "requeues.json"
    reason, ends = verdict(
        arguments.exit_code, progress=progress_of(arguments.run_dir), job=arguments.job, before=read_ends(record)
    )
    write_json(record, asdict(ends))
    if reason is not None:
        print(f"job {arguments.job} does not start again: {reason}; see {arguments.run_dir}/train.log")
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        PROGRAM,
        description="Tell whether a training job that has ended should start again: exit code 0 if so, 1 if not.",
        epilog=(__doc__ or "").partition("\n\n")[2],
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--exit_code", type=int, required=True, metavar="N", help="the highest of the ranks'")
    parser.add_argument("--job", required=True, metavar="ID", help="the job's id, the same after each requeueing")
    return parser


if __name__ == "__main__":
    exit_on_user_error(main, program=PROGRAM)
