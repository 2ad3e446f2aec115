"""Faults of processes: killed, asked to stop, stopped forever, started twice; and losses that stay infinite."""

import contextlib
import json
import os
import shutil
import signal
import time
from random import Random
from unittest.mock import patch

import psutil

from pipeline.runtime.stop import ExitCode
from tests.faults import nan_train
from tests.faults.runs import RANKS, Job, NotAsDocumented
from tests.faults.victim import Effect, Victim

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAVE_S = 0.15  # longest time from the start of a save to a kill or signal
HANG_TIMEOUT_S = 20


def kill_rank(victim: Victim, rng: Random) -> Effect:
    """kill -9 of one rank; the launcher ends the other."""
    rank = _after_a_moment(rng)
    victim.job.ranks()[rank].kill()
    _must_have_failed(victim)
    return Effect(details=f"rank {rank}")


def kill_launcher(victim: Victim, rng: Random) -> Effect:
    """kill -9 of the launchers of the ranks; the ranks notice it, save, and end by themselves."""
    _after_a_moment(rng)
    victim.job.ranks()
    for launcher in victim.job.launchers():
        launcher.kill()
    victim.job.ended()
    victim.must_say("stopped on request (its launcher's death on rank")
    return Effect(details="", loses_nothing=True)


def kill_all(victim: Victim, rng: Random) -> Effect:
    """kill -9 of every process; their shared memory stays behind."""
    _after_a_moment(rng)
    victim.job.kill()
    return Effect(details="")


def kill_all_in_save(victim: Victim, rng: Random) -> Effect:
    """kill -9 of every process while a checkpoint is being written."""
    wait_s = rng.choice([0.0, rng.uniform(0, SAVE_S)])
    victim.job.wait_for_save()
    time.sleep(wait_s)
    victim.job.kill()
    return Effect(details=f"{1000 * wait_s:.0f} ms into it")


def stop(victim: Victim, rng: Random) -> Effect:
    """Send one signal to one rank."""
    number, rank = rng.choice(SIGNALS), _after_a_moment(rng)
    victim.job.ranks()[rank].send_signal(number)
    victim.must_end_with(ExitCode.STOPPED)
    victim.must_say(f"stopped on request ({number.name} on rank {rank})")
    return Effect(details=f"{number.name} to rank {rank}", loses_nothing=True)


def stop_twice_in_save(victim: Victim, rng: Random) -> Effect:
    """Send two signals in quick succession while a checkpoint is being written."""
    numbers, ranks = rng.choices(SIGNALS, k=2), rng.choices(range(RANKS), k=2)
    waits_s = rng.uniform(0, SAVE_S), rng.uniform(0, SAVE_S)
    processes = victim.job.ranks()
    victim.job.wait_for_save()
    for number, rank, wait_s in zip(numbers, ranks, waits_s, strict=True):
        time.sleep(wait_s)
        with contextlib.suppress(psutil.NoSuchProcess):  # the first signal has already ended it
            processes[rank].send_signal(number)
    victim.must_end_with(ExitCode.STOPPED)
    victim.must_say("stopped on request (")
    sent = ", ".join(f"{number.name} to rank {rank}" for number, rank in zip(numbers, ranks, strict=True))
    return Effect(details=sent, loses_nothing=True)


def kill_at_start(victim: Victim, rng: Random) -> Effect:
    """kill -9 of every process before the first step after a start."""
    ended, job = victim.end(rng), victim.start()
    _wait_before_first_step(victim, rng)
    details = f"{ended}; then {job.age_s:.1f} s after the start, at step {job.step}"
    job.kill()
    return Effect(details=details)


