"""A model as it lies on disk: its architecture, its weights one at a time, its tokenizer, and how it was made.

Every format is read into the names and layout of `pipeline.model.network`, so a conversion holds one weight in memory,
however large the model is. Descriptions and shapes come from files of others: they are checked before they are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command_line import UserError, raise_if_any
from pipeline.config.model import ModelConfig, model_from_dict, model_problems

if TYPE_CHECKING:  # importing torch takes seconds; --help and wrong arguments do without it
    import torch
    from torch import Tensor

    from pipeline.model.network import MultiTokenModel

TOKENIZER = "tokenizer.model"
# Beyond any model. What is described is built, without memory for its weights, and then compared with what is there.
_LARGEST = {
    "dim": 2**20, "n_layers": 2**11, "n_heads": 2**16, "n_future_tokens": 2**11, "multiple_of": 2**24,
    "ffn_dim_multiplier": 2**10,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What is known of how a model was made; None where it is not.

    step: optimizer steps that it was trained for.  tokens: those that it saw meanwhile.
    config: its run's resolved config.  deepspeed_config, environment: its run's files of these names.
    shards: metadata.json of what it was trained on.
    """

    step: int | None = None
    tokens: int | None = None
    config: Mapping[str, Mapping[str, Any]] | None = None
    deepspeed_config: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None
    shards: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model's weights where they lie.

    path: folder of the weights.
    config: the architecture.
    read: returns a weight by its name in `model.py`: on the CPU, in the precision of the file, possibly mapped from it.
    tokenizer: "bytes", or the path of a SentencePiece model; None where it is not known.
    seq_len: tokens of the sequences that it was trained on; None where it is not known.
    provenance: how it was made.
    """

    path: Path
    config: ModelConfig
    read: Callable[[str], Tensor]
    tokenizer: str | None = None
    seq_len: int | None = None
    provenance: Provenance = Provenance()


def tokenizer_in(folder: Path) -> str | None:
    """Return the path of the SentencePiece model in a folder, if it has one."""
    return str(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None


def shapes_by_name(config: ModelConfig) -> dict[str, torch.Size]:
    """Return every weight of a model by name, with its shape."""
    from pipeline.model.network import weight_shapes

    return weight_shapes(config)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one JSON object, not a {type(values).__name__}")
    return values


def described_model(values: dict[str, Any], *, source: str) -> ModelConfig:
    """Return the architecture that values from outside describe, by the names of `ModelConfig`.

    Raises:
        UserError: a value is wrong, or larger than in any model; the message begins with `source`.
    """
    problems = [
        f"{name}={values[name]} is beyond any model; at most {largest:,} is read"
        for name, largest in _LARGEST.items()
        if isinstance(values.get(name), int | float) and values[name] > largest
    ]
    raise_if_any(problems, heading=source)
    config = model_from_dict(values, source=source)
    raise_if_any(model_problems(config), heading=source)
    return config


def key_problems(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> list[str]:
    """Return what keeps stored weights, names and shapes, from being the expected ones, one line each."""
    problems = [f"missing key {name!r}" for name in expected if name not in found]
    problems += [f"unexpected key {name!r}" for name in found if name not in expected]
    return problems + [
        f"{name!r} has shape {tuple(found[name])}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]


def load_model(stored: StoredModel, *, device: str = "cpu", dtype: torch.dtype | None = None) -> MultiTokenModel:
    """Return the model for decoding, in `dtype` or that of the weights, on `device`.

    Raises:
        UserError: it does not fit into the device's memory.
    """
    import torch

    from pipeline.model.network import MultiTokenModel

    with torch.device("meta"):
        model = MultiTokenModel(stored.config)
    try:
        weights = {name: stored.read(name).to(device=device, dtype=dtype) for name in model.state_dict()}
    except torch.OutOfMemoryError as error:
        raise UserError(f"the weights of {stored.path} do not fit on {device}; take --dtype bf16") from error
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)
