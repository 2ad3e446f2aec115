"""DeepSpeed around a model: `Engine` for a whole model on every rank, `PipelineEngine` for pipeline stages.

`build.build_engine` builds the model and the engine that a config asks for. The DeepSpeed JSON has been filled with the
recipe's numbers by `config.deepspeed.fill_deepspeed_config`.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.deepspeed import precision
from pipeline.config.schema import OptimConfig
from pipeline.data.batches import Batch
from pipeline.model.network import block_of
from pipeline.monitoring.step_times import ForwardTimer
from pipeline.runtime.collectives import mean_over_ranks
from pipeline.runtime.ranges import GRADIENTS, OPTIMIZER, profiler_range
from pipeline.training.optim import parameter_groups
from pipeline.training.process_group import import_deepspeed
from pipeline.training.sequence import positions_of
from pipeline.training.stages import StageModule
from pipeline.weights.checkpoint.state import HostCopies, Shapes, Slice, load_state, state_of


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """An optimizer step as this rank took it."""

    losses_N: Tensor
    """This rank's losses (N,), fp32. Their mean over all ranks is the mean over the batch."""
    gradient_norm: float
    """L2 norm of the whole gradient before clipping; not finite if the step was skipped because of it."""
    grad_norms: dict[str, Tensor]
    """For each block, the L2 norm of each row of its weights' gradients before clipping, shape (R,), fp32, on the CPU.

    Empty if they were not asked for.
    """
    compute_s: float
    """Seconds of this rank's timed forward, in which it waits for no other rank (`monitoring/step_times.py`)."""


