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
from common.shard_format import METADATA, TOKENIZER_MODEL, read_metadata
from common.tokenizers import BYTES, load_tokenizer
from pipeline.config.ranks import batch_problems, node_problems, parallel_problems, tensor_parallel_section
from pipeline.config.recipe import read_config
from pipeline.config.schema import Config
from pipeline.config.shard_folder import local_folder
from pipeline.runtime.devices import Precision

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Checked inputs: the resolved config, the filled DeepSpeed JSON, the shards' metadata.json, the replicas.

    data_ranks: model replicas, each of `parallel.ranks_per_replica` ranks.
    """

    config: Config
    deepspeed_config: dict[str, Any]
    metadata: dict[str, Any]
    data_ranks: int


def load_inputs(
    recipe: Path, deepspeed_json: Path, *, overrides: list[str], world_size: int, n_nodes: int = 1
) -> Inputs:
    """Read and check everything for a run on `world_size` ranks, spread over `n_nodes` machines.

    Raises:
        UserError: anything is wrong with any of the inputs, or between them; lists all problems.
    """
    config, problems = read_config(recipe, overrides)
    problems += parallel_problems(config, world_size=world_size)
    data_ranks = max(1, world_size // config.parallel.ranks_per_replica)
    problems += batch_problems(config, data_ranks=data_ranks)
    problems += node_problems(config, n_nodes=n_nodes)
    deepspeed_config: dict[str, Any] = {}
    try:
        values = read_deepspeed_config(deepspeed_json)
        deepspeed_config, disagreements = fill_deepspeed_config(values, config, data_ranks=data_ranks)
        problems += disagreements + unsupported(values, config)
    except UserError as error:
        problems.append(str(error))
    metadata: dict[str, Any] = {}
    if config.data.shards:
        try:
            metadata = read_metadata(local_folder(config.data))
            problems += shard_problems(metadata, config, data_ranks=data_ranks)
        except UserError as error:
            problems.append(str(error))
    raise_if_any(problems, heading=f"recipe {recipe} with {deepspeed_json}")
    return Inputs(config=config, deepspeed_config=deepspeed_config, metadata=metadata, data_ranks=data_ranks)


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
    problems += more
    filled["optimizer"] = {**optimizer, "params": {"torch_adam": True, **parameters}}
    filled["steps_per_print"] = None  # the monitor speaks for the run
    if config.parallel.pipeline_stages > 1:  # DeepSpeed's pipelines do not overlap, and would say so on every rank
        filled["zero_optimization"] = {**values.get("zero_optimization", {}), "overlap_comm": False}
    if config.parallel.tensor_parallel_size > 1:
        filled["tensor_parallel"] = tensor_parallel_section(config)
    del filled["train_batch_size"]  # follows from the others; DeepSpeed's would count ranks that share a sequence
    return filled, problems


def _filled(values: dict[str, Any], owned: dict[str, Any], *, prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    problems = [
        f'{prefix}{key}={values[key]!r} contradicts the recipe\'s {value!r}; write "{AUTO}" there'
        for key, value in owned.items()
        if values.get(key, AUTO) not in (AUTO, value)
    ]
    return {**values, **owned}, problems


def unsupported(values: dict[str, Any], config: Config) -> list[str]:
    """Return what in a DeepSpeed JSON this project cannot train with, one line each; docs/decisions.md has the why."""
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
    if stage == 0 and config.parallel.tensor_parallel_size > 1:
        problems.append("parallel.tensor_parallel_size above 1 needs ZeRO-1, 2 or 3 (ds_configs/zero1_fp32.json)")
    if "tensor_parallel" in values:
        problems.append("tensor_parallel: belongs to the recipe (parallel.tensor_parallel_size); remove it")
    if stage in (2, 3) and config.parallel.pipeline_stages > 1:
        problems.append(
            f"parallel.pipeline_stages={config.parallel.pipeline_stages} with ZeRO-{stage}: pipelines accumulate whole"
            " gradients over their micro batches, so they work with ZeRO-0 or ZeRO-1 (ds_configs/zero1_bf16.json)"
        )
    for part in ("offload_optimizer", "offload_param"):
        if values.get("zero_optimization", {}).get(part, {}).get("device") == "nvme":
            problems.append(f"zero_optimization.{part}.device=nvme: checkpoints need the state in memory; use cpu")
    return problems


def zero_stage(values: dict[str, Any]) -> int:
    """Return the ZeRO stage that a DeepSpeed JSON asks for."""
    return values.get("zero_optimization", {}).get("stage", 0)


def precision(values: dict[str, Any]) -> Precision:
    """Return what a DeepSpeed JSON multiplies matrices in."""
    is_bf16 = values.get("bf16", values.get("bfloat16", {})).get("enabled", False)  # DeepSpeed takes both names
    return "bf16" if is_bf16 else "fp32"


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
    tokenizer = local_folder(config.data) / TOKENIZER_MODEL
    if tokenizer.exists() and sha256_of_file(tokenizer) != metadata["tokenizer"]["sha256"]:
        problems.append(f"{tokenizer} is not the tokenizer that wrote the shards (its SHA-256 differs from {METADATA})")
    if config.log.previews_every_steps:
        problems += preview_problems(metadata, config)
    windows = {split: metadata["splits"].get(split, {}).get("windows", 0) for split in ("train", "val")}
    per_step = config.train.batch_tokens // config.data.seq_len
    micro_batches = config.train.micro_batch_size * data_ranks
    if windows["train"] < per_step:
        problems.append(
            f"the train split has {windows['train']} windows, but one step takes {per_step}; write more data"
        )
    if config.train.eval_every_steps and windows["val"] < micro_batches:
        problems.append(
            f"the val split has {windows['val']} windows, but one micro batch on each of {data_ranks} replicas takes "
            f"{micro_batches}; write more data or set train.eval_every_steps=0"
        )
    return problems


def preview_problems(metadata: dict[str, Any], config: Config) -> list[str]:
    """Return why previews cannot be made of these shards' tokens, one line each."""
    name = tokenizer_of(local_folder(config.data), metadata)
    if name != BYTES and not Path(name).exists():
        return [f"log.previews_every_steps needs {name}, which does not exist; set it to 0"]
    try:
        tokenizer = load_tokenizer(name)
    except UserError as error:
        return [f"log.previews_every_steps: {error}"]
    longest = 1 + max(len(tokenizer.encode(text)) for text in config.log.prompts) + config.log.preview_tokens
    if longest <= config.data.seq_len:
        return []
    return [
        f"log.prompts: the longest takes {longest} tokens, with EOS before it and log.preview_tokens="
        f"{config.log.preview_tokens} behind it, but data.seq_len={config.data.seq_len}; shorten one of them"
    ]


def tokenizer_of(shards: Path, metadata: dict[str, Any]) -> str:
    """Return the name of the shards' tokenizer, as `load_tokenizer` takes it."""
    return BYTES if metadata["tokenizer"]["kind"] == BYTES else str(shards / TOKENIZER_MODEL)


def evaluation_windows(metadata: dict[str, Any], config: Config, *, data_ranks: int) -> int:
    """Return how many validation windows each validation reads: whole micro batches on every rank."""
    micro_batches = config.train.micro_batch_size * data_ranks
    wanted = min(config.train.eval_tokens // config.data.seq_len, metadata["splits"]["val"]["windows"])
    return max(1, wanted // micro_batches) * micro_batches
