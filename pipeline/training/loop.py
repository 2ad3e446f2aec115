"""The training loop: take steps, and between them report, validate, save checkpoints and handle faults.

After each step the ranks agree, in one collective (`agreement.py`), on whatever changes the course of the run: a stop
request to any rank, a shard that any rank found damaged, a checkpoint that any rank could not write. Losses that are
not finite or that jump need no agreement, because every rank sees the same numbers (`health.py`).
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.data.batches import Batch, TrainingData, ValidationData
from pipeline.data.consumed import Consumed
from pipeline.data.sample_record import EpochSamples
from pipeline.monitoring.monitor import Monitor, is_due
from pipeline.monitoring.previews import Previews
from pipeline.monitoring.sinks.metrics_file import has_validation
from pipeline.monitoring.step_times import StepTimes
from pipeline.runtime import history
from pipeline.runtime.collectives import from_every_rank, from_main, on_any_rank
from pipeline.runtime.lease import Lease
from pipeline.runtime.logs import logger
from pipeline.runtime.stop import Ending, ExitCode, StopRequest
from pipeline.runtime.watchdog import Watchdog
from pipeline.runtime.world import World
from pipeline.training.agreement import StepCounts, agree
from pipeline.training.engine import Engine, StepResult
from pipeline.training.health import Health, Verdict, record_bad_step
from pipeline.training.optim import learning_rate
from pipeline.training.recorders import Recorders, open_recorders
from pipeline.weights.checkpoint.folder import SHARDED, Checkpoint, CheckpointFolder


class Trainer:
    """A run in progress. Every rank must call each method."""

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
        self._step = 0  # the last finished step
        self._is_stopping = False
        self._skipped_windows = 0
        self._validation_is_due = False
        self._rollbacks: dict[int, int] = {}  # number of rollbacks to each checkpoint, by its step

    def train(self, found: Checkpoint | None) -> ExitCode:
        """Train from a checkpoint, or from the beginning if there is none, to the last step or a stop request.

        Raises:
            Ending: the run cannot go on.
        """
        if found is not None:
            if found.state["data"] is not None:  # None for other data than the checkpoint's
                self._data.load_state_dict(found.state["data"])
            self._restore(found)
        while True:
            with open_recorders(
                self._config, world=self._world, device=self._device, precision=self._engine.precision, step=self._step
            ) as recorders:
                rollback_to = self._train(recorders)
            if rollback_to is None:
                return self._stopped() if self._is_stopping else ExitCode.FINISHED
            self._restore(rollback_to)  # the data does not go back: it continues after the bad step

    def _train(self, recorders: Recorders) -> Checkpoint | None:
        """Train until the last step, a stop request or a rollback; return the checkpoint to roll back to, if any."""
        config, monitor = self._config, recorders.monitor
        self._is_stopping = self._any(self._stop.reason is not None)
        if self._validation_is_due and not self._is_stopping:
            self._validate(monitor)
        while self._step < config.total_steps and not self._is_stopping:
            step = self._step + 1
            self._watchdog.progress(f"step {step}")
            rate = learning_rate(step, optim=config.optim, total_steps=config.total_steps)
            takes_norms = is_due(step, every_steps=config.log.grad_norms_every_steps)
            with recorders.profile.step(step), self._times.step():
                result = self._engine.train_step(self._data, learning_rate=rate, takes_grad_norms=takes_norms)
                consumed = self._data.take_consumed()
                losses_N = self._agree(step, result, consumed)
            rollback_to = self._judge(step, losses_N, gradient_norm=result.gradient_norm, samples=consumed.samples)
            if rollback_to is not None:
                return rollback_to
            recorders.samples.write(step, consumed.samples)
            self._step, is_last = step, step == config.total_steps

            if is_due(step, every_steps=config.log.every_steps) or is_last or self._is_stopping:
                monitor.log_step(
                    step, losses_N=losses_N, learning_rate=rate, gradient_norm=result.gradient_norm,
                    skipped_steps=self._health.skipped, skipped_windows=self._skipped_windows,
                    times=self._times.take_scalars(),
                )  # fmt: skip
            monitor.log_grad_norms(step, result.grad_norms)
            self._previews.write(step, predict=self._engine.predict, monitor=monitor)
            if config.train.eval_every_steps and (is_due(step, every_steps=config.train.eval_every_steps) or is_last):
                self._validation_is_due = True
                if not self._is_stopping:
                    self._validate(monitor)
            if is_due(step, every_steps=config.checkpoint.every_steps) or is_last or self._is_stopping:
                with monitor.paused():
                    self._save(last=is_last or self._is_stopping)
        return None

    def _agree(self, step: int, result: StepResult, consumed: Consumed) -> Tensor:
        """Return the mean losses (N,) over all ranks, and act on what any rank reports about the step.

        Raises:
            Ending: a rank reports something that ends the run.
        """
        own = StepCounts(
            stop_requests=self._stop.reason is not None,
            faults=len(consumed.faults),
            skipped_windows=consumed.skipped_windows,
            failed_saves=self._config.faults.failed_save == "stop" and self._checkpoints.has_failed,
            takeovers=self._is_taken_over,
            times_s=self._times.contribution(wait_s=self._data.wait_s, compute_s=result.compute_s),
        )
        losses_N, total = agree(result.losses_N, own)
        self._times.observe(total.times_s)
        if total.takeovers:
            self._give_way()
        if total.faults:
            self._handle_damaged_data(step, consumed)
        self._skipped_windows += round(total.skipped_windows) // self._config.parallel.ranks_per_replica
        if total.failed_saves:
            self._settle(must=True)
        self._is_stopping = total.stop_requests > 0
        return losses_N

    def _handle_damaged_data(self, step: int, consumed: Consumed) -> None:
        """Warn about the damaged shards that any rank found.

        Raises:
            Ending: the run is to stop for damaged shards, or no intact shard is left.
        """
        of_ranks = from_every_rank((consumed.faults, consumed.nothing_left))
        of_all_ranks = sorted({fault for faults, _ in of_ranks for fault in faults})
        if self._config.faults.bad_shard == "stop" or any(nothing_left for _, nothing_left in of_ranks):
            raise Ending(
                ExitCode.BAD_NUMBERS,
                f"step {step} read damaged data: {'; '.join(of_all_ranks)}. Repair the shards, or access to them, and"
                " start again, or set faults.bad_shard=skip; nothing of this step was saved",
            )
        for fault in of_all_ranks:
            self._warn("step %d read damaged data: %s; substituting windows from the next intact shard", step, fault)

    def _judge(
        self, step: int, losses_N: Tensor, *, gradient_norm: float, samples: list[EpochSamples]
    ) -> Checkpoint | None:
        """Judge the step by its numbers, and record a bad step with its samples.

        Returns the checkpoint to roll back to; None if the run does not roll back.

        Raises:
            Ending: there were too many bad steps.
        """
        loss = losses_N.sum().item()
        verdict = self._health.observe(loss=loss, gradient_norm=gradient_norm)
        if verdict is Verdict.GOOD:
            return None
        of_all_ranks = [sample for of_rank in from_every_rank(samples) for sample in of_rank]
        record = self._config.run_dir / "bad_steps.jsonl"
        if self._world.is_main:
            try:
                record_bad_step(
                    record, step=step, loss=loss, gradient_norm=gradient_norm, verdict=verdict, samples=of_all_ranks
                )
            except OSError as error:
                self._warn("%s cannot be written: %s", record, error.strerror)
        if verdict is Verdict.SPIKE:
            self._warn("step %d: the loss jumped to %.3f; its samples are in %s", step, loss, record)
            return self._rollback_target(step) if self._config.faults.spike == "roll_back" else None
        self._warn("step %d was skipped: loss %s, gradient norm %s; samples in %s", step, loss, gradient_norm, record)
        if verdict is Verdict.TOO_MANY_SKIPPED:
            raise Ending(
                ExitCode.BAD_NUMBERS,
                f"more than faults.max_skipped_steps={self._config.faults.max_skipped_steps} steps in a row were not"
                f" finite; their samples are in {record}",
            )
        return None

    def _rollback_target(self, step: int) -> Checkpoint | None:
        """Return the newest checkpoint, or None if there is none yet.

        Raises:
            Ending: the run has rolled back to this checkpoint too often.
        """
        self._settle()
        found, limit = self._checkpoints.newest(), self._config.faults.max_rollbacks
        if found is None:
            self._warn("there is no checkpoint yet to roll back to; training goes on")
            return None
        self._rollbacks[found.step] = self._rollbacks.get(found.step, 0) + 1
        if self._rollbacks[found.step] > limit:
            raise Ending(
                ExitCode.BAD_NUMBERS,
                f"the loss jumped again after faults.max_rollbacks={limit} rollbacks to {found.path}",
            )
        self._warn("rolling back to %s, and continuing with the data after step %d", found.path, step)
        if self._world.is_main:
            history.record(self._config.run_dir, "rollback", step=step, to_step=found.step)
        return found

    def _validate(self, monitor: Monitor) -> None:
        """Validate and report the losses. A stop request ends the validation early; it then stays due."""
        assert self._validation is not None
        with monitor.paused():
            try:
                losses_N = self._engine.evaluate(self._until_stopped(self._validation))
            except _Stopped:
                self._is_stopping = True
                return
            consumed = self._validation.take_consumed()
            if self._any(bool(consumed.faults)):
                self._handle_damaged_data(self._step, consumed)
            monitor.log_validation(self._step, losses_N)
        self._validation_is_due = False

    def _until_stopped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            _Stopped: a rank was asked to stop.
        """
        for batch in batches:
            self._watchdog.progress(f"validation after step {self._step}")
            if self._any(self._stop.reason is not None):
                raise _Stopped
            yield batch

    def _save(self, *, last: bool) -> None:
        """Begin a checkpoint; also wait for it if it is the last one or saving is not asynchronous."""
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
        """Wait for the last save.

        Raises:
            Ending: it failed, and the policy is to stop or it `must` not fail; or another start has the lease.
        """
        failure = self._checkpoints.finish()
        if failure is None:
            return
        if self._any(self._is_taken_over):
            self._give_way()
        if must or self._config.faults.failed_save == "stop":
            raise Ending(
                ExitCode.FAILED_SAVE,
                f"a checkpoint could not be written: {failure}; earlier checkpoints are intact",
            )
        self._warn("a checkpoint could not be written: %s; training goes on; earlier checkpoints are intact", failure)

    @property
    def _is_taken_over(self) -> bool:
        return self._world.is_main and self._lease.is_taken_over

    def _give_way(self) -> None:
        """End the run, because another start has its lease."""
        holder = from_main(self._lease.holder)
        raise Ending(
            ExitCode.TAKEN_OVER,
            f"{holder or 'another start'} has taken this run over and continues it; this start writes nothing more",
        )

    def _restore(self, found: Checkpoint) -> None:
        """Load everything but the position in the data from a checkpoint."""
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
        """Log why the run stops, and return the exit code."""
        reasons = enumerate(from_every_rank(self._stop.reason))
        why = ", ".join(f"{reason} on rank {rank}" for rank, reason in reasons if reason is not None)
        logger.info("stopped on request (%s) after step %d; the same command continues from there", why, self._step)
        return ExitCode.STOPPED

    def _warn(self, message: str, *values: object) -> None:
        """Log a warning that all ranks share, on rank 0 only."""
        if self._world.is_main:
            logger.warning(message, *values)

    def _any(self, flag: bool) -> bool:
        return on_any_rank(flag, device=self._device)


def owes_validation(found: Checkpoint, config: Config, *, world: World) -> bool:
    """Return whether the validation after a checkpoint's step is still due; every rank must call it.

    It is due if a stop request prevented it, no later start has caught up on it, and the run still validates.
    """
    if not config.train.eval_every_steps or not found.state["validation_is_due"]:
        return False
    return from_main(world.is_main and not has_validation(config.run_dir, step=found.step))


class _Stopped(Exception):
    """A stop request came during validation."""
