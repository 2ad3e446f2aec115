"""Changes since the last launch of a run: read from the files that it left."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.small_files import BadFileError
from pipeline.config.deepspeed import fill_deepspeed_config
from pipeline.runtime.history import changes_since_last_launch
from tests.helpers.recipes import config_over, write_json

STAGE_1: dict[str, Any] = {"zero_optimization": {"stage": 1}}


@pytest.fixture
def launched(tmp_path: Path) -> Path:
    """The folder of a run that was launched once."""
    config = config_over("shards")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
    write_json(tmp_path / "ds_config.json", fill_deepspeed_config(STAGE_1, config, data_ranks=2)[0])
    return tmp_path


def test_nothing_changes_by_itself(launched: Path) -> None:
    config = config_over("shards")
    for data_ranks in (1, 2):  # the number of micro batches follows from it
        filled, _ = fill_deepspeed_config(STAGE_1, config, data_ranks=data_ranks)
        assert changes_since_last_launch(launched, config=config, deepspeed_config=filled) == {}


def test_each_changed_field_has_its_old_and_its_new_value(launched: Path) -> None:
    config = config_over("elsewhere")
    config = replace(
        config,
        optim=replace(config.optim, lr=1e-3, clip=2.0),
        log=replace(config.log, prompts=("a", "b")),
        profile=replace(config.profile, steps=(1, 2)),
    )
    bf16 = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    filled, _ = fill_deepspeed_config(bf16, config, data_ranks=2)
    assert changes_since_last_launch(launched, config=config, deepspeed_config=filled) == {
        "data.shards": ("shards", "elsewhere"),
        "optim.lr": (2e-4, 1e-3),
        "optim.clip": (0.5, 2.0),
        "log.prompts": (["def ", "import "], ["a", "b"]),
        "profile.steps": (None, [1, 2]),
        "ds_config.zero_optimization.stage": (1, 3),
        "ds_config.bf16.enabled": (None, True),
    }


def test_a_field_that_an_earlier_version_did_not_know_had_its_default(launched: Path) -> None:
    values = yaml.safe_load((launched / "config.yaml").read_text())
    del values["faults"], values["log"]["samples"]
    (launched / "config.yaml").write_text(yaml.safe_dump(values))
    config = replace(config_over("shards"), log=replace(config_over().log, samples=True))
    filled, _ = fill_deepspeed_config(STAGE_1, config, data_ranks=2)
    changes = changes_since_last_launch(launched, config=config, deepspeed_config=filled)
    assert changes == {"log.samples": (False, True)}


@pytest.mark.parametrize("content", [None, "- 1", "a: [", "3", "{a: &a [*a]}"])
@pytest.mark.parametrize("name", ["config.yaml", "ds_config.json"])
def test_damaged_files_are_named(launched: Path, name: str, content: str | None) -> None:
    (launched / name).unlink()
    if content is not None:
        (launched / name).write_text(content)
    with pytest.raises(BadFileError):
        changes_since_last_launch(launched, config=config_over(), deepspeed_config={})
