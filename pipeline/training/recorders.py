"""Recorders of the steps of a run: the monitor with its sinks, the record of samples, and the profile."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pipeline.config.deepspeed import Precision
from pipeline.config.schema import Config
from pipeline.data.sample_record import SampleRecord
from pipeline.monitoring.environment import device_name
from pipeline.monitoring.monitor import Monitor
from pipeline.monitoring.profiling import StepProfile
from pipeline.monitoring.sinks.selection import sinks_for
from pipeline.runtime.devices import peak_flops
from pipeline.runtime.world import World


@dataclass(frozen=True, kw_only=True)
class Recorders:
    """The recorders of one stretch of training, from the beginning or from a checkpoint on."""

    monitor: Monitor
    samples: SampleRecord
    profile: StepProfile


@contextmanager
def open_recorders(
    config: Config, *, world: World, device: torch.device, precision: Precision, step: int
) -> Iterator[Recorders]:
    """Open the recorders to continue after `step`, and drop what they recorded of later steps; close them at the end.

    Every rank must call it.

    Args:
        config: the run.
        world: this rank's place.
        device: this rank's device.
        precision: of the matrix products, to which the peak for utilisation belongs.
        step: the last step that is already recorded; 0 at the beginning.
    """
    sinks = sinks_for(config, world=world, resumed_step=step)
    samples = SampleRecord(
        config.run_dir, log=config.log, ranks_per_replica=config.parallel.ranks_per_replica, world=world,
        resumed_step=step,
    )  # fmt: skip
    with (
        Monitor(
            config.train, model=config.model, seq_len=config.data.seq_len, sinks=sinks, device=device, step=step,
            peak_flops=peak_flops(device_name(device), precision=precision),
        ) as monitor,
        samples,
        StepProfile(
            config.profile, run_dir=config.run_dir, n_recording=config.parallel.ranks_per_replica, world=world,
            pausing=monitor.paused,
        ) as profile,
    ):  # fmt: skip
        yield Recorders(monitor=monitor, samples=samples, profile=profile)
