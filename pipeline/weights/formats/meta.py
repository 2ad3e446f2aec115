"""The format of Meta's release: `consolidated.pth`, one flat dict of weights, and `params.json`, the architecture.

The next-token head is the last of `layers`, and the other heads are `extra_heads`. Only the names differ from ours; the
weights are the same. For heads that Meta's release does not have, params.json gets the additional keys head_type,
head_order and replicated_unembedding, and the weights get `extra_outputs`.

Folders of other Llama tools can be read too: `consolidated.00.pth` instead of `consolidated.pth`, `rope.freqs` among
the weights, any precision, and `vocab_size: -1` as in Llama 2.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from common.command_line import UserError, one_line, raise_if_any
from common.files import write_json, written_whole
from pipeline.config.model import ModelConfig
from pipeline.weights.formats.export import ExportOptions, Format, copy_tokenizer, staged
from pipeline.weights.formats.record import read_record
from pipeline.weights.formats.stored_model import (
    TOKENIZER,
    StoredModel,
    check_frequencies,
    described_model,
    first_token_in,
    key_problems,
    read_json_object,
    shapes_by_name,
    tokenizer_in,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS, PARAMS = "consolidated.pth", "params.json"
# Meta's names for the parts of a model-parallel checkpoint; other Llama tools use the first name for a whole one.
_FIRST_PART, _SECOND_PART = "consolidated.00.pth", "consolidated.01.pth"
_PARAMS_KEYS = ("dim", "ffn_dim_multiplier", "multiple_of", "n_future_tokens", "n_heads", "n_kv_heads", "n_layers",
                "norm_eps", "rope_theta", "vocab_size")  # fmt: skip
_RELEASED_DIM, _RELEASED_SEQ_LEN = 4096, 4096
_OWN_PARAMS_KEYS = ("head_type", "head_order", "replicated_unembedding")


def meta_name(name: str, *, n_trunk_layers: int) -> str:
    """Return the name of one of our weights in Meta's format."""
    module, _, rest = name.partition(".")
    if module == "heads" and rest.startswith("layers."):
        _, index, rest = rest.split(".", 2)
        return f"layers.{n_trunk_layers}.{rest}" if index == "0" else f"extra_heads.{int(index) - 1}.{rest}"
    return rest


def meta_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Return the shape of every weight, by its name in Meta's format."""
    return {
        meta_name(name, n_trunk_layers=config.n_trunk_layers): shape for name, shape in shapes_by_name(config).items()
    }


def meta_params(config: ModelConfig) -> dict[str, Any]:
    """Return the contents of params.json: the keys of Meta's release, and our keys that differ from their defaults."""
    values, defaults = dataclasses.asdict(config), dataclasses.asdict(ModelConfig())
    values |= {"n_kv_heads": config.kv_heads, "ffn_dim_multiplier": config.ffn_dim_multiplier or 1.0}
    values |= {"n_layers": config.n_transformer_layers}  # counts the heads, also if the trunk was not shortened
    own_keys = [key for key in _OWN_PARAMS_KEYS if values[key] != defaults[key]]
    return {key: values[key] for key in [*_PARAMS_KEYS, *own_keys]}


def config_of_params(values: dict[str, Any], *, source: str) -> ModelConfig:
    """Return the architecture that the contents of a params.json describe.

    Raises:
        UserError: a key is unknown or missing, or a value is wrong; the message begins with `source`.
    """
    unknown = [f"unknown key {key!r}" for key in values if key not in (*_PARAMS_KEYS, *_OWN_PARAMS_KEYS)]
    missing = [f"missing key {key!r}" for key in ("dim", "n_layers", "n_heads", "vocab_size") if key not in values]
    raise_if_any(unknown + missing, heading=source)
    return described_model({"n_future_tokens": 1, **values}, source=source)  # Meta's default is 1, ours is not


