"""The DeepSpeed JSON: reading it, filling in the recipe's values, and refusing unsupported settings.

One owner per value. Batch sizes, accumulation, clipping and the optimizer's hyperparameters belong to the recipe; they
are "auto" or absent in the JSON and are filled in here. ZeRO stage, buckets, offload and precision belong to the JSON.
"""

import json
from pathlib import Path
from typing import Any, Literal

from common.command_line import UserError
from pipeline.config.schema import Config, ParallelConfig

AUTO = "auto"
Precision = Literal["bf16", "fp32"]


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """Return the DeepSpeed JSON at `path`.

    Raises:
        UserError: the file cannot be read, is not a JSON object, or one of its sections is not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"DeepSpeed config {path} cannot be read ({error}); see ds_configs/") from error
    except json.JSONDecodeError as error:
        raise UserError(f"DeepSpeed config {path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"DeepSpeed config {path} must be a JSON object, not {type(values).__name__}")
    for section in ("optimizer", "bf16", "bfloat16", "fp16", "zero_optimization", "data_types"):
        if not isinstance(values.get(section, {}), dict):
            raise UserError(f"DeepSpeed config {path}: {section}={values[section]!r} must be a JSON object")
    return values


def fill_deepspeed_config(
    values: dict[str, Any], config: Config, *, data_ranks: int
) -> tuple[dict[str, Any], list[str]]:
    """Fill the recipe's values into a DeepSpeed JSON, where it has "auto" or nothing.

    Args:
        values: the JSON as read.
        config: the resolved recipe.
        data_ranks: number of model replicas.

    Returns:
        The filled JSON, and one line for each value of the JSON that contradicts the recipe.
    """
    accumulation = config.accumulation_steps(data_ranks)
    per_rank = config.train.micro_batch_size
    owned = {
        "train_batch_size": per_rank * accumulation * data_ranks,
        "train_micro_batch_size_per_gpu": per_rank,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optim.clip,
    }
    optim = config.optim
    owned_by_optimizer = {
        "lr": optim.lr,
        "betas": [optim.beta1, optim.beta2],
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
    }
    optimizer = values.get("optimizer", {"type": "AdamW"})
    parameters, problems = _filled(optimizer.get("params", {}), owned_by_optimizer, prefix="optimizer.params.")
    filled, more = _filled(values, owned)
    problems += more
    filled["optimizer"] = {**optimizer, "params": {"torch_adam": True, **parameters}}
    filled["steps_per_print"] = None  # the monitor does the reporting
    if config.parallel.pipeline_stages > 1:  # DeepSpeed's pipelines do not overlap, and warn about it on every rank
        filled["zero_optimization"] = {**values.get("zero_optimization", {}), "overlap_comm": False}
    if config.parallel.tensor_parallel_size > 1:
        filled["tensor_parallel"] = tensor_parallel_section(config.parallel)
    del filled["train_batch_size"]  # DeepSpeed derives it; its own check would count ranks that share a sequence
    return filled, problems


def _filled(values: dict[str, Any], owned: dict[str, Any], *, prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    problems = [
        f'{prefix}{key}={values[key]!r} contradicts the recipe\'s {value!r}; write "{AUTO}" there'
        for key, value in owned.items()
        if values.get(key, AUTO) not in (AUTO, value)
    ]
    return {**values, **owned}, problems


def tensor_parallel_section(parallel: ParallelConfig) -> dict[str, Any]:
    """Return the JSON section that makes AutoTP split each layer's matrices, and nothing else, over the ranks."""
    divided = (("wq|wk|wv|w1|w3", "column"), ("wo|w2", "row"))  # Megatron-LM, arXiv 1909.08053, section 3
    specs = [{"patterns": [rf".*\.({names})\.weight$"], "partition_type": kind} for names, kind in divided]
    size = parallel.tensor_parallel_size
    return {"autotp_size": size, "partition_config": {"use_default_specs": False, "layer_specs": specs}}


def deepspeed_problems(values: dict[str, Any], parallel: ParallelConfig) -> list[str]:
    """Return the unsupported settings of a DeepSpeed JSON, one line each; docs/decisions.md gives the reasons."""
    problems = []
    optimizer = values.get("optimizer", {"type": "AdamW"})
    if optimizer.get("type") != "AdamW":
        problems.append(f"optimizer.type={optimizer.get('type')!r} is not the recipe's AdamW (decoupled weight decay)")
    if not optimizer.get("params", {}).get("torch_adam", True):
        problems.append("optimizer.params.torch_adam must be true: checkpoints hold the state of torch's AdamW")
    if "scheduler" in values:
        problems.append("scheduler: the learning rate belongs to the recipe's optim section; remove it")
    if values.get("fp16", {}).get("enabled"):
        problems.append(
            "fp16.enabled=true: gradients of the heads are computed before the loss is scaled and would underflow;"
            " use bf16 or fp32"
        )
    stage = zero_stage(values)
    if stage == 0 and precision(values) == "bf16":
        # DeepSpeed 0.19.8's FP16_UnfusedOptimizer spends Adam's first step on zero gradients.
        problems.append(
            "bf16 without ZeRO does not train exactly; use ZeRO-1 (ds_configs/zero1_bf16.json), also on one rank"
        )
    if stage not in (0, 1, 2, 3):
        problems.append(f"zero_optimization.stage={stage!r} must be 0, 1, 2 or 3")
    if stage == 0 and parallel.tensor_parallel_size > 1:
        problems.append("parallel.tensor_parallel_size above 1 needs ZeRO-1, 2 or 3 (ds_configs/zero1_fp32.json)")
    if "tensor_parallel" in values:
        problems.append("tensor_parallel: belongs to the recipe (parallel.tensor_parallel_size); remove it")
    if stage in (2, 3) and parallel.pipeline_stages > 1:
        problems.append(
            f"parallel.pipeline_stages={parallel.pipeline_stages} with ZeRO-{stage}: pipelines accumulate whole"
            " gradients over their micro batches, so they work with ZeRO-0 or ZeRO-1 (ds_configs/zero1_bf16.json)"
        )
    for part in ("offload_optimizer", "offload_param"):
        if values.get("zero_optimization", {}).get(part, {}).get("device") == "nvme":
            problems.append(f"zero_optimization.{part}.device=nvme: checkpoints need the state in memory; use cpu")
    return problems


def zero_stage(values: dict[str, Any]) -> int:
    """Return the ZeRO stage of a DeepSpeed JSON; 0 if it names none."""
    return values.get("zero_optimization", {}).get("stage", 0)


def precision(values: dict[str, Any]) -> Precision:
    """Return the precision of matrix products under a DeepSpeed JSON."""
    is_bf16 = values.get("bf16", values.get("bfloat16", {})).get("enabled", False)  # DeepSpeed takes both names
    return "bf16" if is_bf16 else "fp32"
