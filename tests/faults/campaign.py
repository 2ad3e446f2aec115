"""The fault campaign: a run that suffers many random faults, compared with the same run without faults.

    python -m tests.faults.campaign --seed 1 --faults 60

A small recipe is trained once without interruption: the reference. Then a victim trains it. A fault is injected, the
behaviour documented for that fault is checked, and the victim is started again. A few steps later, all metrics that it
has reported so far must be bit for bit those of the reference, and the next fault follows. A victim close to its last
step may finish; it is compared as a whole (metrics, windows, weights and moments), and a fresh victim follows. Both
runs meet batches with an infinite loss, always the same ones.

Exit code 1: something was not recovered exactly. The folders of all runs are kept in that case.
"""

from common.endings import exit_on_user_error

import argparse
import json
import math
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from random import Random

from common.command_line import UserError, command_parser, whole_number
from tests.conftest import run_module
from tests.faults.compare import differences, differences_at_the_end, epochs_of, skipped_steps
from tests.faults.kinds import KINDS, in_random_order
from tests.faults.report import line_of, table
from tests.faults.runs import Job, NotAsDocumented, Recipe, checkpoints_of
from tests.faults.victim import Kind, Outcome, Victim, expected_resume, small_disk

MOST_STEPS_BETWEEN = 8  # between two faults
CLOSE_TO_END = 5 * MOST_STEPS_BETWEEN  # steps before the last, from which on a victim may finish
WHOLE_RUN, BAD_BATCH = "whole runs, at their end", "loss not finite on a rank"


