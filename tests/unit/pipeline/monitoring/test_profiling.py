"""A profile contains whole steps: all requested ones, or those of them that the run took."""

import gzip
import json
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config.schema import Config, ParallelConfig, ProfileConfig
from pipeline.monitoring.profiling import StepProfile
from pipeline.runtime.world import World
from tests.helpers.monitored import config_in


def config_of(directory: Path, *, n_stages: int = 1) -> Config:
    config = config_in(directory)
    config.run_dir.mkdir()
    return replace(config, profile=ProfileConfig(steps=(3, 6)), parallel=ParallelConfig(pipeline_stages=n_stages))


def opened(config: Config, *, rank: int = 0) -> StepProfile:
    world = World(rank=rank, local_rank=rank, world_size=4, local_world_size=4)
    return StepProfile(
        config.profile, run_dir=config.run_dir, n_recording=config.parallel.ranks_per_replica, world=world,
        pausing=nullcontext,
    )  # fmt: skip


def take(profile: StepProfile, first: int, last: int) -> None:
    for step in range(first, last + 1):
        with profile.step(step):
            torch.ones(8, 8) @ torch.ones(8, 8)


def recorded(folder: Path) -> dict[str, int]:
    """Return each trace's name and number of steps; each must have its table."""
    steps = {}
    for path in folder.glob("profile/*.gz"):
        name = path.name.removesuffix(".pt.trace.json.gz")
        assert "seconds per step" in (folder / "profile" / f"{name}.txt").read_text()
        with gzip.open(path) as file:
            steps[name] = [event["name"] for event in json.load(file)["traceEvents"]].count("train: step")
    return steps


def link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def test_a_run_that_stops_in_between_keeps_the_recorded_steps(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with opened(config) as profile:
        take(profile, 1, 4)
    assert recorded(config.run_dir) == {"steps_3_to_4.rank_00000": 2}
    with opened(config) as profile:  # the next start records the rest
        take(profile, 5, 8)
    assert recorded(config.run_dir) == {"steps_3_to_4.rank_00000": 2, "steps_5_to_6.rank_00000": 2}


def test_a_run_that_ends_within_a_step_says_that_the_profile_is_lost(
    tmp_path: Path, pipeline_log: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path)
    with suppress(RuntimeError), opened(config) as profile:
        take(profile, 1, 4)
        with profile.step(5):
            raise RuntimeError
    assert recorded(config.run_dir) == {}
    assert "the profile of steps [3, 4] is lost because step 5 was not finished" in pipeline_log.text


def test_only_ranks_of_the_first_replica_record(tmp_path: Path) -> None:
    config = config_of(tmp_path, n_stages=2)
    for rank in range(4):
        with opened(config, rank=rank) as profile:
            take(profile, 6, 6)
    assert recorded(config.run_dir) == {"steps_6_to_6.rank_00000": 1, "steps_6_to_6.rank_00001": 1}


def test_a_run_outside_the_requested_steps_writes_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    for first, last in ((1, 2), (7, 8)):
        with opened(config) as profile:
            take(profile, first, last)
    assert not (config.run_dir / "profile").exists()


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, link_to_nowhere])
def test_a_profile_that_cannot_be_written_is_a_warning(
    make: Callable[[Path], None], tmp_path: Path, pipeline_log: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path)
    make(config.run_dir / "profile")
    with opened(config) as profile:
        take(profile, 1, 8)
    assert "could not write the profile of steps [3, 4, 5, 6]: [Errno 17] File exists" in pipeline_log.text


def test_a_profiler_that_does_not_start_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline_log: pytest.LogCaptureFixture
) -> None:
    def start(_: torch.profiler.profile) -> None:
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(torch.profiler.profile, "start", start)
    config = config_of(tmp_path)
    with opened(config) as profile:
        take(profile, 1, 8)
    assert "could not start to profile: the driver is too old; no step is recorded" in pipeline_log.text
    assert recorded(config.run_dir) == {}
