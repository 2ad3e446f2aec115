"""The table of DeepSpeed's keys has every key that the installed DeepSpeed knows, and only those.

DeepSpeed's own configuration is built from a JSON that notes which keys it is asked for. Sections that DeepSpeed hands
to its pydantic models are read from these models.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.compile.config import CompileConfig
from deepspeed.inference.config import WeightQuantConfig
from deepspeed.monitor.config import DeepSpeedMonitorConfig
from deepspeed.runtime import config as of_deepspeed
from deepspeed.runtime import constants
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig
from pydantic import BaseModel

from pipeline.config.deepspeed_keys import TABLE, Key, Table, rows

MODELS: dict[str, type[BaseModel]] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "bf16": DeepSpeedBF16Config,
    "bfloat16": DeepSpeedBF16Config,
    "fp16": DeepSpeedFP16Config,
    "timers.throughput": DeepSpeedThroughputTimerConfig,
    "comms_logger": CommsLoggerConfig,
    "compile": CompileConfig,
    "tensor_parallel": TPTrainingConfig,
    "hybrid_engine": of_deepspeed.HybridEngineConfig,
    "weight_quantization": WeightQuantConfig,
    "": DeepSpeedMonitorConfig,
}


class Asking(dict[str, Any]):
    """A JSON object that notes the dotted names of the keys that it is asked for."""

    def __init__(self, asked: set[str], table: Table, *, prefix: str = "") -> None:
        sections = {key: row for key, row in table.items() if isinstance(row, dict)}
        super().__init__({key: Asking(asked, row, prefix=f"{prefix}{key}.") for key, row in sections.items()})
        self._asked, self._prefix = asked, prefix

    def __copy__(self) -> "Asking":
        return self

    def __contains__(self, key: object) -> bool:
        self._asked.add(f"{self._prefix}{key}")
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self._asked.add(f"{self._prefix}{key}")
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._asked.add(f"{self._prefix}{key}")
        return super().get(key, default)

    def keys(self) -> Any:
        return self


@pytest.fixture(scope="module")
def asked() -> set[str]:
    """The dotted names of all keys that DeepSpeed's configuration asks a JSON for."""
    names: set[str] = set()
    values = Asking(names, TABLE)
    values["train_micro_batch_size_per_gpu"] = values["gradient_accumulation_steps"] = 1
    of_deepspeed.DeepSpeedConfig(values)
    return names


def keys_of(model: type[BaseModel], *, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of a pydantic model's fields, and of their aliases."""
    for name, field in model.model_fields.items():
        annotations = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [part for part in annotations if inspect.isclass(part) and issubclass(part, BaseModel)]
        for key in {name, field.alias} - {None}:
            yield f"{prefix}{key}"
            for part in inner:
                yield from keys_of(part, prefix=f"{prefix}{key}.")


def row_of(name: str) -> Key | Table | None:
    """Return the row or section of a dotted name; a row that refuses a whole section stands for all keys in it."""
    found: Key | Table | None = TABLE
    for part in name.split("."):
        if isinstance(found, Key):
            return found
        found = found.get(part) if found is not None else None
    return found


def test_each_key_that_deepspeed_asks_for_has_a_row(asked: set[str]) -> None:
    assert {"zero_optimization", "data_types.grad_accum_dtype", "fp16", "comms_logger", "aio"} <= asked
    assert sorted(name for name in asked if row_of(name) is None) == []


@pytest.mark.parametrize("section", MODELS)
def test_each_field_of_deepspeeds_models_has_a_row(section: str) -> None:
    names = list(keys_of(MODELS[section], prefix=f"{section}." if section else ""))
    assert names
    assert [name for name in names if row_of(name) is None] == []


def test_each_key_that_deepspeed_has_removed_has_a_row() -> None:
    removed = [*of_deepspeed._REMOVED_TOP_LEVEL_CONFIG_KEYS]
    removed += [f"zero_optimization.{key}" for key in of_deepspeed._REMOVED_ZERO_CONFIG_KEYS]
    assert [name for name in removed if row_of(name) is None] == []


def test_each_option_of_torchs_adamw_has_a_row() -> None:
    options = set(inspect.signature(torch.optim.AdamW.__init__).parameters) - {"self", "params"}
    assert {f"optimizer.params.{name}" for name in options if row_of(f"optimizer.params.{name}") is None} == set()


def test_each_constant_that_has_a_default_is_a_key_of_the_table(asked: set[str]) -> None:
    """DeepSpeed names a key NAME and its default NAME_DEFAULT."""
    known = {part for name, _ in rows() for part in name.split(".")} | {name.rpartition(".")[2] for name in asked}
    of_checkpoint = {"tag_validation", "load_universal", "use_node_local_storage", "pipeline_stage"}
    names = {
        value
        for name, value in vars(constants).items()
        if hasattr(constants, f"{name}_DEFAULT") and isinstance(value, str) and re.fullmatch(r"[a-z0-9_]+", value)
    }
    assert len(names) > 30
    assert isinstance(TABLE["checkpoint"], Key)  # refused as a whole
    assert names - known == of_checkpoint


def test_the_table_has_no_key_that_deepspeed_does_not_know(asked: set[str]) -> None:
    known = asked | set(of_deepspeed._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    for section, model in MODELS.items():
        known |= set(keys_of(model, prefix=f"{section}." if section else ""))
    known |= {f"zero_optimization.{key}" for key in of_deepspeed._REMOVED_ZERO_CONFIG_KEYS}
    known |= {f"optimizer.params.{name}" for name in inspect.signature(torch.optim.AdamW.__init__).parameters}
    in_its_engine = {"torch_adam", "adam_w_mode", "fp32_optimizer_states", "max_grad_norm", "bias_correction"}
    known |= {f"optimizer.params.{name}" for name in in_its_engine} | {"allgather_size", "sequence_parallel_size"}
    assert {name for name, _ in rows()} - known == set()


@pytest.mark.parametrize(("name", "row"), [row for row in rows() if row[1].status == "refused"])
def test_a_value_that_switches_a_refused_key_off_is_deepspeeds_default(name: str, row: Key) -> None:
    """So nothing changes if DeepSpeed does not get to see it."""
    section, _, key = name.rpartition(".")
    model = MODELS.get(section)
    field = model.model_fields.get(key) if model is not None else None
    if field is not None and not isinstance(default := field.get_default(call_default_factory=True), BaseModel | dict):
        assert all(off == default or not (off or default) for off in row.off), default
