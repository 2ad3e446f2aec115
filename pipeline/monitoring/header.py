"""The lines that open a run: model, layout, batch arithmetic, cost, budget, and the stages of a pipeline."""

import torch

from pipeline.config.inputs import Inputs, precision, zero_stage
from pipeline.model.formulas import parameter_count, training_flops_per_token
from pipeline.model.partition import describe
from pipeline.monitoring.environment import device_name
from pipeline.runtime.devices import peak_flops
from pipeline.runtime.world import World


def header(inputs: Inputs, *, world: World, device: torch.device) -> str:
    """Return the lines that open a run: model, layout, batch arithmetic, and the stages of a pipeline."""
    config, parallel = inputs.config, inputs.config.parallel
    model, train, data = config.model, config.train, config.data
    accumulation_steps = config.accumulation_steps(inputs.data_ranks)
    made_of = {"transformer": "one layer", "linear": "one matrix"}[model.head_type]
    heads = f"{model.n_future_tokens} {'head' if model.n_future_tokens == 1 else 'heads'} of {made_of}"
    order = "" if model.head_order == "parallel" else f", {model.head_order}"
    layout = f"{world.world_size} ranks on {device.type}, ZeRO-{zero_stage(inputs.deepspeed_config)}"
    if parallel.ranks_per_replica > 1:
        shared = "pipeline stages" if parallel.pipeline_stages > 1 else "ranks that share each sequence"
        layout += f", {inputs.data_ranks} replicas of {parallel.ranks_per_replica} {shared}"
    stages = "\n" + describe(config, micro_batches=accumulation_steps) if parallel.pipeline_stages > 1 else ""
    return (
        f"model    {parameter_count(model) / 1e6:,.1f}M parameters: {model.n_trunk_layers} trunk layers and "
        f"{heads}{order}, dim {model.dim}, vocabulary {model.vocab_size:,}\n"
        f"layout   {layout}\n"
        f"batch    {train.batch_tokens:,} tokens = {inputs.data_ranks} replicas x {accumulation_steps} micro batches x "
        f"{train.micro_batch_size} sequences x {data.seq_len} tokens\n"
        f"cost     {_cost(inputs, world=world, device=device)}\n"
        f"budget   {train.total_tokens:,} tokens = {config.total_steps:,} steps\n"
        f"watch    tensorboard --logdir {config.run_dir / 'tensorboard'}{stages}"
    )


def _cost(inputs: Inputs, *, world: World, device: torch.device) -> str:
    """Say what one optimizer step costs, and how long it takes at least."""
    config = inputs.config
    peak = peak_flops(device_name(device), precision=precision(inputs.deepspeed_config))
    per_token = training_flops_per_token(config.model, seq_len=config.data.seq_len)
    flops = per_token * config.train.batch_tokens
    seconds = "" if peak is None else f", {flops / (peak * world.world_size):.3g} s at the peak of the devices"
    return f"{flops:.3g} FLOPs a step = {per_token:.3g} a token{seconds}"
