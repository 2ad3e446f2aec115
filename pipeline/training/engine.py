"""The DeepSpeed engine around the model; the only module that imports deepspeed, and late.

The JSON that it is given comes filled with the recipe's numbers from `config.deepspeed.fill_deepspeed_config`.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.deepspeed import precision, zero_stage
from pipeline.config.schema import Config
from pipeline.data.batches import Batch
from pipeline.model.layers import TransformerBlock
from pipeline.model.network import Heads, MultiTokenModel, block_of, initialise, weight_shapes
from pipeline.model.partition import balanced_stages
from pipeline.monitoring.step_times import ForwardTimer
from pipeline.runtime.collectives import mean_over_ranks
from pipeline.runtime.ranges import GRADIENTS, OPTIMIZER, profiler_range
from pipeline.training.compilation import check_compiler, compile_layers
from pipeline.training.optim import parameter_groups
from pipeline.training.process_group import import_deepspeed
from pipeline.training.sequence import positions_of, share_sequences
from pipeline.training.stages import StageModule, pipeline_of
from pipeline.weights.checkpoint.state import HostCopies, Slice, load_state, state_of
from pipeline.weights.formats.start import fill
from pipeline.weights.formats.stored_model import StoredModel


class Engine:
    """A model that trains under DeepSpeed: steps, evaluation, learning rate, checkpoint parts. ZeRO of any stage."""

    def __init__(
        self,
        config: Config,
        deepspeed_config: dict[str, Any],
        *,
        device: torch.device,
        start: StoredModel | None = None,
    ) -> None:
        """Build and initialise the model on `device`, and hand it to DeepSpeed. Every rank must call it.

        Args:
            config: the run.
            deepspeed_config: filled by `fill_deepspeed_config`.
            device: from `process_group`.
            start: weights to begin with, which fit (`formats.start.check_start`); None begins with random ones.

        Raises:
            UserError: `train.compile` is set, and the CPU's compiler is missing.
        """
        deepspeed = import_deepspeed()
        if config.train.compile and device.type == "cpu":
            check_compiler()
        self._accumulation_steps = deepspeed_config["gradient_accumulation_steps"]
        self.grad_norms: dict[str, Tensor] = {}
        self._start = start
        self._device, self._clip = device, config.optim.clip
        self._positions = slice(None)  # of every sequence, that this rank works on
        self._shapes = weight_shapes(config.model)
        self._tensor_parallel_rank = torch.distributed.get_rank() % config.parallel.tensor_parallel_size
        module = self._build(config, deepspeed_config)
        if config.train.compile:
            compile_layers(module)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            model_parameters=parameter_groups(module, weight_decay=config.optim.weight_decay),
            config=deepspeed_config,
        )
        self._timer = ForwardTimer(self._timed(module, deepspeed_config), device=device)
        self.precision = precision(deepspeed_config)
        # Without ZeRO DeepSpeed clips fp32 gradients, but keeps no norm, and takes steps that are not finite.
        self._engine.clip_fp32_gradients = self._clip_whole_gradients

    def train_step(self, batches: Iterator[Batch], *, learning_rate: float, takes_grad_norms: bool = False) -> Tensor:
        """Take one optimizer step over the next micro batches; return losses (N,), fp32.

        Their mean over all ranks is the mean over the batch; a single rank's losses are its own part of it. Afterwards
        `grad_norms` has of each block, by its name, the L2 norm of each row of its weights' gradients before clipping,
        (R,), fp32, on the CPU, if it `takes_grad_norms`, and is empty else.
        """
        self._takes_grad_norms, self.grad_norms = takes_grad_norms, {}
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        return self._step(itertools.islice(batches, self._accumulation_steps))

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> Tensor:
        """Return the mean losses (N,) over all ranks' batches, fp32; every rank must bring as many."""
        self._engine.eval()
        try:
            return mean_over_ranks(self._losses(batches))
        finally:
            self._engine.train()

    @torch.no_grad()
    def predict(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the token that each head finds the likeliest, ids (B, T, N), and its probability, fp32; on the CPU.

        Every rank must call it, with the same tokens. Not for pipelines, nor where ranks share a sequence.
        """
        self._engine.eval()
        try:
            ids_BTN, probabilities_BTN = self._engine(tokens_BT.to(self._device))
            return ids_BTN.cpu(), probabilities_BTN.cpu()
        finally:
            self._engine.train()

    @property
    def gradient_norm(self) -> float:
        """The L2 norm of the last step's gradient before clipping; not finite if the step was skipped for it."""
        norm = self._engine.get_global_grad_norm()
        return float(self._whole_gradient_norm if norm is None else norm)

    def take_compute_s(self) -> float:
        """Return the seconds of this rank's own work since the last call, in which it waited for no other rank.

        It is a part of that work, but the same part on every rank; see `step_times`.
        """
        return self._timer.take_s()

    def state(self, *, copies: HostCopies | None = None) -> dict[str, Slice]:
        """Return this rank's parts of weights and optimizer state, for `save_state`; shared memory without `copies`."""
        return state_of(
            self._engine, shapes=self._shapes, tensor_parallel_rank=self._tensor_parallel_rank, copies=copies
        )

    def load(self, directory: Path, *, updates: int) -> None:
        """Restore what was saved after `updates` updates, from any way of sharding; every rank must call it."""
        load_state(
            self._engine, directory, step=updates, shapes=self._shapes, tensor_parallel_rank=self._tensor_parallel_rank
        )

    def _build(self, config: Config, deepspeed_config: dict[str, Any]) -> nn.Module:
        import deepspeed

        with self._device:
            model = MultiTokenModel(config.model, activation_checkpointing=config.train.activation_checkpointing)
        self._initialise(model, config)
        group_size = config.parallel.sequence_parallel_size
        if group_size > 1:
            self._positions = share_sequences(model, group_size=group_size, seq_len=config.data.seq_len)
        if zero_stage(deepspeed_config) == 3:
            # The loss op uses every head inside one forward: ZeRO-3 must gather the module whole around it.
            # And no hook of ZeRO's may lie inside a compiled layer.
            compiled = [TransformerBlock] if config.train.compile else []
            deepspeed.utils.set_z3_leaf_modules(model, [Heads, *compiled])
        return model

    def _initialise(self, model: MultiTokenModel, config: Config) -> None:
        initialise(model, seed=config.train.seed)
        if self._start is not None:
            fill(model, self._start, new_heads=config.model.new_heads)

    def _timed(self, module: nn.Module, deepspeed_config: dict[str, Any]) -> nn.Module:
        """Return the part of the module in whose forward no rank waits for others."""
        return module.get_submodule("heads") if zero_stage(deepspeed_config) == 3 else module

    def _step(self, batches: Iterator[Batch]) -> Tensor:
        losses: list[Tensor] = []
        for batch in batches:
            loss, losses_N = self._engine(*self._tensors(batch))
            with profiler_range(GRADIENTS):  # what of the backward belongs to no layer
                self._engine.backward(loss)
            if self._takes_grad_norms and self._engine.is_gradient_accumulation_boundary():
                self.grad_norms = self._norms_of_rows()
            with profiler_range(OPTIMIZER):
                self._engine.step()
            losses.append(losses_N)
        return torch.stack(losses).mean(dim=0)

    def _losses(self, batches: Iterable[Batch]) -> Tensor:
        losses = [self._engine(*self._tensors(batch))[1] for batch in batches]
        return torch.stack(losses).mean(dim=0)

    def _tensors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        mine = positions_of(batch, self._positions).to(self._device)
        return mine.tokens_BT, mine.targets_BTN

    @torch.no_grad()
    def _norms_of_rows(self) -> dict[str, Tensor]:
        """Return the norms of the rows of each block's gradients, between backward and step; every rank must call it.

        A weight of one dimension is one row, a matrix as many as it has outputs, or tokens.
        """
        import deepspeed

        norms: defaultdict[str, list[Tensor]] = defaultdict(list)
        for name, weight in self._engine.module.named_parameters():
            gradient = deepspeed.utils.safe_get_full_grad(weight)
            norms[block_of(name)].append(torch.atleast_1d(gradient.float().norm(dim=-1)).cpu())
        return {block: torch.cat(of_block) for block, of_block in norms.items()}

    def _clip_whole_gradients(self) -> None:
        parameters = [p for p in self._engine.module.parameters() if p.grad is not None]
        self._whole_gradient_norm = self._norm_over_stages(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
        if self._whole_gradient_norm.isfinite():
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip, self._whole_gradient_norm)
        else:
            for parameter in parameters:
                parameter.grad = None  # AdamW passes it over

    def _norm_over_stages(self, norm: Tensor) -> Tensor:
        return norm


class PipelineEngine(Engine):
    """The same over pipeline stages: DeepSpeed's 1F1B schedule, with ZeRO-0 or ZeRO-1."""

    def _build(self, config: Config, deepspeed_config: dict[str, Any]) -> nn.Module:
        self._n_stages, rank = config.parallel.pipeline_stages, torch.distributed.get_rank()
        index = rank % self._n_stages
        with self._device:
            self._stage = StageModule(
                config.model,
                balanced_stages(config)[index].share,
                activation_checkpointing=config.train.activation_checkpointing,
            )
        self._initialise(self._stage, config)
        n_replicas = torch.distributed.get_world_size() // self._n_stages
        with _silenced():
            return pipeline_of(self._stage, index=index, n_stages=self._n_stages, n_replicas=n_replicas)

    def _timed(self, module: nn.Module, deepspeed_config: dict[str, Any]) -> nn.Module:
        return self._stage

    def _step(self, batches: Iterator[Batch]) -> Tensor:
        # Read before the schedule begins, on every stage: loaders wait for each other where an epoch starts, and inside
        # the schedule stages wait for each other too.
        inputs = [_as_pipeline_input(batch) for batch in batches]
        self._engine.train_batch(iter(inputs))
        return self._collected_losses(self._accumulation_steps)

    def _losses(self, batches: Iterable[Batch]) -> Tensor:
        inputs = [_as_pipeline_input(batch) for batch in batches]
        self._engine.eval_batch(iter(inputs), num_micro_batches=len(inputs))
        return self._collected_losses(len(inputs))

    def _collected_losses(self, n_batches: int) -> Tensor:
        """Return this rank's part of the mean losses (N,): the last stage has all, times the stages, others none."""
        losses, self._stage.losses = self._stage.losses, []
        if not losses:
            return torch.zeros(self._stage.config.n_future_tokens, device=self._device)
        return torch.stack(losses).sum(dim=0) * (self._n_stages / n_batches)

    def _norm_over_stages(self, norm: Tensor) -> Tensor:
        return (mean_over_ranks(norm**2) * self._n_stages).sqrt()


def build_engine(
    config: Config, deepspeed_config: dict[str, Any], *, device: torch.device, start: StoredModel | None = None
) -> Engine:
    """Return the engine that the config asks for; see `Engine`. Every rank must call it."""
    engine = PipelineEngine if config.parallel.pipeline_stages > 1 else Engine
    return engine(config, deepspeed_config, device=device, start=start)


def _as_pipeline_input(batch: Batch) -> tuple[tuple[Tensor, Tensor], tuple[()]]:
    """What the first stage reads, and labels for the last one, which needs none."""
    return (batch.tokens_BT, batch.targets_BTN), ()


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep DeepSpeed from narrating on stdout and stderr."""
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
        yield
