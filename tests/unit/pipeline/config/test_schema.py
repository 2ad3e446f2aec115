"""The values that a config computes, and writing it as YAML and reading it back."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from pipeline.config.ranks import batch_problems
from pipeline.config.recipe import load_config
from pipeline.config.schema import Config
from tests.helpers.recipes import COMPLETE, batch_config, write_recipe


@pytest.mark.parametrize(("total_tokens", "steps"), [(1, 1), (1024, 1), (1025, 2), (10_240, 10)])
def test_total_steps_round_up(total_tokens: int, steps: int) -> None:
    config = batch_config(total_tokens=total_tokens, batch_tokens=1024, micro_batch_size=1, seq_len=32)
    assert config.total_steps == steps


@pytest.mark.parametrize(("data_ranks", "accumulation"), [(1, 16), (2, 8), (4, 4), (16, 1)])
def test_accumulation_fills_the_batch(data_ranks: int, accumulation: int) -> None:
    config = batch_config(batch_tokens=4096, micro_batch_size=4, seq_len=64)
    assert batch_problems(config, data_ranks=data_ranks) == []
    assert config.accumulation_steps(data_ranks) == accumulation
    assert accumulation * data_ranks * 4 * 64 == 4096


def test_the_resolved_config_survives_yaml(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, COMPLETE.replace("dim: 64, n_layers: 6, n_heads: 4", "size: 1.3B"))
    config = load_config(recipe, ["run.name=try", "optim.eps=1e-6", "model.n_kv_heads=4"])
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(config.as_dict()))
    assert values["model"]["dim"] == 2048
    assert TypeAdapter(Config).validate_python(values) == config


def test_run_directory_is_parent_and_name(tmp_path: Path) -> None:
    config = load_config(write_recipe(tmp_path), [f"run.dir={tmp_path}", "run.name=a"])
    assert config.run_dir == tmp_path / "a"