class Engine:
    """Trains a model under DeepSpeed, with ZeRO of any stage. Every rank must call each method."""

    def __init__(
        self,
        module: nn.Module,
        deepspeed_config: dict[str, Any],
        *,
        optim: OptimConfig,
        shapes: Shapes,
        device: torch.device,
        timed: nn.Module | None = None,
        positions: slice = slice(None),
        tensor_parallel_rank: int = 0,
    ) -> None:
        """Hand an initialised model to DeepSpeed.

        Args:
            module: the model, or this rank's part of it, on `device`.
            deepspeed_config: filled by `fill_deepspeed_config`.
            optim: weight decay and the gradient norm to clip to.
            shapes: of the whole model's weights, by name.
            device: from `process_group`.
            timed: the part of the module in whose forward no rank waits for others; None if that is all of it.
            positions: the positions of every sequence that this rank works on.
            tensor_parallel_rank: this rank's place among those that share each layer.
        """
        self._device, self._clip, self._positions = device, optim.clip, positions
        self._shapes, self._tensor_parallel_rank = shapes, tensor_parallel_rank
        self._accumulation_steps = deepspeed_config["gradient_accumulation_steps"]
        self._own_gradient_norm = torch.tensor(math.nan)  # where DeepSpeed keeps none
        self.precision = precision(deepspeed_config)
        self._engine, *_ = import_deepspeed().initialize(
            model=module,
            model_parameters=parameter_groups(module, weight_decay=optim.weight_decay),
            config=deepspeed_config,
        )
        self._timer = ForwardTimer(module if timed is None else timed, device=device)
        # Without ZeRO, DeepSpeed clips fp32 gradients, but keeps no norm and takes steps that are not finite.
        self._engine.clip_fp32_gradients = self._clip_whole_gradients

    def train_step(
        self, batches: Iterator[Batch], *, learning_rate: float, takes_grad_norms: bool = False
    ) -> StepResult:
        """Take one optimizer step over the next micro batches, and return what this rank saw of it.

        Args:
            batches: yields this rank's micro batches, at least one step's worth.
            learning_rate: of this step.
            takes_grad_norms: also measure the gradients' norms row by row. Not for pipelines or tensor parallelism.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        step_batches = itertools.islice(batches, self._accumulation_steps)
        losses_N, grad_norms = self._step(step_batches, takes_grad_norms=takes_grad_norms)
        norm = self._engine.get_global_grad_norm()
        return StepResult(
            losses_N=losses_N,
            gradient_norm=float(self._own_gradient_norm if norm is None else norm),
            grad_norms=grad_norms,
            compute_s=self._timer.take_s(),
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> Tensor:
        """Return the mean losses (N,) over all ranks' batches, fp32; every rank must bring equally many."""
        self._engine.eval()
        try:
            return mean_over_ranks(self._losses(batches))
        finally:
            self._engine.train()

    @torch.no_grad()
    def predict(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return each head's most likely tokens, ids (B, T, N), and their probabilities (B, T, N), fp32, on the CPU.

        Every rank must bring the same tokens. Not for pipelines, nor where ranks share a sequence.
        """
        self._engine.eval()
        try:
            ids_BTN, probabilities_BTN = self._engine(tokens_BT.to(self._device))
            return ids_BTN.cpu(), probabilities_BTN.cpu()
        finally:
            self._engine.train()

    def state(self, *, copies: HostCopies | None = None) -> dict[str, Slice]:
        """Return this rank's slices of weights and optimizer state, for `save_state`.

        Without `copies` the slices share the engine's memory, and change with it.
        """
        return state_of(
            self._engine, shapes=self._shapes, tensor_parallel_rank=self._tensor_parallel_rank, copies=copies
        )

    def load(self, directory: Path, *, updates: int) -> None:
        """Restore weights and optimizer state that were saved after `updates` updates, under any sharding."""
        load_state(
            self._engine, directory, step=updates, shapes=self._shapes, tensor_parallel_rank=self._tensor_parallel_rank
        )

    def _step(self, batches: Iterator[Batch], *, takes_grad_norms: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this rank's losses (N,) and, if asked for, the norms of each block's gradients by row."""
        losses: list[Tensor] = []
        grad_norms: dict[str, Tensor] = {}
        for batch in batches:
            loss, losses_N = self._engine(*self._tensors(batch))
            with profiler_range(GRADIENTS):  # the part of the backward that belongs to no layer
                self._engine.backward(loss)
            if takes_grad_norms and self._engine.is_gradient_accumulation_boundary():
                grad_norms = self._norms_of_rows()
            with profiler_range(OPTIMIZER):
                self._engine.step()
            losses.append(losses_N)
        return torch.stack(losses).mean(dim=0), grad_norms

    def _losses(self, batches: Iterable[Batch]) -> Tensor:
        losses = [self._engine(*self._tensors(batch))[1] for batch in batches]
        return torch.stack(losses).mean(dim=0)

    def _tensors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        mine = positions_of(batch, self._positions).to(self._device)
        return mine.tokens_BT, mine.targets_BTN

    @torch.no_grad()
    def _norms_of_rows(self) -> dict[str, Tensor]:
        """Return the norm of each row of each block's gradients, between backward and step; every rank must call it.

        A one-dimensional weight is one row. A matrix has one row for each output, or for each token.
        """
        import deepspeed

        norms: defaultdict[str, list[Tensor]] = defaultdict(list)
        for name, weight in self._engine.module.named_parameters():
            gradient = deepspeed.utils.safe_get_full_grad(weight)
            norms[block_of(name)].append(torch.atleast_1d(gradient.float().norm(dim=-1)).cpu())
        return {block: torch.cat(of_block) for block, of_block in norms.items()}

    def _clip_whole_gradients(self) -> None:
        parameters = [p for p in self._engine.module.parameters() if p.grad is not None]
        norm = self._norm_over_stages(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
        self._own_gradient_norm = norm
        if norm.isfinite():
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip, norm)
        else:
            for parameter in parameters:
                parameter.grad = None  # AdamW skips it

    def _norm_over_stages(self, norm: Tensor) -> Tensor:
        return norm


class PipelineEngine(Engine):
    """Trains pipeline stages with DeepSpeed's 1F1B schedule, under ZeRO-0 or ZeRO-1."""

    def __init__(
        self,
        pipeline: nn.Module,
        deepspeed_config: dict[str, Any],
        *,
        stage: StageModule,
        n_stages: int,
        optim: OptimConfig,
        shapes: Shapes,
        device: torch.device,
    ) -> None:
        """Hand a pipeline to DeepSpeed; see `Engine`.

        Args:
            pipeline: from `stages.pipeline_of`.
            deepspeed_config: filled by `fill_deepspeed_config`.
            stage: this rank's stage of the pipeline.
            n_stages: stages of the pipeline.
            optim: weight decay and the gradient norm to clip to.
            shapes: of the whole model's weights, by name.
            device: from `process_group`.
        """
        self._stage, self._n_stages = stage, n_stages
        super().__init__(pipeline, deepspeed_config, optim=optim, shapes=shapes, device=device, timed=stage)

    def _step(self, batches: Iterator[Batch], *, takes_grad_norms: bool) -> tuple[Tensor, dict[str, Tensor]]:
        assert not takes_grad_norms, "no rank has whole gradients, see `config.ranks`"
        # Every stage reads its batches before the schedule begins: loaders wait for each other at the start of an
        # epoch, and stages wait for each other inside the schedule.
        inputs = [_as_pipeline_input(batch) for batch in batches]
        self._engine.train_batch(iter(inputs))
        return self._collected_losses(self._accumulation_steps), {}

    def _losses(self, batches: Iterable[Batch]) -> Tensor:
        inputs = [_as_pipeline_input(batch) for batch in batches]
        self._engine.eval_batch(iter(inputs), num_micro_batches=len(inputs))
        return self._collected_losses(len(inputs))

    def _collected_losses(self, n_batches: int) -> Tensor:
        """Return this rank's part of the mean losses (N,): `n_stages` times the mean on the last stage, else zeros."""
        losses, self._stage.losses = self._stage.losses, []
        if not losses:
            return torch.zeros(self._stage.config.n_future_tokens, device=self._device)
        return torch.stack(losses).sum(dim=0) * (self._n_stages / n_batches)

    def _norm_over_stages(self, norm: Tensor) -> Tensor:
        return (mean_over_ranks(norm**2) * self._n_stages).sqrt()


def _as_pipeline_input(batch: Batch) -> tuple[tuple[Tensor, Tensor], tuple[()]]:
    """Return the first stage's input, and the labels of the last stage, which needs none."""
    return (batch.tokens_BT, batch.targets_BTN), ()