def stop_at_start(victim: Victim, rng: Random) -> Effect:
    """Send a signal to one rank before the first step after a start; until Python runs, it kills that rank."""
    ended, job, number, rank = victim.end(rng), victim.start(), rng.choice(SIGNALS), rng.randrange(RANKS)
    process = job.ranks()[rank]
    _wait_before_first_step(victim, rng)
    details = f"{ended}; then {number.name} to rank {rank} {job.age_s:.1f} s after the start"
    process.send_signal(number)
    code, killed = job.ended(), 256 - number
    if code not in (ExitCode.STOPPED, killed):
        raise NotAsDocumented(f"exit code {code} instead of {ExitCode.STOPPED:d} or {killed}: {job.output[-600:]}")
    return Effect(details=f"{details}: code {code}")


def hang(victim: Victim, rng: Random) -> Effect:
    """Stop one rank forever with SIGSTOP: the other writes its flight record and ends."""
    stopped = _after_a_moment(rng)
    processes, record = victim.job.ranks(), victim.run_dir / "hangs" / f"rank_{1 - stopped:05d}.txt"
    processes[stopped].suspend()
    processes[1 - stopped].wait(5 * HANG_TIMEOUT_S)
    processes[stopped].kill()
    victim.must_end_with(ExitCode.HUNG)
    if not record.exists() or "no progress for" not in record.read_text(encoding="utf-8"):
        raise NotAsDocumented(f"{record} was not written")
    record.unlink()
    return Effect(details=f"rank {stopped}")


def start_twice(victim: Victim, rng: Random) -> Effect:
    """A second start while the first runs is refused and does not affect the first, which is paused meanwhile."""
    _after_a_moment(rng)
    for rank in victim.job.ranks():
        rank.suspend()
    second = Job(victim.recipe, victim.run_dir)
    try:
        code = second.ended()
    finally:
        second.kill()
        for rank in victim.job.ranks():
            rank.resume()
    if code != ExitCode.MISTAKE:
        raise NotAsDocumented(f"the second start ended with {code}: {second.output[-600:]}")
    victim.must_say("in use by", job=second)
    victim.job.wait_for_step(victim.job.step + 2)
    victim.job.kill()
    return Effect(details="")


def bad_numbers(victim: Victim, rng: Random) -> Effect:
    """A separate run with about every second loss infinite ends by itself, and records the windows."""
    ended, limit = victim.end(rng), rng.randint(1, 3)
    run_dir = victim.recipe.runs / "bad-numbers"
    with patch.dict(os.environ, {nan_train.ONE_IN: "2"}):
        job = Job(victim.recipe, run_dir, f"faults.max_skipped_steps={limit}")
    try:
        code = job.ended()
    finally:
        job.kill()
    if code != ExitCode.BAD_NUMBERS:
        raise NotAsDocumented(f"exit code {code} instead of {ExitCode.BAD_NUMBERS:d}: {job.output[-600:]}")
    lines = [json.loads(line) for line in (run_dir / "bad_steps.jsonl").read_text(encoding="utf-8").splitlines()]
    last = lines[-1 - limit :]
    in_a_row = [line["step"] - last[0]["step"] for line in last] == list(range(limit + 1))
    if not in_a_row or last[-1]["verdict"] != "too many skipped" or not all(line["samples"] for line in last):
        raise NotAsDocumented(f"bad_steps.jsonl ends with {last}")
    shutil.rmtree(run_dir)
    return Effect(details=f"{ended}; another run ends after {limit + 1} in a row")


def _wait_before_first_step(victim: Victim, rng: Random) -> None:
    """Wait for part of the time that the reference's start took, or until the first step if that comes earlier."""
    until_s = rng.uniform(0, 0.95) * victim.start_s
    while victim.job.age_s < until_s and not victim.job.step:
        time.sleep(0.01)


def _after_a_moment(rng: Random) -> int:
    """Wait for up to about two steps, so that the fault comes at any point of a step; return a random rank."""
    time.sleep(rng.uniform(0, 0.6))
    return rng.randrange(RANKS)


def _must_have_failed(victim: Victim) -> None:
    """Check that the exit code of a killed job is none that a run uses to end by itself."""
    code = victim.job.ended()
    if code in set(ExitCode):
        raise NotAsDocumented(f"exit code {code} after a kill: {victim.job.output[-600:]}")
