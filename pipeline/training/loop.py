"""The training loop: steps, and between them reports, validation, checkpoints, and what is done about faults.

Whatever ends or bends a run is agreed on by all ranks after a step, in the one collective that also averages the
losses: a stop request to any of them, a shard that any found damaged, a checkpoint that any could not write. Numbers
that went bad need no agreement, since every rank sees the same (health.py).
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.data.batches import Batch, Consumed, TrainingData, ValidationData
from pipeline.data.sample_record import EpochSamples, SampleRecord
from pipeline.monitoring.environment import device_name
from pipeline.monitoring.monitor import Monitor, is_due
from pipeline.monitoring.previews import Previews
from pipeline.monitoring.profiling import StepProfile
from pipeline.monitoring.sinks import has_validation, sinks_for
from pipeline.monitoring.step_times import StepTimes
from pipeline.runtime import history
from pipeline.runtime.collectives import agree, from_every_rank, from_main
from pipeline.runtime.devices import peak_flops
from pipeline.runtime.lease import Lease
from pipeline.runtime.logs import logger
from pipeline.runtime.stop import Ending, ExitCode, StopRequest
from pipeline.runtime.watchdog import Watchdog
from pipeline.runtime.world import World
from pipeline.training.engine import Engine
from pipeline.training.health import Health, Verdict, record_bad_step
from pipeline.training.optim import learning_rate
from pipeline.weights.checkpoint.folder import SHARDED, Checkpoint, CheckpointFolder


class Trainer:
    """A run in progress. All ranks call each method together."""

    def __init__(
        self,
        config: Config,
        *,
        world: World,
        device: torch.device,
        engine: Engine,
        data: TrainingData,
        validation: ValidationData | None,
        previews: Previews,
        checkpoints: CheckpointFolder,
        lease: Lease,
        stop: StopRequest,
        watchdog: Watchdog,
    ) -> None:
        self._config, self._world, self._device = config, world, device
        self._engine, self._data, self._validation = engine, data, validation
        self._previews = previews
        self._checkpoints, self._lease, self._stop, self._watchdog = checkpoints, lease, stop, watchdog
        self._health = Health(config.faults)
        self._times = StepTimes(
            world=world, n_stages=config.parallel.pipeline_stages, num_workers=config.data.num_workers
        )
        self._step = 0
        self._skipped_windows = 0
        self._validation_is_due = False
        self._rollbacks: dict[int, int] = {}  # by the step of the checkpoint

    def train(self, found: Checkpoint | None) -> ExitCode:
        """Train from a checkpoint, or from the beginning, to the last step or a stop request.

        Raises:
            Ending: the run cannot go on.
        """
        if found is not None:
            self._data.load_state_dict(found.state["data"])
        while True:
            if found is not None:
                self._restore(found)
            config = self._config
            sinks = sinks_for(config, world=self._world, resumed_step=self._step)
            samples = SampleRecord(
                config.run_dir, log=config.log, ranks_per_replica=config.parallel.ranks_per_replica,
                world=self._world, resumed_step=self._step,
            )  # fmt: skip
            peak = peak_flops(device_name(self._device), precision=self._engine.precision)
            with (
                Monitor(
                    config.train,
                    model=config.model,
                    seq_len=config.data.seq_len,
                    sinks=sinks,
                    device=self._device,
                    step=self._step,
                    peak_flops=peak,
                ) as monitor,
                samples,
                StepProfile(
                    config.profile,
                    run_dir=config.run_dir,
                    n_recording=config.parallel.ranks_per_replica,
                    world=self._world,
                    pausing=monitor.paused,
                ) as profile,
            ):
                try:
                    return self._train(monitor, samples, profile)
                except _RollBack as roll_back:
                    found = roll_back.checkpoint  # data goes on where it is

    def _train(self, monitor: Monitor, samples: SampleRecord, profile: StepProfile) -> ExitCode:
        config, stopping = self._config, self._any(self._stop.reason is not None)
        if self._validation_is_due and not stopping:
            stopping = not self._validate(monitor)
        while self._step < config.total_steps and not stopping:
            step = self._step + 1
            self._watchdog.progress(f"step {step}")
            rate = learning_rate(step, optim=config.optim, total_steps=config.total_steps)
            takes_norms = is_due(step, every_steps=config.log.grad_norms_every_steps)
            with profile.step(step), self._times.step():
                losses_N = self._engine.train_step(self._data, learning_rate=rate, takes_grad_norms=takes_norms)
                consumed = self._data.take_consumed()
                losses_N, stopping = self._agree(step, losses_N, consumed)
            self._judge(step, losses_N, consumed.samples)
            samples.write(step, consumed.samples)
            self._step, is_last = step, step == config.total_steps

            if step % config.log.every_steps == 0 or is_last or stopping:
                monitor.log_step(
                    step, losses_N=losses_N, learning_rate=rate, gradient_norm=self._engine.gradient_norm,
                    skipped_steps=self._health.skipped, skipped_windows=self._skipped_windows,
                    times=self._times.take_scalars(),
                )  # fmt: skip
            monitor.log_grad_norms(step, self._engine.grad_norms)
            self._previews.write(step, predict=self._engine.predict, monitor=monitor)
            if config.train.eval_every_steps and (step % config.train.eval_every_steps == 0 or is_last):
                self._validation_is_due = True
                stopping = stopping or not self._validate(monitor)
            if step % config.checkpoint.every_steps == 0 or is_last or stopping:
                with monitor.paused():
                    self._save(last=is_last or stopping)
        return self._stopped() if stopping else ExitCode.FINISHED

    def _agree(self, step: int, losses_N: Tensor, consumed: Consumed) -> tuple[Tensor, bool]:
        """Return the mean losses (N,) and whether to stop; end the run if any rank met what its policy ends it for."""
        policy = self._config.faults
        failed_save = policy.failed_save == "stop" and self._checkpoints.has_failed
        requested = self._stop.reason is not None
        own_times = self._times.own(wait_s=self._data.wait_s, compute_s=self._engine.take_compute_s())
        flags = (requested, len(consumed.faults), consumed.skipped_windows, failed_save, self._is_taken_over)
        losses_N, sums = agree(losses_N, *flags, *own_times)
        self._times.observe(sums[len(flags) :])
        if sums[4]:
            self._give_way()
        if sums[1]:
            self._tell_of_bad_shards(step, consumed)
        self._skipped_windows += round(sums[2]) // self._config.parallel.ranks_per_replica
        if sums[3]:
            self._settle(must=True)
        return losses_N, sums[0] > 0

    def _tell_of_bad_shards(self, step: int, consumed: Consumed) -> None:
        of_ranks = from_every_rank((consumed.faults, consumed.nothing_left))
        of_all_ranks = sorted({fault for faults, _ in of_ranks for fault in faults})
        if self._config.faults.bad_shard == "stop" or any(nothing_left for _, nothing_left in of_ranks):
            raise Ending(
                ExitCode.BAD_NUMBERS,
                f"step {step} met {'; '.join(of_all_ranks)}. Mend the shards, or the way to them, and start again, or"
                " set faults.bad_shard=skip; nothing of this step was saved",
            )
        for fault in of_all_ranks:
            self._warn("step %d met %s; windows of the next whole shard take the place of its own", step, fault)

    def _judge(self, step: int, losses_N: Tensor, consumed: list[EpochSamples]) -> None:
        """Look at the step's numbers, and write down those that went bad with their samples."""
        loss, norm = losses_N.sum().item(), self._engine.gradient_norm
        verdict = self._health.observe(loss=loss, gradient_norm=norm)
        if verdict is Verdict.GOOD:
            return
        of_all_ranks = [sample for of_rank in from_every_rank(consumed) for sample in of_rank]
        record = self._config.run_dir / "bad_steps.jsonl"
        if self._world.is_main:
            try:
                record_bad_step(record, step=step, loss=loss, gradient_norm=norm, verdict=verdict, samples=of_all_ranks)
            except OSError as error:
                self._warn("%s cannot be written (%s)", record, error.strerror)
        if verdict is Verdict.SPIKE:
            self._warn("step %d: the loss jumped to %.3f; its samples are in %s", step, loss, record)
            if self._config.faults.spike == "roll_back":
                self._roll_back(step)
            return
        self._warn("step %d was skipped: loss %s, gradient norm %s; samples in %s", step, loss, norm, record)
        if verdict is Verdict.TOO_MANY_SKIPPED:
            raise Ending(
                ExitCode.BAD_NUMBERS,
                f"more than faults.max_skipped_steps={self._config.faults.max_skipped_steps} steps in a row were not"
                f" finite; their samples are in {record}",
            )

    def _roll_back(self, step: int) -> None:
        """Go back to the newest checkpoint, and on with the data after `step`."""
        self._settle()
        found, limit = self._checkpoints.newest(), self._config.faults.max_rollbacks
        if found is None:
            self._warn("there is no checkpoint yet to roll back to; training goes on")
            return
        self._rollbacks[found.step] = self._rollbacks.get(found.step, 0) + 1
        if self._rollbacks[found.step] > limit:
            raise Ending(
                ExitCode.BAD_NUMBERS,
                f"the loss jumped again after faults.max_rollbacks={limit} rollbacks to {found.path}",
            )
        self._warn("going back to %s, and on with the data after step %d", found.path, step)
        if self._world.is_main:
            history.record(self._config.run_dir, "rollback", step=step, to_step=found.step)
        raise _RollBack(found)

    def _validate(self, monitor: Monitor) -> bool:
        """Validate; return False, and report nothing, if a stop request comes before the end."""
        assert self._validation is not None
        with monitor.paused():
            try:
                losses_N = self._engine.evaluate(self._until_stopped(self._validation))
            except _Stopped:
                return False
            consumed = self._validation.take_consumed()
            if self._any(bool(consumed.faults)):
                self._tell_of_bad_shards(self._step, consumed)
            monitor.log_validation(self._step, losses_N)
        self._validation_is_due = False
        return True

    def _until_stopped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._watchdog.progress(f"validation after step {self._step}")
            if self._any(self._stop.reason is not None):
                raise _Stopped
            yield batch

    def _save(self, *, last: bool) -> None:
        """Begin a checkpoint; finish it too, if it is the last one or nothing may happen meanwhile."""
        self._watchdog.progress(f"saving after step {self._step}")
        self._settle()
        state = {
            "data": self._data.state_dict(),
            "health": self._health.state_dict(),
            "skipped_windows": self._skipped_windows,
            "validation_is_due": self._validation_is_due,
        }
        self._checkpoints.begin(self._step, engine=self._engine, state=state)
        if last or not self._config.checkpoint.asynchronous:
            self._settle(must=last)

    def _settle(self, *, must: bool = False) -> None:
        """Finish the last save; if it failed, go on by policy, or end the run if it `must` not fail."""
        failure = self._checkpoints.finish()
        if failure is None:
            return
        if self._any(self._is_taken_over):
            self._give_way()
        if must or self._config.faults.failed_save == "stop":
            raise Ending(
                ExitCode.FAILED_SAVE,
                f"a checkpoint could not be written ({failure}); the ones before it are whole",
            )
        self._warn("a checkpoint could not be written (%s); training goes on, the ones before it are whole", failure)

    @property
    def _is_taken_over(self) -> bool:
        return self._world.is_main and not self._lease.is_mine

    def _give_way(self) -> None:
        holder = from_main(self._lease.holder)
        raise Ending(
            ExitCode.TAKEN_OVER,
            f"{holder or 'another start'} has taken this run over and goes on with it; this one writes nothing more",
        )

    def _restore(self, found: Checkpoint) -> None:
        self._watchdog.progress(f"loading {found.path}")
        state = found.state
        self._health.load_state_dict(state["health"])
        self._skipped_windows = state["skipped_windows"]
        self._validation_is_due = owes_validation(found, self._config, world=self._world)
        self._engine.load(found.path / SHARDED, updates=found.step - self._health.skipped)
        self._step = found.step
        self._times.forget()
        logger.info("resumed from %s", found.path)

    def _stopped(self) -> ExitCode:
        reasons = enumerate(from_every_rank(self._stop.reason))
        why = ", ".join(f"{reason} on rank {rank}" for rank, reason in reasons if reason is not None)
        logger.info("stopped on request (%s) after step %d; the same command goes on from there", why, self._step)
        return ExitCode.STOPPED

    def _warn(self, message: str, *values: object) -> None:
        """Say what every rank knows once."""
        if self._world.is_main:
            logger.warning(message, *values)

    def _any(self, flag: bool) -> bool:
        _, (n_ranks,) = agree(torch.empty(0, device=self._device), flag)
        return n_ranks > 0


def owes_validation(found: Checkpoint, config: Config, *, world: World) -> bool:
    """Return whether the validation after a checkpoint's step is still to come; every rank must call it.

    A stop left it out, and no start since then has made up for it; and the run still has validations.
    """
    if not config.train.eval_every_steps or not found.state["validation_is_due"]:
        return False
    return from_main(world.is_main and not has_validation(config.run_dir, step=found.step))


class _RollBack(Exception):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(f"roll back to {checkpoint.path}")
        self.checkpoint = checkpoint


class _Stopped(Exception):
    pass