def read_config(folder: Path) -> ModelConfig:
    """Return the architecture that `folder/params.json` describes; needs no torch unless its vocab_size is -1.

    Raises:
        UserError: the file is missing, or does not describe a model.
    """
    path = folder / PARAMS
    values = read_json_object(path)
    if values.get("vocab_size", -1) == -1:  # as in Llama 2 and CodeLlama, which take it from the tokenizer
        embedding = _load(folder).get("tok_embeddings.weight")
        values["vocab_size"] = embedding.shape[0] if embedding is not None and embedding.ndim else 0
    return config_of_params(values, source=str(path))


def open_folder(folder: Path) -> StoredModel:
    """Return the model of a folder in Meta's format.

    Raises:
        UserError: a file is missing or unreadable, or weights are missing, unexpected or have the wrong shape.
    """
    config = read_config(folder)
    weights = _load(folder)
    frequencies = weights.pop("rope.freqs", None)  # in older Llama files
    if frequencies is not None:
        check_frequencies(frequencies, config, source=f"{folder}: rope.freqs")
    problems = key_problems({name: weight.shape for name, weight in weights.items()}, meta_shapes(config))  # type: ignore[arg-type]
    raise_if_any(problems, heading=f"the weights in {folder} do not fit its {PARAMS}")

    def read(name: str) -> Tensor:
        return weights[meta_name(name, n_trunk_layers=config.n_trunk_layers)]

    record = read_record(folder)
    return StoredModel(
        path=folder,
        config=config,
        read=read,
        tokenizer=tokenizer_in(folder),
        first_token=first_token_in(folder),
        seq_len=_released_seq_len(config, folder) if record is None else record.seq_len,
    )


def _released_seq_len(config: ModelConfig, folder: Path) -> int | None:
    """Return the training length of Meta's released 7B models (paper, section 3), whose params.json names heads."""
    is_released = config.dim == _RELEASED_DIM and "n_future_tokens" in read_json_object(folder / PARAMS)
    return _RELEASED_SEQ_LEN if is_released else None


def write_folder(stored: StoredModel, folder: Path, options: ExportOptions) -> None:
    """Write consolidated.pth and params.json into an existing folder; needs twice the disk space while it writes."""
    import torch

    with TemporaryDirectory(dir=folder, prefix=".staged-") as scratch, written_whole(folder / WEIGHTS) as partial:
        weights = staged(stored, Path(scratch), options.dtype)
        renamed = {
            meta_name(name, n_trunk_layers=stored.config.n_trunk_layers): weight for name, weight in weights.items()
        }
        torch.save(renamed, partial)
    write_json(folder / PARAMS, meta_params(stored.config))
    copy_tokenizer(options.tokenizer, folder)


def _load(folder: Path) -> dict[str, Tensor]:
    import torch

    if (folder / _SECOND_PART).exists():
        raise UserError(
            f"{folder} holds a model in several parts ({_SECOND_PART}); merge them into one {WEIGHTS} first"
        )
    paths = [folder / name for name in (WEIGHTS, _FIRST_PART) if (folder / name).is_file()]
    if not paths:
        raise UserError(f"{folder} has no {WEIGHTS} or {_FIRST_PART}")
    try:
        weights = torch.load(paths[0], map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many types
        raise UserError(f"{paths[0]} is not a file of weights: {one_line(error)[:200]}") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise UserError(f"{paths[0]} is not one flat dict of weights by name")
    incomplete = [name for name, weight in weights.items() if not _is_stored(weight)]
    if incomplete:
        raise UserError(f"{paths[0]} does not hold all the values of {incomplete[0]!r}")
    return weights


def _is_stored(weight: Tensor) -> bool:
    """Return whether the file stores a value for every element of a tensor; a small file can claim any shape."""
    import torch

    if weight.layout != torch.strided or weight.device.type != "cpu":
        return False
    return weight.numel() * weight.element_size() <= weight.untyped_storage().nbytes()


FORMAT = Format(
    is_at=lambda path: (path / PARAMS).is_file() or (path / WEIGHTS).is_file() or (path / _FIRST_PART).is_file(),
    read_config=read_config,
    open=open_folder,
    write=write_folder,
    files=(WEIGHTS, PARAMS, TOKENIZER),
)
