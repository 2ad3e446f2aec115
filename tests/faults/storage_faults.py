"""Faults of files: damaged checkpoints, damaged shards, and a full disk."""

import itertools
import json
import time
from pathlib import Path
from random import Random

from pipeline.runtime.stop import ExitCode
from tests.faults.runs import PATIENCE_S, NotAsDocumented, checkpoints_of
from tests.faults.victim import DAMAGED, Ballast, Effect, Victim, expected_resume, undamaged_checkpoints

TELLING_FAILURE = "a checkpoint could not be written"


def damage_newest(victim: Victim, rng: Random) -> Effect:
    """Damage the newest checkpoint between two starts."""
    return _damage_checkpoints(victim, rng, n=1)


def damage_two(victim: Victim, rng: Random) -> Effect:
    """Damage the two newest checkpoints between two starts."""
    return _damage_checkpoints(victim, rng, n=2)


def leave_partial(victim: Victim, rng: Random) -> Effect:
    """Leave a stray folder, as from a save that was interrupted long ago."""
    ended, number = victim.end(rng), rng.randrange(10_000)
    stray = victim.run_dir / "checkpoints" / f".step_{number:08d}.partial"
    stray.mkdir()
    (stray / "manifest.json").write_text("{}")
    return Effect(details=f"{ended}; {stray.name}")


def _damage_checkpoints(victim: Victim, rng: Random, *, n: int) -> Effect:
    enough = n + 1  # so that one is left to resume from
    victim.job.wait_until(lambda: len(undamaged_checkpoints(victim.run_dir)) >= enough, what=f"{enough} checkpoints")
    ended = victim.end(rng)
    damaged = undamaged_checkpoints(victim.run_dir)[:n]
    done = [f"{checkpoint.name}: {damage_folder(checkpoint, rng)}" for checkpoint in damaged]
    return Effect(
        details="; ".join([ended, *done]),
        says=tuple(f"{checkpoint.name} is damaged: " for checkpoint in damaged),
    )


def damage_folder(checkpoint: Path, rng: Random) -> str:
    """Damage one file of a checkpoint; return how."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    path = rng.choice(files)
    how = rng.choice(["truncated", "bit flipped", "deleted", "emptied", "manifest deleted"])
    if how == "manifest deleted":
        path = checkpoint / "manifest.json"
        path.unlink()
    elif how == "deleted":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        damage_file(path, rng, truncate=how == "truncated")
    (checkpoint / DAMAGED).touch()
    return f"{path.relative_to(checkpoint)} {how}"


def damage_file(path: Path, rng: Random, *, truncate: bool) -> None:
    """Truncate a file at a random position, or flip one bit of it."""
    data = bytearray(path.read_bytes())
    position = rng.randrange(len(data))
    if truncate:
        del data[position:]
    else:
        data[position] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def damage_shard(victim: Victim, rng: Random) -> Effect:
    """Damage a shard that the next steps read, between two starts; it is named, and no step that reads it is saved."""
    ended = victim.end(rng)
    resumes_from = expected_resume(victim.run_dir)
    step, shard = rng.choice(_first_readings(victim, resumes_from)[:4])
    whole, how = shard.read_bytes(), rng.choice(["truncated", "bit flipped", "deleted"])
    try:
        if how == "deleted":
            shard.unlink()
        else:
            damage_file(shard, rng, truncate=how == "truncated")
        victim.start()
        victim.must_end_with(ExitCode.BAD_NUMBERS)
    finally:
        shard.write_bytes(whole)
    victim.must_say(f"step {step} read damaged data: ")
    victim.must_say(f"{shard} ")
    if victim.job.step >= step:
        raise NotAsDocumented(f"step {victim.job.step} was reported, although step {step} reads the damaged shard")
    return Effect(details=f"{ended}; {shard.parent.name}/{shard.name} {how}, read in step {step}")


def _first_readings(victim: Victim, after: int) -> list[tuple[int, Path]]:
    """Return each shard with the first step after `after` in which the reference read it, earliest step first."""
    split = victim.recipe.shards / "train"
    shards = json.loads((split / "index.json").read_text(encoding="utf-8"))["shards"]
    paths = [split / shard["raw_data"]["basename"] for shard in shards]
    ends = list(itertools.accumulate(shard["samples"] for shard in shards))
    first: dict[Path, int] = {}
    for record in (victim.reference / "samples").glob("rank_*.jsonl"):
        for line in map(json.loads, record.read_text(encoding="utf-8").splitlines()):
            for sample in (sample for _, samples in line["samples"] for sample in samples if line["step"] > after):
                path = paths[next(index for index, end in enumerate(ends) if sample < end)]
                first[path] = min(line["step"], first.get(path, line["step"]))
    return sorted((step, path) for path, step in first.items())


def fill_disk_and_go_on(victim: Victim, rng: Random) -> Effect:
    """Fill the disk so that the next save fails; training continues with a warning, and saves when there is space."""
    leave = _leave(victim, rng)
    with Ballast(victim.run_dir.parent, leave=leave) as ballast:

        def has_failed() -> bool:
            ballast.fill()
            return TELLING_FAILURE in victim.job.output

        victim.job.wait_until(has_failed, what="a failed save")
        victim.must_say("training goes on")
        victim.job.wait_for_step(victim.job.step + 2)
    details = f"{leave / 2**20:.1f} MiB left"
    if rng.random() < 0.5:
        newest = checkpoints_of(victim.run_dir)[:1]
        victim.job.wait_until(lambda: checkpoints_of(victim.run_dir)[:1] != newest, what="a save after space was freed")
        details += ", saved again"
    victim.job.kill()
    return Effect(details=f"{details}, killed")


def fill_disk_and_stop(victim: Victim, rng: Random) -> Effect:
    """Fill the disk; with faults.failed_save=stop the run ends."""
    leave = _leave(victim, rng)
    with Ballast(victim.run_dir.parent, leave=leave) as ballast:
        while not victim.job.is_over and victim.job.age_s < PATIENCE_S:
            ballast.fill()
            time.sleep(0.05)
        victim.must_end_with(ExitCode.FAILED_SAVE)
    victim.must_say(TELLING_FAILURE)
    return Effect(details=f"{leave / 2**20:.1f} MiB left")


def _leave(victim: Victim, rng: Random) -> int:
    """Return the number of bytes to leave free: none, or enough for part of a checkpoint."""
    size = sum(path.stat().st_size for path in checkpoints_of(victim.reference)[0].rglob("*"))
    return rng.choice([0, int(rng.uniform(0.01, 0.9) * size)])
