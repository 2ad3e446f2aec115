"""A model as it lies on disk: its architecture, its weights one at a time, its tokenizer, and how it was made.

Whatever the format, weights have the names and layout of `pipeline.model.network`, and are read one at a time, so that
large models can be converted in little memory. The files may come from anybody, so descriptions and shapes are checked
before they are used.
"""

from __future__ import annotations

from common.endings import is_told_here

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command_line import UserError, raise_if_any, say
from common.small_files import read_json
from common.tokenizers import BYTES, Tokenizer
from pipeline.config.model import ModelConfig, model_from_dict, model_problems
from pipeline.weights.formats.record import FirstToken, read_record
from pipeline.weights.formats.values import Conversion

if TYPE_CHECKING:  # importing torch takes seconds; --help and wrong arguments do without it
    import torch
    from torch import Tensor

    from pipeline.model.network import MultiTokenModel

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.model", "tokenizer_config.json"
_MOST_PADDING = 1024  # vocabularies are padded to a multiple of 64 to 1,024
# Bounds beyond any real model: a described model is built, on the meta device, before its weights are compared.
_LARGEST = {
    "dim": 2**20, "n_layers": 2**11, "n_heads": 2**16, "n_future_tokens": 2**11, "multiple_of": 2**24,
    "ffn_dim_multiplier": 2**10,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Known facts about the training of a model; unknown facts are None."""

    step: int | None = None
    """Number of optimizer steps."""
    tokens: int | None = None
    """Number of training tokens."""
    config: Mapping[str, Mapping[str, Any]] | None = None
    """The run's resolved config."""
    deepspeed_config: Mapping[str, Any] | None = None
    """The run's ds_config.json."""
    environment: Mapping[str, Any] | None = None
    """The run's environment.json."""
    shards: Mapping[str, Any] | None = None
    """The metadata.json of the training data."""


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model on disk."""

    path: Path
    """The folder of the weights."""
    config: ModelConfig
    """The architecture."""
    read: Callable[[str], Tensor]
    """Returns a weight by its name in `pipeline.model.network`, on the CPU, with the file's dtype; perhaps mapped from
    the file."""
    tokenizer: str | None = None
    """"bytes", or the path of a SentencePiece model; None if it is not known."""
    first_token: FirstToken | None = None
    """The token before each document in training; None if it is not known."""
    seq_len: int | None = None
    """Length of the training sequences in tokens; None if it is not known."""
    provenance: Provenance = Provenance()
    """How the model was made."""


@functools.cache
def warn(message: str) -> None:
    """Print a warning once, on the first process of each machine; a model is described more than once."""
    if is_told_here():
        say(f"warning: {message}", file=sys.stderr)


def whole(value: Any) -> int | None:
    """Return a count that a file tells, or None if it is no whole number from 0."""
    return value if type(value) is int and value >= 0 else None


def fits_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> bool:
    """Return whether a tokenizer has a model's number of ids; SentencePiece models may have a few less (padding)."""
    most_padding = 1 if tokenizer.kind == BYTES else _MOST_PADDING
    return tokenizer.vocab_size <= vocab_size < tokenizer.vocab_size + most_padding


def tokenizer_in(folder: Path) -> str | None:
    """Return the path of the SentencePiece model in a folder, or None."""
    return str(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None


def shapes_by_name(config: ModelConfig) -> dict[str, torch.Size]:
    """Return the shape of every weight of a model, by name; imports torch only when it is called."""
    from pipeline.model.network import weight_shapes

    return weight_shapes(config)


def first_token_in(folder: Path) -> FirstToken | None:
    """Return the token before each document in training, or None if the folder does not say.

    Exports say it in their record. In other folders with the tokenizer of transformers, it is what that tokenizer puts
    before a text.

    Raises:
        UserError: the file that says it is damaged.
    """
    record = read_record(folder)
    if record is not None:
        return record.first_token
    if not (folder / TOKENIZER_CONFIG).is_file():
        return None
    values = read_json_object(folder / TOKENIZER_CONFIG)
    bos, eos = (_text_of(values.get(name)) for name in ("bos_token", "eos_token"))
    if bos is None or values.get("add_bos_token") is False:
        return "none"
    return "eos" if bos == eos else "bos"


def _text_of(token: Any) -> str | None:
    """Return the text of a token, which transformers writes as a string or as an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: the file is missing, cannot be used, or holds something else.
    """
    if not path.exists():
        raise UserError(f"{path.parent} has no {path.name}")
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one JSON object, not a {type(values).__name__}")
    return values


def described_model(values: dict[str, Any], *, source: str) -> ModelConfig:
    """Return the architecture that untrusted values describe; the keys are fields of `ModelConfig`.

    Raises:
        UserError: a value is wrong, or larger than in any model; the message begins with `source`.
    """
    problems = [
        f"{name}={values[name]} is larger than in any model; at most {largest:,} is accepted"
        for name, largest in _LARGEST.items()
        if isinstance(values.get(name), int | float) and values[name] > largest
    ]
    raise_if_any(problems, heading=source)
    config = model_from_dict(values, source=source)
    raise_if_any(model_problems(config), heading=source)
    return config


def key_problems(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> list[str]:
    """Return the differences between the names and shapes of stored weights and the expected ones, one line each."""
    problems = [f"missing key {name!r}" for name in expected if name not in found]
    problems += [f"unexpected key {name!r}" for name in found if name not in expected]
    return problems + [
        f"{name!r} has shape {tuple(found[name])}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]


def check_frequencies(frequencies: Tensor, config: ModelConfig, *, source: str) -> None:
    """Check rotary frequencies that a file holds beside the weights; they follow from the config and are not used.

    Raises:
        UserError: they are not those of the config, so the model would compute something else.
    """
    import torch

    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    expected = config.rope_theta**-exponents
    stored = frequencies.double().flatten()
    if stored.shape != expected.shape or not torch.allclose(stored, expected, rtol=0.02, atol=1e-6):  # half precision
        raise UserError(f"{source} holds other rotary frequencies than rope_theta={config.rope_theta} gives")
    warn(f"{source.partition(':')[0]} holds rotary frequencies, which follow from rope_theta and are not copied")


def load_model(stored: StoredModel, *, device: str = "cpu", dtype: torch.dtype | None = None) -> MultiTokenModel:
    """Return the model for inference on `device`, with `dtype` or the dtype of the stored weights.

    Raises:
        UserError: it does not fit into the device's memory, or a value is not finite, or `dtype` cannot hold it.
    """
    import torch

    from pipeline.model.network import MultiTokenModel

    with torch.device("meta"):
        model = MultiTokenModel(stored.config)
    conversion = Conversion(dtype=dtype)
    try:
        weights = {
            name: conversion.converted(stored.read(name).to(device=device), name=name) for name in model.state_dict()
        }
    except torch.OutOfMemoryError as error:
        raise UserError(f"the weights of {stored.path} do not fit on {device}; use --dtype bf16") from error
    conversion.finish(heading=f"{stored.path} cannot be loaded")
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)
