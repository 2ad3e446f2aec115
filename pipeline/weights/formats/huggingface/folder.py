"""Hugging Face's format: trunk and next-token head as a plain `LlamaForCausalLM`, which other tools load as it is.

    config.json, generation_config.json     the architecture, read by transformers, vLLM, lm-eval
    model*.safetensors [+ index]            trunk and next-token head, with the names of transformers
    extra_heads/model*.safetensors          the further heads, with similar names; only this project reads them

Many tools take every `*.safetensors` of the folder if there is no index (vLLM does), and refuse a weight that they do
not know. So the further heads have a folder of their own. Earlier versions wrote `extra_heads.safetensors`, which is
still read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command_line import UserError, raise_if_any
from common.files import inside, write_json, written_whole
from common.tokenizers import BYTES, load_tokenizer
from pipeline.config.model import ModelConfig
from pipeline.weights.formats.export import ExportOptions, Format
from pipeline.weights.formats.huggingface.config import OWN_SECTION, config_of_llama, hf_config
from pipeline.weights.formats.huggingface.llama import (
    EXTRA,
    ROTARY_FREQUENCIES,
    hf_names,
    is_rotated,
    rotary_halves,
    rotary_pairs,
)
from pipeline.weights.formats.stored_model import (
    TOKENIZER,
    StoredModel,
    check_frequencies,
    first_token_in,
    key_problems,
    read_json_object,
    shapes_by_name,
    tokenizer_in,
    warn,
    whole,
)
from pipeline.weights.formats.values import Conversion

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
EXTRA_HEADS, _EARLIER_EXTRA_HEADS = "extra_heads", "extra_heads.safetensors"
MAX_SHARD_SIZE = "5GB"  # the default of transformers; a writer holds one file in memory


def read_config(folder: Path) -> ModelConfig:
    """Return the architecture that `folder/config.json` describes; needs no torch.

    Raises:
        UserError: the file is missing, or this project's layers cannot be the architecture.
    """
    return config_of_llama(read_json_object(folder / CONFIG), source=str(folder / CONFIG))


def open_folder(folder: Path) -> StoredModel:
    """Return the model of a folder in Hugging Face's format.

    Raises:
        UserError: a file is missing or unreadable, or weights are missing, unexpected or have the wrong shape.
    """
    config = read_config(folder)
    files = [*_opened(folder), *_opened_extra_heads(folder, config)]
    where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
    found = {name: tuple(file.get_slice(name).get_shape()) for name, file in where.items()}
    for name in [name for name in found if name.endswith(ROTARY_FREQUENCIES)]:
        check_frequencies(where[name].get_tensor(name), config, source=f"{folder}: {name}")
        del found[name]
    names = hf_names(config)
    shapes = shapes_by_name(config)
    raise_if_any(
        key_problems(found, {names[name]: shape for name, shape in shapes.items()}),
        heading=f"the weights in {folder} do not fit its {CONFIG}",
    )

    def read(name: str) -> Tensor:
        weight = where[names[name]].get_tensor(names[name])
        return rotary_pairs(weight, head_dim=config.head_dim) if is_rotated(name) else weight

    seq_len = read_json_object(folder / CONFIG).get("max_position_embeddings")
    return StoredModel(
        path=folder,
        config=config,
        read=read,
        tokenizer=tokenizer_in(folder),
        first_token=first_token_in(folder),
        seq_len=whole(seq_len),
    )


def _opened(folder: Path) -> list[Any]:
    """Return the open safetensors files of a folder.

    Raises:
        UserError: a file is missing, unreadable, or outside the folder.
    """
    if (folder / INDEX).is_file():
        weight_map = read_json_object(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{folder / INDEX} has no weight_map from names to files")
        return _opened_files(inside(folder, name, named_in=INDEX) for name in weight_map.values())
    return _opened_files([folder / WEIGHTS])


def _opened_extra_heads(folder: Path, config: ModelConfig) -> list[Any]:
    """Return the open files of the further heads.

    Raises:
        UserError: config.json names such heads, but their weights are not there; or a file is unreadable.
    """
    if (folder / EXTRA_HEADS).is_dir():
        return _opened(folder / EXTRA_HEADS)
    if (folder / _EARLIER_EXTRA_HEADS).is_file():
        return _opened_files([folder / _EARLIER_EXTRA_HEADS])
    if any(name.startswith(EXTRA) for name in hf_names(config).values()):
        raise UserError(
            f"{folder / CONFIG} describes {config.n_future_tokens} heads, but the further heads' weights are not there,"
            f" as after transformers' save_pretrained: remove {OWN_SECTION} from it to use the next-token head alone,"
            f" or copy {EXTRA_HEADS}/ from the export that the weights come from"
        )
    return []


def _opened_files(paths: Iterable[Path]) -> list[Any]:
    from safetensors import SafetensorError, safe_open

    opened = []
    for path in sorted(set(paths)):
        try:
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is not a file of weights (it is not a regular file)")
            opened.append(safe_open(path, framework="pt"))
        except FileNotFoundError:
            raise UserError(f"{path.parent} has no {path.name}") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a file of weights: {error}") from error
    return opened


def write_folder(stored: StoredModel, folder: Path, options: ExportOptions) -> None:
    """Write a whole export into an existing folder; one file of weights, at most 5 GB, is in memory at a time.

    Raises:
        UserError: the model is not a Llama, or its tokenizer cannot be written as tokenizer.json.
    """
    import torch

    config = hf_config(stored.config)
    dtype = options.dtype or torch.promote_types(
        stored.read("heads.norm.weight").dtype, stored.read("heads.output.weight").dtype
    )
    conversion = Conversion(dtype=dtype)
    own_names = {name: own for own, name in hf_names(stored.config).items()}
    extra = [name for name in own_names if name.startswith(EXTRA)]
    llama = [name for name in own_names if not name.startswith(EXTRA)]
    for place, names in ((folder, llama), (folder / EXTRA_HEADS, extra)):
        if names:
            place.mkdir(exist_ok=True)
            _write_weights(stored, place, {name: own_names[name] for name in names}, conversion)
    conversion.finish(heading=f"{stored.path} cannot be converted")
    values = {**config, "torch_dtype": str(dtype).removeprefix("torch.")}
    if stored.seq_len is not None:
        values["max_position_embeddings"] = stored.seq_len
    else:
        warn(
            "the length of the training sequences is not known, so config.json has no max_position_embeddings, and"
            " other tools take 2,048; --seq_len sets it"
        )
    if options.tokenizer is not None:
        values |= _write_tokenizer(options.tokenizer, folder, options)
    write_json(folder / CONFIG, values)


def _write_weights(stored: StoredModel, folder: Path, own_names: Mapping[str, str], conversion: Conversion) -> None:
    """Write weights into files of limited size, and their index if there are several files.

    Args:
        stored: the model.
        folder: where to write.
        own_names: our name of each weight, by its name in transformers.
        conversion: to the dtype of the files.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file
    from tqdm import tqdm

    shapes = shapes_by_name(stored.config)
    split = split_torch_state_dict_into_shards(
        {name: torch.empty(shapes[own], dtype=conversion.dtype, device="meta") for name, own in own_names.items()},
        max_shard_size=MAX_SHARD_SIZE,
    )
    for file, names in tqdm(split.filename_to_tensors.items(), desc="writing", unit="file", disable=None):
        weights = {
            name: conversion.converted(_converted(stored, own_names[name]), name=name).contiguous() for name in names
        }
        with written_whole(folder / file) as partial:
            partial.touch()
            usual_mode = partial.stat().st_mode
            save_file(weights, partial, metadata={"format": "pt"})
            partial.chmod(usual_mode)  # safetensors 0.8 makes files that only their owner can read
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def _write_tokenizer(name: str, folder: Path, options: ExportOptions) -> dict[str, int | None]:
    """Write the files of a tokenizer, and generation_config.json; return the ids of its BOS and EOS for config.json."""
    from pipeline.weights.formats.huggingface.tokenizer_json import write_tokenizer_files

    tokenizer = load_tokenizer(name)
    first = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "none": None}[options.first_token]
    ids = {"bos_token_id": first, "eos_token_id": tokenizer.eos_id}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    write_tokenizer_files(None if name == BYTES else Path(name), folder, first_token=options.first_token)
    return ids


def _converted(stored: StoredModel, name: str) -> Tensor:
    """Return one of our weights in the layout of transformers."""
    weight = stored.read(name)
    return rotary_halves(weight, head_dim=stored.config.head_dim) if is_rotated(name) else weight


FORMAT = Format(
    is_at=lambda path: (path / CONFIG).is_file(),
    read_config=read_config,
    open=open_folder,
    write=write_folder,
    files=(CONFIG, "generation_config.json", "model*.safetensors", INDEX, f"{EXTRA_HEADS}/*", _EARLIER_EXTRA_HEADS,
           TOKENIZER, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
)  # fmt: skip
