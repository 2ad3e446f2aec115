"""Everything a run reads before it starts, checked together: recipe, DeepSpeed JSON and shard metadata.

One owner per number: batch sizes, accumulation, clipping and the optimizer's numbers belong to the recipe and
stand as "auto" in the DeepSpeed JSON, filled here; ZeRO stage, buckets, offload and precision belong to the
JSON. Nothing here imports torch, so that a mistake is answered at once, and all mistakes together.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command_line import UserError, raise_if_any
from common.files import sha256_of_file
from pipeline.config import Config, batch_problems, node_problems
from pipeline.recipe import read_config

AUTO = "auto"
SUPPORTED_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Checked inputs: the resolved config, the filled DeepSpeed JSON, the shards' metadata.json."""

    config: Config
    deepspeed_config: dict[str, Any]
    metadata: dict[str, Any]


def load_inputs(
    recipe: Path, deepspeed_json: Path, *, overrides: list[str], data_ranks: int, n_nodes: int = 1
) -> Inputs:
    """Read and check everything for a run on `data_ranks` model replicas, spread over `n_nodes` machines.

    Raises:
        UserError: anything is wrong with any of the inputs, or between them; lists all problems.
    """
    config, problems = read_config(recipe, overrides)
    problems += batch_problems(config, data_ranks=data_ranks)
    problems += node_problems(config, n_nodes=n_nodes)
    deepspeed_config: dict[str, Any] = {}
    try:
        values = read_deepspeed_config(deepspeed_json)
        deepspeed_config, disagreements = fill_deepspeed_config(values, config, data_ranks=data_ranks)
        problems += disagreements
    except UserError as error:
        problems.append(str(error))
    metadata: dict[str, Any] = {}
    if config.data.shards:
        try:
            metadata = read_metadata(config.data.shards)
            problems += shard_problems(metadata, config, data_ranks=data_ranks)
        except UserError as error:
            problems.append(str(error))
    raise_if_any(problems, heading=f"recipe {recipe} with {deepspeed_json}")
    return Inputs(config=config, deepspeed_config=deepspeed_config, metadata=metadata)


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """Return the DeepSpeed JSON at `path`.

    Raises:
        UserError: the file cannot be read, or is not a JSON object.
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
    """Return the JSON with the recipe's numbers in place of "auto" or nothing, and where the two disagree."""
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
    problems += more + _unsupported(values, optimizer)
    filled["optimizer"] = {**optimizer, "params": parameters}
    filled["steps_per_print"] = None  # the monitor speaks for the run
    return filled, problems


def _filled(values: dict[str, Any], owned: dict[str, Any], *, prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    problems = [
        f'{prefix}{key}={values[key]!r} contradicts the recipe\'s {value!r}; write "{AUTO}" there'
        for key, value in owned.items()
        if values.get(key, AUTO) not in (AUTO, value)
    ]
    return {**values, **owned}, problems


def _unsupported(values: dict[str, Any], optimizer: dict[str, Any]) -> list[str]:
    problems = []
    if optimizer.get("type") != "AdamW":
        problems.append(f"optimizer.type={optimizer.get('type')!r} is not the recipe's AdamW (decoupled weight decay)")
    if "scheduler" in values:
        problems.append("scheduler: the learning rate belongs to the recipe's optim section; remove it")
    if values.get("fp16", {}).get("enabled"):
        problems.append(
            "fp16.enabled=true: gradients of the heads are computed before the loss is scaled and would underflow;"
            " use bf16 or fp32"
        )
    stage = zero_stage(values)
    is_bf16 = values.get("bf16", values.get("bfloat16", {})).get("enabled", False)  # DeepSpeed takes both names
    if stage == 0 and is_bf16:
        # DeepSpeed 0.19.8's FP16_UnfusedOptimizer spends Adam's first step on zero gradients: docs/decisions.md.
        problems.append(
            "bf16 without ZeRO does not train exactly; use ZeRO-1 (ds_configs/zero1_bf16.json), also on one rank"
        )
    if stage == 1 and is_bf16 and values.get("data_types", {}).get("grad_accum_dtype") == "fp32":
        # DeepSpeed 0.19.8 then selects BF16_Optimizer, whose checkpoints its own zero_to_fp32 cannot read.
        problems.append(
            "bf16 with ZeRO-1 and data_types.grad_accum_dtype=fp32 writes checkpoints that cannot be converted;"
            " use ZeRO-2 for fp32 accumulation (ds_configs/zero2_bf16.json)"
        )
    if stage not in (0, 1, 2, 3):
        problems.append(f"zero_optimization.stage={stage!r} must be 0, 1, 2 or 3")
    return problems


def zero_stage(values: dict[str, Any]) -> int:
    """Return the ZeRO stage that a DeepSpeed JSON asks for."""
    return values.get("zero_optimization", {}).get("stage", 0)


def read_metadata(shards: str) -> dict[str, Any]:
    """Return the shard folder's metadata.json.

    Raises:
        UserError: there is none, or it is not one that this code can read.
    """
    path = Path(shards) / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        version = metadata["format_version"]
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; data.shards must be a folder that data_prep.write_shards wrote"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as shard metadata ({error!r}); write the shards again") from error
    if version != SUPPORTED_FORMAT_VERSION:
        raise UserError(f"{path} has format_version={version!r}, but this code reads {SUPPORTED_FORMAT_VERSION}")
    missing = [key for key in ("seq_len", "lookahead", "vocab_size", "tokenizer", "splits") if key not in metadata]
    if missing:
        raise UserError(f"{path} cannot be read as shard metadata: no {', '.join(missing)}; write the shards again")
    return metadata


def shard_problems(metadata: dict[str, Any], config: Config, *, data_ranks: int) -> list[str]:
    """Return where the shards and the recipe disagree, one line each."""
    problems = []
    if metadata["seq_len"] != config.data.seq_len:
        problems.append(f"data.seq_len={config.data.seq_len}, but the shards have seq_len={metadata['seq_len']}")
    if metadata["vocab_size"] != config.model.vocab_size:
        problems.append(
            f"model.vocab_size={config.model.vocab_size}, but the shards' tokenizer has {metadata['vocab_size']}"
        )
    if config.model.n_future_tokens > metadata["lookahead"]:
        problems.append(
            f"model.n_future_tokens={config.model.n_future_tokens} is more than the shards' lookahead="
            f"{metadata['lookahead']}; write shards with a larger --lookahead"
        )
    tokenizer = Path(config.data.shards) / "tokenizer.model"
    if tokenizer.exists() and sha256_of_file(tokenizer) != metadata["tokenizer"]["sha256"]:
        problems.append(
            f"{tokenizer} is not the tokenizer that wrote the shards (its SHA-256 differs from metadata.json)"
        )
    micro_batches = config.train.micro_batch_size * data_ranks
    splits = ["train", "val"] if config.train.eval_every_steps else ["train"]
    for split in splits:
        windows = metadata["splits"].get(split, {}).get("windows", 0)
        if windows < micro_batches:
            advice = " or set train.eval_every_steps=0" if split == "val" else ""
            problems.append(
                f"the {split} split has {windows} windows, but one micro batch on each of {data_ranks} ranks takes "
                f"{micro_batches}; write more data{advice}"
            )
    return problems


def evaluation_windows(metadata: dict[str, Any], config: Config, *, data_ranks: int) -> int:
    """Return how many validation windows each validation reads: whole micro batches on every rank."""
    micro_batches = config.train.micro_batch_size * data_ranks
    wanted = min(config.train.eval_tokens // config.data.seq_len, metadata["splits"]["val"]["windows"])
    return max(1, wanted // micro_batches) * micro_batches
