"""The DeepSpeed engine around the model; the only module that imports deepspeed, and late.

The JSON that it is given comes filled with the recipe's numbers from `inputs.fill_deepspeed_config`.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.command_line import UserError
from pipeline.config import Config
from pipeline.data import Batch
from pipeline.distributed import World, mean_over_ranks
from pipeline.inputs import zero_stage
from pipeline.model import Heads, MultiTokenModel, initialise
from pipeline.optim import parameter_groups

_DEEPSPEED_TAG = "deepspeed"


def initialise_distributed(world: World) -> torch.device:
    """Join the process group and return this rank's device: its GPU, or the CPU with gloo.

    Raises:
        UserError: the launcher's rendezvous port is taken, for instance by another run on this machine.
    """
    deepspeed = _import_deepspeed()
    accelerator = deepspeed.accelerator.get_accelerator()
    if accelerator.is_available() and accelerator.device_name() != "cpu":
        accelerator.set_device(world.local_rank)
        device = torch.device(accelerator.device_name(world.local_rank))
    else:
        device = torch.device("cpu")
    try:
        deepspeed.init_distributed(dist_backend="gloo" if device.type == "cpu" else None, verbose=False)
    except torch.distributed.DistNetworkError as error:
        port = os.environ.get("MASTER_PORT")
        raise UserError(
            f"the ranks cannot meet on port {port} ({' '.join(str(error).split())[:160]}); if another run uses it,"
            " give the launcher another --master_port"
        ) from error
    return device


class Engine:
    """A model that trains under DeepSpeed: steps, evaluation, learning rate, checkpoint parts."""

    def __init__(self, config: Config, deepspeed_config: dict[str, Any], *, device: torch.device) -> None:
        """Build and initialise the model on `device`, and hand it to DeepSpeed. Every rank must call it.

        Args:
            config: the run.
            deepspeed_config: filled by `fill_deepspeed_config`.
            device: from `initialise_distributed`.
        """
        deepspeed = _import_deepspeed()
        with device:
            model = MultiTokenModel(config.model, activation_checkpointing=config.train.activation_checkpointing)
        initialise(model, seed=config.train.seed)
        if zero_stage(deepspeed_config) == 3:
            # The loss op uses every head inside one forward: ZeRO-3 must gather the module whole around it.
            deepspeed.utils.set_z3_leaf_modules(model, [Heads])
        self._engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model, weight_decay=config.optim.weight_decay),
            config=deepspeed_config,
        )
        self._accumulation_steps = deepspeed_config["gradient_accumulation_steps"]
        self._device = device

    def train_step(self, batches: Iterator[Batch], *, learning_rate: float) -> Tensor:
        """Take one optimizer step over the next micro batches; return this rank's mean losses (N,), fp32."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        sums: list[Tensor] = []
        for _ in range(self._accumulation_steps):
            batch = next(batches).to(self._device)
            loss, losses_N = self._engine(batch.tokens_BT, batch.targets_BTN)
            self._engine.backward(loss)
            self._measure_gradient_norm()
            self._engine.step()
            sums.append(losses_N)
        return torch.stack(sums).mean(dim=0)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> Tensor:
        """Return the mean losses (N,) over all ranks' batches, fp32; every rank must bring as many."""
        self._engine.eval()
        losses = [self._engine(*_tensors(batch.to(self._device)))[1] for batch in batches]
        self._engine.train()
        return mean_over_ranks(torch.stack(losses).mean(dim=0))

    @property
    def gradient_norm(self) -> float:
        """The L2 norm of the last step's gradient before clipping."""
        norm = self._engine.get_global_grad_norm()
        return float(self._unsharded_gradient_norm if norm is None else norm)

    def save(self, directory: Path) -> None:
        """Write model and optimizer into `directory`, with DeepSpeed's own `latest` file; every rank must call it."""
        self._engine.save_checkpoint(str(directory), tag=_DEEPSPEED_TAG)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote; every rank must call it."""
        self._engine.load_checkpoint(str(directory), tag=_DEEPSPEED_TAG)

    def _measure_gradient_norm(self) -> None:
        # Without ZeRO and in fp32 DeepSpeed clips, but keeps no norm. Its gradients are whole and already
        # averaged over the ranks here.
        if self._engine.is_gradient_accumulation_boundary() and not hasattr(
            self._engine.optimizer, "_global_grad_norm"
        ):
            gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
            self._unsharded_gradient_norm = torch.nn.utils.get_total_norm(gradients)


def consolidated_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Return the whole model's fp32 weights, on the CPU, from a checkpoint folder of any ZeRO stage."""
    _import_deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    folder = checkpoint / _DEEPSPEED_TAG
    if any(folder.glob("*_optim_states.pt")):
        with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):  # it narrates
            return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=_DEEPSPEED_TAG)
    states = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
    return {name: weight.float() for name, weight in states["module"].items()}


def _tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.tokens_BT, batch.targets_BTN


def _import_deepspeed() -> Any:
    """Import deepspeed, which takes seconds, when it is first needed."""
    import deepspeed
    import deepspeed.accelerator

    # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 deprecates, once per rank and run.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    return deepspeed
