"""Each step has the same samples however many ranks there are and however they share a replica; by sample ids."""

import itertools
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import REPOSITORY, free_port
from tests.distributed.samples import LOOKAHEAD, SEQ_LEN, SEQUENCES, Reading

N_WINDOWS, STEPS = 150, 12  # 12 steps of 16 windows go into the second epoch
LAYOUTS = [(1, 1, 0), (1, 1, 2), (2, 1, 0), (2, 2, 2), (4, 1, 0), (4, 2, 0), (4, 2, 2), (4, 4, 0)]
CANONICAL = (64, 2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Windows whose first token is the window's number."""
    from common.mds import streaming

    root = tmp_path_factory.mktemp("windows")
    width = SEQ_LEN + LOOKAHEAD
    with streaming.MDSWriter(out=str(root / "train"), columns={"tokens": f"ndarray:uint16:{width}"}) as writer:
        for window in range(N_WINDOWS):
            writer.write({"tokens": np.full(width, window, dtype=np.uint16)})
    return str(root)


def launch(ranks: int, readings: list[Reading], folder: Path) -> list[dict[str, Any]]:
    jobs, out = folder / f"{ranks}.readings.json", folder / f"{ranks}.out.json"
    jobs.write_text(json.dumps([asdict(reading) for reading in readings]))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    worker = ["--master_port", str(free_port()), "-m", "tests.distributed.samples", str(out), str(jobs)]
    command = [*launcher, *worker]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(out.read_text())


def of_steps(result: dict[str, Any], sharers: int) -> list[list[int]]:
    """The sorted windows of each step over all replicas, whose ranks must agree."""
    by_rank = result["windows"]
    replicas = [by_rank[first : first + sharers] for first in range(0, len(by_rank), sharers)]
    assert all(ranks == ranks[:1] * sharers for ranks in replicas), "the ranks of one replica read different samples"
    firsts = [ranks[0] for ranks in replicas]
    return [sorted(itertools.chain.from_iterable(of_replicas)) for of_replicas in zip(*firsts, strict=True)]


@pytest.fixture(scope="module")
def readings(shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int, int, int, str], Any]:
    """By (ranks, sharers, workers, canonical nodes, which steps): all, the first half, or the rest on fewer ranks."""
    folder = tmp_path_factory.mktemp("readings")
    results: dict[tuple[int, int, int, int, str], Any] = {}
    for ranks in (4, 2, 1):
        plain = [
            Reading(shards=shards, sharers=sharers, micro_batch_size=2, num_workers=workers, steps=STEPS,
                    num_canonical_nodes=canonical)
            for (world, sharers, workers) in LAYOUTS if world == ranks for canonical in CANONICAL
        ]  # fmt: skip
        half = [replace(reading, steps=STEPS // 2) for reading in plain]
        after = [
            replace(reading, steps=STEPS - STEPS // 2,
                    position=results[(2 * ranks, 1, 0, reading.num_canonical_nodes, "half")]["position"])
            for reading in plain if ranks < 4
        ]  # fmt: skip
        done = launch(ranks, [*plain, *half, *after], folder)
        for kind, part, start in (("all", plain, 0), ("half", half, len(plain)), ("resumed", after, 2 * len(plain))):
            for index, reading in enumerate(part):
                key = (ranks, reading.sharers, reading.num_workers, reading.num_canonical_nodes, kind)
                results[key] = done[start + index]
    return results


@pytest.mark.parametrize("canonical", CANONICAL)
@pytest.mark.parametrize(("ranks", "sharers", "workers"), LAYOUTS)
def test_every_layout_has_one_ranks_samples_in_each_step(
    readings: dict[Any, Any], ranks: int, sharers: int, workers: int, canonical: int
) -> None:
    one_rank = of_steps(readings[(1, 1, 0, canonical, "all")], 1)
    assert len(one_rank) == STEPS
    assert all(len(step) == SEQUENCES for step in one_rank)
    assert one_rank[0] != sorted(range(SEQUENCES)), "not shuffled"
    assert of_steps(readings[(ranks, sharers, workers, canonical, "all")], sharers) == one_rank


@pytest.mark.parametrize("canonical", CANONICAL)
@pytest.mark.parametrize(("ranks", "sharers", "workers"), [layout for layout in LAYOUTS if layout[0] < 4])
def test_a_run_goes_on_with_its_samples_on_half_the_ranks(
    readings: dict[Any, Any], ranks: int, sharers: int, workers: int, canonical: int
) -> None:
    one_rank = of_steps(readings[(1, 1, 0, canonical, "all")], 1)
    resumed = of_steps(readings[(ranks, sharers, workers, canonical, "resumed")], sharers)
    assert resumed == one_rank[STEPS // 2 :]
