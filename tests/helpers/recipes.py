"""Recipes and JSON files for tests, and the configs of such runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, LogConfig, OptimConfig, ParallelConfig, TrainConfig
from tests.conftest import REPOSITORY

ZERO1 = REPOSITORY / "ds_configs" / "zero1_fp32.json"
COMPLETE = """
model: {dim: 64, n_layers: 6, n_heads: 4}
data: {shards: some/shards, seq_len: 32}
train: {total_tokens: 100_000, batch_tokens: 1024, micro_batch_size: 4}
optim: {warmup_steps: 10}
"""
OVER_SHARDS = """
model: {{dim: 32, n_layers: 6, n_heads: 4, vocab_size: 258, n_future_tokens: 4}}
data: {{shards: {shards}, seq_len: 32}}
train: {{total_tokens: 8192, batch_tokens: 512, micro_batch_size: 4}}
optim: {{warmup_steps: 2}}
"""


def write_recipe(directory: Path, text: str = COMPLETE) -> Path:
    """Write a recipe of the given text, by default a complete one whose shards do not exist."""
    path = directory / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def write_recipe_over(shards: Path, *, directory: Path) -> Path:
    """Write a complete recipe for byte shards with windows of 32 tokens: 16 steps of 16 sequences."""
    return write_recipe(directory, OVER_SHARDS.format(shards=shards))


def write_json(path: Path, values: Any) -> Path:
    """Write plain values as JSON."""
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def config_over(shards: Path | str = "", *, n_future_tokens: int = 4, eval_every_steps: int = 5) -> Config:
    """Return a config with the model and batch of `write_recipe_over`, and no default in its optimizer section."""
    return Config(
        model=ModelConfig(dim=32, n_layers=6, n_heads=4, vocab_size=258, n_future_tokens=n_future_tokens),
        data=DataConfig(shards=str(shards), seq_len=32),
        train=TrainConfig(batch_tokens=512, micro_batch_size=4, eval_every_steps=eval_every_steps, eval_tokens=640),
        optim=OptimConfig(lr=2e-4, beta1=0.8, beta2=0.9, eps=1e-7, weight_decay=0.2, clip=0.5),
    )


def batch_config(*, total_tokens: int = 1, batch_tokens: int, micro_batch_size: int, seq_len: int) -> Config:
    """Return a config in which only the batch sizes matter."""
    return Config(
        data=DataConfig(seq_len=seq_len),
        train=TrainConfig(total_tokens=total_tokens, batch_tokens=batch_tokens, micro_batch_size=micro_batch_size),
    )


def parallel_config(*, compiled: bool = False, n_kv_heads: int | None = None, **sizes: Any) -> Config:
    """Return a config with 6 layers, 4 attention heads, sequences of 32 tokens and a feed-forward width of 256.

    Args:
        compiled: whether torch.compile fuses the layers.
        n_kv_heads: key/value heads; None means one for each attention head.
        sizes: fields of the parallel section.
    """
    config = config_over()
    return replace(
        config,
        model=replace(config.model, n_kv_heads=n_kv_heads),
        train=replace(config.train, compile=compiled),
        parallel=ParallelConfig(**sizes),
    )


def with_log(config: Config, **log: Any) -> Config:
    """Return the config with these fields in its log section."""
    return replace(config, log=LogConfig(**log))
