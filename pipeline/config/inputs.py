"""All inputs of a run, checked together: recipe, DeepSpeed JSON and shard metadata.

Nothing here imports torch, so that a mistake is reported within a second, and all mistakes together.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.command_line import UserError, a_path, raise_if_any
from common.shard_format import read_metadata
from pipeline.config.deepspeed import (
    DeepSpeedJson,
    deepspeed_problems,
    fill_deepspeed_config,
    read_deepspeed_config,
)
from pipeline.config.ranks import batch_problems, node_problems, parallel_problems
from pipeline.config.recipe import read_config
from pipeline.config.schema import Config
from pipeline.config.shard_folder import local_folder, shard_problems


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The checked inputs of a run."""

    config: Config
    """The resolved recipe."""
    deepspeed_config: dict[str, Any]
    """The DeepSpeed JSON, filled with the recipe's values."""
    metadata: dict[str, Any]
    """The shards' metadata.json; empty if the recipe names no shards."""
    data_ranks: int
    """Model replicas, each of `parallel.ranks_per_replica` ranks."""
    without_effect: list[str] = field(default_factory=list)
    """One line for each key of the DeepSpeed JSON that has no effect."""


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options `config`, `deepspeed_config` and `overrides`, which name the inputs of a run."""
    parser.add_argument("--config", type=a_path, required=True, help="recipe (YAML); see pipeline/recipes/")
    parser.add_argument("--deepspeed_config", type=a_path, required=True, help="DeepSpeed JSON; see ds_configs/")
    parser.add_argument(
        "--list_fields", action=_ListFields, nargs=0, help="show every field of a recipe, with its range and default"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="fields of the recipe to override")


class _ListFields(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from pipeline.config.reference import field_list

        print(field_list())
        parser.exit()


def load_inputs(
    recipe: Path, deepspeed_json: Path, *, overrides: list[str], world_size: int, n_nodes: int = 1
) -> Inputs:
    """Read and check everything for a run on `world_size` ranks, spread over `n_nodes` machines.

    Raises:
        UserError: an input is wrong, or two of them contradict each other; lists all problems.
    """
    read = read_config(recipe, overrides)
    config, problems = read.config, list(read.problems)
    data_ranks = max(1, world_size // config.parallel.ranks_per_replica)
    is_usable = read.unusable.isdisjoint({"model", "data", "train", "parallel"})
    if is_usable:  # without a bad value, the others may not go together
        problems += parallel_problems(config, world_size=world_size)
        problems += batch_problems(config, data_ranks=data_ranks)
        problems += node_problems(config.data, n_nodes=n_nodes)
    deepspeed_config: dict[str, Any] = {}
    found = DeepSpeedJson()
    try:
        found = read_deepspeed_config(deepspeed_json)
        deepspeed_config, contradictions = fill_deepspeed_config(found.values, config, data_ranks=data_ranks)
        problems += found.problems
        problems += contradictions if is_usable and "optim" not in read.unusable else []
        if is_usable and not found.problems:
            problems += deepspeed_problems(found.values, config.parallel)
    except UserError as error:
        problems.append(str(error))
    metadata: dict[str, Any] = {}
    if config.data.shards and "data" not in read.unusable:
        try:
            metadata = read_metadata(local_folder(config.data))
            problems += shard_problems(metadata, config, data_ranks=data_ranks) if is_usable else []
        except UserError as error:
            problems.append(str(error))
    raise_if_any(problems, heading=f"recipe {recipe} with {deepspeed_json}")
    return Inputs(
        config=config, deepspeed_config=deepspeed_config, metadata=metadata, data_ranks=data_ranks,
        without_effect=found.without_effect,
    )  # fmt: skip
