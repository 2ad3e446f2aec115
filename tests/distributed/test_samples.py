"""Each step reads the same windows for any number of ranks and of ranks per replica; compared by window ids."""

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.sample_record import samples_by_step
from tests.conftest import run_module
from tests.distributed.samples import LOOKAHEAD, SEQ_LEN, SEQUENCES, Reading
from tests.helpers.ranks import run_on_ranks

N_WINDOWS, STEPS = 150, 12  # 12 steps of 16 windows reach into the second epoch
LAYOUTS = [(1, 1, 0), (1, 1, 2), (2, 1, 0), (2, 2, 2), (4, 1, 0), (4, 2, 0), (4, 2, 2), (4, 4, 0)]
CANONICAL = (64, 2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards with windows whose first token is the window's index."""
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
    out.unlink(missing_ok=True)
    killed = readings[-1].killed
    done = run_on_ranks("tests.distributed.samples", out, jobs, ranks=ranks, timeout_s=900, check=not killed)
    if killed:
        assert "SIGKILL" in done.stderr or "Signal 9" in done.stderr, done.stdout[-2000:] + done.stderr[-4000:]
        return []
    return json.loads(out.read_text())


def windows_by_step(result: dict[str, Any], sharers: int) -> list[list[int]]:
    """Return the sorted windows of each step over all replicas; fail if the ranks of a replica differ."""
    by_rank = result["windows"]
    replicas = [by_rank[first : first + sharers] for first in range(0, len(by_rank), sharers)]
    assert all(ranks == ranks[:1] * sharers for ranks in replicas), "the ranks of one replica read different windows"
    firsts = [ranks[0] for ranks in replicas]
    return [sorted(itertools.chain.from_iterable(of_replicas)) for of_replicas in zip(*firsts, strict=True)]


@pytest.fixture(scope="module")
def readings(shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int, int, int, str], Any]:
    """Results by (ranks, sharers, workers, canonical nodes, part); the part is all, half, or resumed on fewer ranks."""
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
def test_every_layout_reads_the_windows_of_one_rank_in_each_step(
    readings: dict[Any, Any], ranks: int, sharers: int, workers: int, canonical: int
) -> None:
    one_rank = windows_by_step(readings[(1, 1, 0, canonical, "all")], 1)
    assert len(one_rank) == STEPS
    assert all(len(step) == SEQUENCES for step in one_rank)
    assert one_rank[0] != sorted(range(SEQUENCES)), "not shuffled"
    assert windows_by_step(readings[(ranks, sharers, workers, canonical, "all")], sharers) == one_rank


@pytest.mark.parametrize("canonical", CANONICAL)
@pytest.mark.parametrize(("ranks", "sharers", "workers"), [layout for layout in LAYOUTS if layout[0] < 4])
def test_a_run_continues_with_its_windows_on_half_of_the_ranks(
    readings: dict[Any, Any], ranks: int, sharers: int, workers: int, canonical: int
) -> None:
    one_rank = windows_by_step(readings[(1, 1, 0, canonical, "all")], 1)
    resumed = windows_by_step(readings[(ranks, sharers, workers, canonical, "resumed")], sharers)
    assert resumed == one_rank[STEPS // 2 :]


RUN_STEPS = 30  # an epoch has 9 steps: into the fourth epoch


@pytest.fixture(scope="module")
def runs(shards: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An undisturbed run on one rank, and a run on 1, 4 and 2 ranks that is killed some steps after each save."""
    folder = tmp_path_factory.mktemp("runs")
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    plain = Reading(
        shards=shards, sharers=1, micro_batch_size=2, num_workers=0, num_canonical_nodes=2, steps=RUN_STEPS,
        run=str(undisturbed), saved_after=RUN_STEPS,
    )  # fmt: skip
    first = replace(plain, run=str(killed), steps=12, saved_after=7, killed=True)
    launch(1, [plain, first], folder)
    launch(4, [replace(first, steps=13, saved_after=10, sharers=2, num_workers=1)], folder)
    launch(2, [replace(first, steps=13, saved_after=13, killed=False)], folder)
    return undisturbed, killed


def test_the_record_of_a_run_killed_on_changing_ranks_equals_that_of_one_rank(runs: tuple[Path, Path]) -> None:
    undisturbed, killed = (samples_by_step(run) for run in runs)
    assert sorted(undisturbed) == list(range(1, RUN_STEPS + 1))
    assert {epoch for had in undisturbed.values() for epoch, _ in had} == {0, 1, 2, 3}
    assert all(had.total() == SEQUENCES for had in undisturbed.values())
    assert killed == undisturbed


def test_one_rank_of_each_replica_writes_the_record(runs: tuple[Path, Path]) -> None:
    """Ranks 0 and 2 write, of four in two replicas. Records of ranks that are gone stay, up to the saved step."""
    files = {path.name: path.read_text().splitlines() for path in (runs[1] / "samples").iterdir()}
    steps = {name: [json.loads(line)["step"] for line in lines] for name, lines in files.items()}
    assert steps == {
        "rank_00000.jsonl": list(range(1, RUN_STEPS + 1)),
        "rank_00001.jsonl": list(range(18, RUN_STEPS + 1)),
        "rank_00002.jsonl": list(range(8, 18)),
    }


def test_the_audit_command_finds_them_equal(runs: tuple[Path, Path], tmp_path: Path) -> None:
    done = run_module("pipeline.audit", *runs)
    assert (done.stdout, done.returncode) == (f"the same samples in {RUN_STEPS} common steps\n", 0), done.stderr
    done = run_module("pipeline.audit", runs[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RUN_STEPS} steps up to step {RUN_STEPS}, {RUN_STEPS * SEQUENCES} samples, 4 epochs" in done.stdout
