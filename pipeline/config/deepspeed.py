"""The DeepSpeed JSON: reading it, filling in the recipe's values, and refusing unsupported settings.

One owner per value. Batch sizes, accumulation, clipping and the optimizer's hyperparameters belong to the recipe; they
are "auto" or absent in the JSON and are filled in here. ZeRO stage, buckets, offload and precision belong to the JSON.
`deepspeed_keys` says of each key whether it is supported; settings that do not go together are refused here.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from common.command_line import UserError, raise_if_any
from common.small_files import BadFileError, read_json
from pipeline.config.deepspeed_keys import TABLE, Key, Table
from pipeline.config.schema import Config, ParallelConfig
from pipeline.config.values import shown, shown_key, suggestion, wrong

AUTO = "auto"
Precision = Literal["bf16", "fp32"]


@dataclass(kw_only=True)
class DeepSpeedJson:
    """A DeepSpeed JSON, or a section of it, compared with `deepspeed_keys.TABLE`."""

    values: dict[str, Any] = field(default_factory=dict)
    """What DeepSpeed is to see: the supported values, with 5e8 as a whole number where one is wanted."""
    problems: list[str] = field(default_factory=list)
    """One line for each key that is unknown or refused, and for each value that is wrong."""
    without_effect: list[str] = field(default_factory=list)
    """One line for each key that has no effect here."""


def load_deepspeed_config(path: Path) -> dict[str, Any]:
    """Return the supported values of the DeepSpeed JSON at `path`.

    Raises:
        UserError: the file cannot be read, or a key or value is wrong; lists all problems.
    """
    found = read_deepspeed_config(path)
    raise_if_any(found.problems, heading=f"DeepSpeed config {path}")
    return found.values


def read_deepspeed_config(path: Path) -> DeepSpeedJson:
    """Do the same as `load_deepspeed_config`, but return the problems, for callers that have more to add.

    Raises:
        UserError: the file cannot be read at all.
    """
    try:
        values = read_json(path, what="DeepSpeed config")
    except BadFileError as error:
        raise UserError(f"{error}; see ds_configs/") from error
    if not isinstance(values, dict):
        raise UserError(f"DeepSpeed config {path} must be a JSON object, not {shown(values)}")
    return checked(values)


def checked(values: dict[str, Any], table: Table = TABLE, *, prefix: str = "") -> DeepSpeedJson:
    """Compare a DeepSpeed JSON, or the section of it with this dotted prefix, with the table of its keys."""
    result = DeepSpeedJson()
    for key, value in values.items():
        name, row = f"{prefix}{shown_key(key)}", table.get(key)
        if row is None:
            near = suggestion(key, table)
            result.problems.append(f"unknown key {name}; " + (f"did you mean {prefix}{near}?" if near else "remove it"))
        elif isinstance(row, Key):
            _check(result, row, key=key, value=value, name=name)
        elif isinstance(value, dict):
            section = checked(value, row, prefix=f"{name}.")
            result.values[key] = section.values
            result.problems += section.problems
            result.without_effect += section.without_effect
        else:
            advice = "; leave it out" if value is None else ""
            result.problems.append(f"{name}={shown(value)} must be a JSON object{advice}")
    return result


def _check(result: DeepSpeedJson, row: Key, *, key: str, value: object, name: str) -> None:
    """Add the value of one key to the values, or a line to the problems or to what has no effect."""
    if row.status == "no effect":
        result.without_effect.append(f"{name} has no effect: {row.why}")
    elif row.status == "refused":
        if not any(type(value) is type(off) and value == off for off in row.off):
            given = "" if isinstance(value, dict | list) else f"={shown(value)}"
            result.problems.append(f"{name}{given} is refused: {row.why}; leave it out")
    elif row.status == "recipe":
        result.values[key] = value
    else:
        try:
            result.values[key] = TypeAdapter(row.type).validate_python(value)
        except ValidationError:
            result.problems.append(wrong(name, value, row.field))


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
    optimizer = {"type": "AdamW", **values.get("optimizer", {})}
    parameters, problems = _filled(optimizer.get("params", {}), owned_by_optimizer, prefix="optimizer.params.")
    filled, more = _filled(values, owned)
    problems += more
    filled["optimizer"] = {**optimizer, "params": {"torch_adam": True, **parameters}}
    if "bfloat16" in filled:  # its old name
        filled["bf16"] = filled.pop("bfloat16")
    filled["steps_per_print"] = None  # the monitor does the reporting
    if config.parallel.pipeline_stages > 1:  # DeepSpeed's pipelines do not overlap, and warn about it on every rank
        filled["zero_optimization"] = {**values.get("zero_optimization", {}), "overlap_comm": False}
    if config.parallel.tensor_parallel_size > 1:
        filled["tensor_parallel"] = tensor_parallel_section(config.parallel)
    del filled["train_batch_size"]  # DeepSpeed derives it; its own check would count ranks that share a sequence
    return filled, problems


def _filled(values: dict[str, Any], owned: dict[str, Any], *, prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    problems = [
        f'{prefix}{key}={shown(values[key])} contradicts the recipe\'s {shown(value)}; write "{AUTO}" there'
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
    """Return which supported settings do not go together, one line each; docs/decisions.md gives the reasons."""
    zero, stage, problems = values.get("zero_optimization", {}), zero_stage(values), []
    adamw = values.get("optimizer", {}).get("params", {})
    if {"bf16", "bfloat16"} <= values.keys():
        problems.append("bfloat16 is the old name of bf16; leave one of them out")
    if adamw.get("foreach") and adamw.get("fused"):
        problems.append("optimizer.params.foreach=true with optimizer.params.fused=true: leave one of them out")
    if precision(values) != "bf16":
        for name in ("communication_data_type", "data_types.grad_accum_dtype"):
            section, _, key = name.rpartition(".")
            if (values.get(section, {}) if section else values).get(key) == "bf16":
                problems.append(f"{name}='bf16' needs bf16.enabled=true")
    if stage == 0 and precision(values) == "bf16":
        # DeepSpeed 0.19.8's FP16_UnfusedOptimizer spends Adam's first step on zero gradients.
        problems.append(
            "bf16 without ZeRO does not train exactly; use ZeRO-1 (ds_configs/zero1_bf16.json), also on one rank"
        )
    for part, stages in (("offload_optimizer", (1, 2, 3)), ("offload_param", (3,))):
        if zero.get(part, {}).get("device", "none") != "none" and stage not in stages:
            problems.append(f"zero_optimization.{part} needs ZeRO-{', '.join(map(str, stages))}, not {stage}")
    if stage == 0 and parallel.tensor_parallel_size > 1:
        problems.append("parallel.tensor_parallel_size above 1 needs ZeRO-1, 2 or 3 (ds_configs/zero1_fp32.json)")
    if parallel.pipeline_stages == 1:
        return problems
    if stage in (2, 3):
        problems.append(
            f"parallel.pipeline_stages={parallel.pipeline_stages} with ZeRO-{stage}: pipelines accumulate whole"
            " gradients over their micro batches, so they work with ZeRO-0 or ZeRO-1 (ds_configs/zero1_bf16.json)"
        )
    if values.get("wall_clock_breakdown"):
        problems.append(
            f"parallel.pipeline_stages={parallel.pipeline_stages} with wall_clock_breakdown: DeepSpeed's timers stop"
            " pipelines; the recipe's profile.steps records times"
        )
    return problems


def zero_stage(values: dict[str, Any]) -> int:
    """Return the ZeRO stage of a DeepSpeed JSON; 0 if it names none."""
    return values.get("zero_optimization", {}).get("stage", 0)


def precision(values: dict[str, Any]) -> Precision:
    """Return the precision of matrix products under a DeepSpeed JSON."""
    is_bf16 = values.get("bf16", values.get("bfloat16", {})).get("enabled", False)
    return "bf16" if is_bf16 else "fp32"