class Campaign:
    """Trains the reference on construction, then one victim after another."""

    def __init__(self, recipe: Recipe, *, victims: Path, total_steps: int) -> None:
        """Train the reference.

        Args:
            recipe: what all runs train.
            victims: folder for the victims' runs, on the small disk if there is one.
            total_steps: number of steps of the recipe.

        Raises:
            NotAsDocumented: the reference failed.
        """
        self._recipe, self.victims, self._total_steps = recipe, victims, total_steps
        self.reference = recipe.runs / "reference"
        job = Job(recipe, self.reference)
        try:
            job.wait_for_step(1)
            self._start_s = job.age_s
            if job.ended() != 0:
                raise NotAsDocumented(f"the uninterrupted run failed: {job.output[-4000:]}")
        finally:
            job.kill()
        self._outcomes: list[Outcome] = []

    def run(self, kinds: Sequence[Kind], rng: Random) -> list[Outcome]:
        """Inject faults of these kinds in this order, and let the last victim finish; return all outcomes."""
        self._outcomes, victim = [], None
        try:
            for index, kind in enumerate(kinds):
                if victim is None:
                    victim = self._fresh_victim(kind)
                following = kinds[index + 1].overrides if index + 1 < len(kinds) else ()
                outcome = self._one(victim, kind, rng, following=following)
                self._note(outcome)
                if outcome.problems:
                    self._put_aside(victim)
                    victim = None
                elif victim.job.step > self._total_steps - CLOSE_TO_END:
                    self._finish(victim)
                    victim = None
            if victim is not None:
                self._finish(victim)
                victim = None
        finally:
            if victim is not None:
                self._put_aside(victim)
        return self._outcomes

    def _fresh_victim(self, kind: Kind) -> Victim:
        run_dir = self.victims / "victim"
        victim = Victim(
            self._recipe, run_dir, reference=self.reference, start_s=self._start_s,
            linger_after=self._total_steps - CLOSE_TO_END // 2,
        )  # fmt: skip
        victim.start(*kind.overrides)
        return victim

    def _one(self, victim: Victim, kind: Kind, rng: Random, *, following: tuple[str, ...]) -> Outcome:
        """Inject one fault, start the victim again with the overrides of the following fault, and compare later.

        The fault before has left the victim some steps after its start; a fresh victim has made none yet.
        """
        began_s, before, details, lost = time.monotonic(), victim.job, "", 0
        problems: list[str] = []
        try:
            if not before.step:
                before.wait_for_step(rng.randint(1, MOST_STEPS_BETWEEN))
            effect = kind.apply(victim, rng)
            details, last_step = effect.details, max(before.step, victim.job.step)
            expected = expected_resume(victim.run_dir)
            victim.start(*following)
            victim.job.wait_for_step(expected + rng.randint(1, MOST_STEPS_BETWEEN))
            resumed = victim.job.resumed_step
            lost = last_step - resumed
            if resumed != expected:
                problems.append(f"resumed from step {resumed} instead of {expected}")
            if effect.loses_nothing and lost:
                problems.append(f"lost {lost} steps, although the last step had to be saved")
            problems += [f"the restart did not print {text!r}" for text in effect.says if text not in victim.job.output]
            problems += differences(victim.run_dir, self.reference, up_to=victim.job.step)
        except (NotAsDocumented, OSError, ValueError) as error:
            problems.append(f"{type(error).__name__}: {error}")
        return Outcome(
            kind=kind.name, details=details, step=before.step, lost=lost, seconds=time.monotonic() - began_s,
            problems=problems,
        )  # fmt: skip

    def _finish(self, victim: Victim) -> None:
        """Let a victim finish, compare it as a whole, and count the bad batches that it met."""
        victim.let_finish()
        began_s, step, problems = time.monotonic(), victim.job.step, []
        try:
            code = victim.job.ended()
            if code:
                problems.append(f"exit code {code}: {victim.job.output[-2000:]}")
            else:
                problems += differences_at_the_end(victim.run_dir, self.reference, total_steps=self._total_steps)
        except (NotAsDocumented, OSError, ValueError, LookupError) as error:
            problems.append(f"{type(error).__name__}: {error}")
        for bad_step in skipped_steps(self.reference):
            self._outcomes.append(Outcome(kind=BAD_BATCH, details="", step=bad_step, problems=problems[:1]))
        seconds = time.monotonic() - began_s
        details = "metrics, windows, weights and moments"
        self._note(Outcome(kind=WHOLE_RUN, details=details, step=step, seconds=seconds, problems=problems))
        if problems:
            self._put_aside(victim)
        else:
            shutil.rmtree(victim.run_dir)

    def _note(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        print(line_of(outcome, number=len([o for o in self._outcomes if o.kind != BAD_BATCH])), flush=True)

    def _put_aside(self, victim: Victim) -> None:
        """Kill a victim, and keep its run and the output of its last start for inspection."""
        victim.job.kill()
        kept = self._recipe.runs / f"not-recovered-{len(self._outcomes)}"
        if victim.run_dir.exists():
            shutil.move(victim.run_dir, kept)
            (kept / "last_start.log").write_text(victim.job.output, encoding="utf-8")


def all_recovered(outcomes: Sequence[Outcome]) -> bool:
    """Return whether every fault was recovered exactly."""
    return not any(outcome.problems for outcome in outcomes)


def demo_recipe(recipe: Path, *, tokenizer: Path, folder: Path, total_steps: int) -> Recipe:
    """Write shards so small that the run has several epochs; return the demo recipe on them.

    Raises:
        UserError: the shards cannot be written.
    """
    library = Path(sysconfig.get_path("stdlib"))
    shards = folder / "shards"
    done = run_module(
        "data_prep.write_shards", "--input", library / "json", library / "http", "--extensions", ".py",
        "--tokenizer", tokenizer, "--out", shards, "--seq_len", 256, "--val_fraction", 0.1,
        "--part_bytes", 40_000, "--num_workers", 1,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"no shards were written: {done.stderr.strip()}")
    overrides = (
        "train.batch_tokens=1024", "train.micro_batch_size=1", f"train.total_tokens={1024 * total_steps}",
        "train.eval_every_steps=20", "train.eval_tokens=2048",
        "checkpoint.every_steps=6", "checkpoint.keep=3", "log.every_steps=1", "log.samples=true",
    )  # fmt: skip
    return Recipe(path=recipe, overrides=overrides, runs=folder / "runs", shards=shards)


def disk_size(reference: Path, *, keep: int) -> int:
    """Return the size in bytes of a disk that has room for a victim and little more."""
    checkpoint = sum(path.stat().st_size for path in checkpoints_of(reference)[0].rglob("*"))
    return math.ceil((keep + 2.5) * checkpoint) + 2**24


def main() -> None:
    """Run the campaign; exit with 1 if a fault was not recovered."""
    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everything is cleaned up
    folder = arguments.workdir or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    rng, began_s = Random(arguments.seed), time.monotonic()
    recipe = demo_recipe(arguments.recipe, tokenizer=arguments.tokenizer, folder=folder, total_steps=arguments.steps)
    with ExitStack() as stack:
        campaign = Campaign(recipe, victims=folder / "disk", total_steps=arguments.steps)
        size = disk_size(campaign.reference, keep=3)
        has_disk = stack.enter_context(small_disk(folder / "disk", size=size))
        n_epochs = epochs_of(campaign.reference)
        print(
            f"uninterrupted: {arguments.steps} steps, {n_epochs} epochs, {time.monotonic() - began_s:.0f} s", flush=True
        )
        kinds = in_random_order(rng, n=arguments.faults, has_disk=has_disk)
        outcomes = campaign.run(kinds, rng)
    untried = {} if has_disk else {kind.name: "not allowed to mount a disk" for kind in KINDS if kind.needs_disk}
    print(table(outcomes, untried=untried, seed=arguments.seed, seconds=time.monotonic() - began_s))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    if not all_recovered(outcomes):
        print(f"kept: {folder}")
        sys.exit(1)
    if arguments.workdir is None:
        shutil.rmtree(folder)


def _parse() -> argparse.Namespace:
    parser = command_parser("tests.faults.campaign", description=__doc__)
    add = parser.add_argument
    count = whole_number(at_least=1, at_most=1_000_000)
    add("--seed", type=count, default=1, help="seed of the faults and their moments (default: 1)")
    add("--faults", type=count, default=60, help="number of faults (default: 60)")
    add("--steps", type=count, default=320, help="steps of each run (default: 320, more than 3 epochs)")
    add("--recipe", type=Path, default=Path("pipeline/recipes/demo.yaml"))
    add(
        "--tokenizer",
        type=Path,
        default=Path("data/demo/tokenizer.model"),
        help="the recipe's tokenizer, from make demo",
    )
    add("--workdir", type=Path, help="an empty folder for all files (default: a temporary folder, kept on failure)")
    add("--json", type=Path, help="JSON file to write with the outcome of every fault")
    return parser.parse_args()


if __name__ == "__main__":
    exit_on_user_error(main, program="tests.faults.campaign")
