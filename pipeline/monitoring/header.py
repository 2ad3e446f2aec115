"""The lines that open a run: model, layout, batch arithmetic, cost, budget, and the stages of a pipeline."""

import shlex

import torch

from common.wording import counted
from pipeline.config.deepspeed import precision, zero_stage
from pipeline.config.inputs import Inputs
from pipeline.config.model import ModelConfig
from pipeline.model.formulas import parameter_count, training_flops_per_token
from pipeline.model.partition import describe
from pipeline.monitoring.environment import device_name
from pipeline.monitoring.sinks import dashboard
from pipeline.runtime.devices import peak_flops
from pipeline.runtime.world import World


def header(inputs: Inputs, *, world: World, device: torch.device) -> str:
    """Return the lines that open a run, for rank 0 to log."""
    config = inputs.config
    model, train = config.model, config.train
    micro_batches = config.accumulation_steps(inputs.data_ranks)
    order = "" if model.head_order == "parallel" else f", {model.head_order}"
    is_pipeline = config.parallel.pipeline_stages > 1
    stages = "\n" + describe(config, micro_batches=micro_batches) if is_pipeline else ""
    return (
        f"model    {parameter_count(model) / 1e6:,.1f}M parameters: {counted(model.n_trunk_layers, 'trunk layer')} and "
        f"{_heads(model)}{order}, dim {model.dim}, vocabulary {model.vocab_size:,}\n"
        f"layout   {_layout(inputs, world=world, device=device)}\n"
        f"batch    {counted(train.batch_tokens, 'token')} = {counted(inputs.data_ranks, 'replica')} x "
        f"{counted(micro_batches, 'micro batch', plural='micro batches')} x "
        f"{counted(train.micro_batch_size, 'sequence')} x {counted(config.data.seq_len, 'token')}\n"
        f"cost     {_cost(inputs, world=world, device=device)}\n"
        f"budget   {counted(train.total_tokens, 'token')} = {counted(config.total_steps, 'step')}\n"
        f"watch    tensorboard --logdir {shlex.quote(str(config.run_dir / 'tensorboard'))}\n"
        f"         the losses are at {dashboard.LOSSES}{stages}"
    )


def _heads(model: ModelConfig) -> str:
    made_of = {"transformer": "one layer", "linear": "one matrix"}[model.head_type]
    each = "" if model.n_future_tokens == 1 else " each"
    return f"{counted(model.n_future_tokens, 'head')} of {made_of}{each}"


def _layout(inputs: Inputs, *, world: World, device: torch.device) -> str:
    parallel = inputs.config.parallel
    layout = f"{counted(world.world_size, 'rank')} on {device.type}, ZeRO-{zero_stage(inputs.deepspeed_config)}"
    if parallel.ranks_per_replica == 1:
        return layout
    if parallel.pipeline_stages > 1:
        members = "pipeline stages"
    else:
        members = "sequence-parallel ranks" if parallel.sequence_parallel_size > 1 else "tensor-parallel ranks"
    return f"{layout}, {counted(inputs.data_ranks, 'replica')} of {parallel.ranks_per_replica} {members}"


def _cost(inputs: Inputs, *, world: World, device: torch.device) -> str:
    """Return the FLOPs of one optimizer step and, if the device's peak is known, the shortest time it can take."""
    config = inputs.config
    peak = peak_flops(device_name(device), precision=precision(inputs.deepspeed_config))
    per_token = training_flops_per_token(config.model, seq_len=config.data.seq_len)
    flops = per_token * config.train.batch_tokens
    seconds = "" if peak is None else f"; at least {flops / (peak * world.world_size):.3g} s at the devices' peak"
    return f"{flops:.3g} FLOPs per step = {per_token:.3g} per token{seconds}"
