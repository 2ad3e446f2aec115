"""From a config to an engine: build the model on the device, initialise its weights, hand it to DeepSpeed."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import nn

from common.command_line import UserError
from pipeline.config.deepspeed import zero_stage
from pipeline.config.schema import Config
from pipeline.model.layers import TransformerBlock
from pipeline.model.network import Heads, MultiTokenModel, initialise, weight_shapes
from pipeline.model.partition import balanced_stages
from pipeline.training.engine import Engine, PipelineEngine
from pipeline.training.process_group import import_deepspeed
from pipeline.training.sequence import share_sequences
from pipeline.training.stages import StageModule, pipeline_of
from pipeline.weights.formats.start import fill
from pipeline.weights.formats.stored_model import StoredModel


def build_engine(
    config: Config, deepspeed_config: dict[str, Any], *, device: torch.device, start: StoredModel | None = None
) -> Engine:
    """Return the engine that the config asks for. Every rank must call it.

    Args:
        config: the run.
        deepspeed_config: filled by `fill_deepspeed_config`.
        device: from `process_group`.
        start: weights to start from, which fit the model (`formats.start.check_start`); None starts from random ones.

    Raises:
        UserError: `train.compile` is set, and the CPU has no C++ compiler.
    """
    if config.train.compile and device.type == "cpu":
        check_compiler()
    build = _pipeline_engine if config.parallel.pipeline_stages > 1 else _whole_engine
    return build(config, deepspeed_config, device=device, start=start)


def _whole_engine(
    config: Config, deepspeed_config: dict[str, Any], *, device: torch.device, start: StoredModel | None
) -> Engine:
    with device:
        model = MultiTokenModel(config.model, activation_checkpointing=config.train.activation_checkpointing)
    _initialise(model, config, start=start)
    positions, group_size = slice(None), config.parallel.sequence_parallel_size
    if group_size > 1:
        positions = share_sequences(model, group_size=group_size, seq_len=config.data.seq_len)
    is_zero_3 = zero_stage(deepspeed_config) == 3
    if is_zero_3:
        # The loss op uses every head inside one forward, so ZeRO-3 must gather the heads as one unit.
        # And no hook of ZeRO-3 may lie inside a compiled layer.
        compiled = [TransformerBlock] if config.train.compile else []
        import_deepspeed().utils.set_z3_leaf_modules(model, [Heads, *compiled])
    if config.train.compile:
        compile_layers(model)
    return Engine(
        model,
        deepspeed_config,
        optim=config.optim,
        shapes=weight_shapes(config.model),
        device=device,
        timed=model.heads if is_zero_3 else None,
        positions=positions,
        tensor_parallel_rank=torch.distributed.get_rank() % config.parallel.tensor_parallel_size,
    )


def _pipeline_engine(
    config: Config, deepspeed_config: dict[str, Any], *, device: torch.device, start: StoredModel | None
) -> PipelineEngine:
    n_stages = config.parallel.pipeline_stages
    n_replicas, index = torch.distributed.get_world_size() // n_stages, torch.distributed.get_rank() % n_stages
    share = balanced_stages(config)[index].share
    with device:
        stage = StageModule(config.model, share, activation_checkpointing=config.train.activation_checkpointing)
    _initialise(stage, config, start=start)
    if config.train.compile:
        compile_layers(stage)
    with _silenced():
        pipeline = pipeline_of(stage, index=index, n_stages=n_stages, n_replicas=n_replicas)
    return PipelineEngine(
        pipeline,
        deepspeed_config,
        stage=stage,
        n_stages=n_stages,
        optim=config.optim,
        shapes=weight_shapes(config.model),
        device=device,
    )


def _initialise(model: MultiTokenModel, config: Config, *, start: StoredModel | None) -> None:
    initialise(model, seed=config.train.seed)
    if start is not None:
        fill(model, start, new_heads=config.model.new_heads)


@contextmanager
def _silenced() -> Iterator[None]:
    """Discard what DeepSpeed prints on stdout and stderr."""
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
        yield


def compile_layers(module: nn.Module) -> None:
    """Let torch.compile fuse each transformer layer.

    It compiles the layers' forwards and not the modules, because that would compile ZeRO-3's hooks too. All layers
    share one graph; `fullgraph` raises an error where a layer would need several.
    """
    for layer in module.modules():
        if isinstance(layer, TransformerBlock):
            layer.forward = torch.compile(layer.forward, fullgraph=True, dynamic=False)  # type: ignore[method-assign]


def check_compiler() -> None:
    """Check that torch.compile finds the C++ compiler that it needs on the CPU.

    Raises:
        UserError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise UserError(f"train.compile=true needs a C++ compiler on the CPU: {error}; install g++") from error
    warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex")
