"""All kinds of fault, with their frequencies."""

from collections.abc import Iterator
from random import Random

from tests.faults import process_faults as processes
from tests.faults import storage_faults as storage
from tests.faults.victim import Kind

KINDS = (
    Kind(name="kill -9 of one rank", apply=processes.kill_rank, often=7),
    Kind(name="kill -9 of the launcher", apply=processes.kill_launcher, often=4),
    Kind(name="kill -9 of everything", apply=processes.kill_all, often=5),
    Kind(name="kill -9 of everything inside a save", apply=processes.kill_all_in_save, often=8),
    Kind(name="a signal to one rank", apply=processes.stop, often=5),
    Kind(name="two signals during a save", apply=processes.stop_twice_in_save, often=4),
    Kind(name="kill -9 during the start", apply=processes.kill_at_start, often=3),
    Kind(name="a signal during the start", apply=processes.stop_at_start, often=3),
    Kind(name="newest checkpoint damaged", apply=storage.damage_newest, often=6),
    Kind(name="two newest checkpoints damaged", apply=storage.damage_two, often=2),
    Kind(name="stray folder of an interrupted save", apply=storage.leave_partial, often=1),
    Kind(name="shard damaged", apply=storage.damage_shard, often=3),
    Kind(name="disk full, failed_save=go_on", apply=storage.fill_disk_and_go_on, often=2, needs_disk=True),
    Kind(
        name="disk full, failed_save=stop", apply=storage.fill_disk_and_stop, often=2, needs_disk=True,
        overrides=("faults.failed_save=stop",),
    ),
    Kind(
        name="a rank stopped forever", apply=processes.hang, often=2,
        overrides=(f"faults.hang_timeout_s={processes.HANG_TIMEOUT_S}",),
    ),
    Kind(name="a second start", apply=processes.start_twice, often=2),
    Kind(name="too many bad steps in a row", apply=processes.bad_numbers, often=1),
)  # fmt: skip


def in_random_order(rng: Random, *, n: int, has_disk: bool) -> list[Kind]:
    """Return `n` kinds in random order with their frequencies; kinds that need a disk only if there is one."""
    return [kind for kind, _ in zip(_endless(rng, has_disk=has_disk), range(n), strict=False)]


def _endless(rng: Random, *, has_disk: bool) -> Iterator[Kind]:
    bag = [kind for kind in KINDS for _ in range(kind.often) if has_disk or not kind.needs_disk]
    while True:
        yield from rng.sample(bag, len(bag))
