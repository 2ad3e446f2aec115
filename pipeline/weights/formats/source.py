"""Weights of a model, read one at a time from wherever they lie, and what is made of them.

Every format is read into the names and layout of `model.py`. A conversion holds one weight in memory, however large the
model is: what a writer needs all at once it stages in mapped files, whose pages the system may drop and read again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.command_line import UserError, raise_if_any
from common.tokenizers import BYTES
from pipeline.config.model import ModelConfig, model_from_dict, model_problems

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong arguments do without
    import torch
    from torch import Tensor

    from pipeline.model.network import MultiTokenModel


DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
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
class Source:
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


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a writer is told besides the weights.

    dtype: of the weights written; None keeps that of the source.
    tokenizer: that goes along: "bytes", or the path of a SentencePiece model; None for none.
    first_token: what stood before a document in training.
    """

    dtype: torch.dtype | None = None
    tokenizer: str | None = None
    first_token: Literal["bos", "eos", "none"] = "bos"


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a kind of folder is recognised, read and written.

    is_at: whether a path is one; looks at file names only.
    read_config: its architecture; needs no torch.
    open: its weights. Both raise UserError where the folder is not whole.
    write: an export into an existing, empty folder.
    files: patterns of all names that an export may consist of.
    """

    is_at: Callable[[Path], bool]
    read_config: Callable[[Path], ModelConfig]
    open: Callable[[Path], Source]
    write: Callable[[Source, Path, ExportOptions], None]
    files: tuple[str, ...]


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype that `--dtype` names; see `DTYPES`."""
    import torch

    return getattr(torch, DTYPES[name])


def tokenizer_in(folder: Path) -> str | None:
    """Return the path of the SentencePiece model in a folder, if it has one."""
    return str(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None


def copy_tokenizer(tokenizer: str | None, folder: Path) -> None:
    """Put a SentencePiece model into a folder; bytes need none."""
    if tokenizer not in (None, BYTES):
        shutil.copyfile(tokenizer, folder / TOKENIZER)


def weight_names(config: ModelConfig) -> dict[str, torch.Size]:
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


def staged(source: Source, folder: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return all weights by our names, cast, each mapped from a file of its own in `folder`.

    `torch.save` and its kin want every tensor at once; mapped ones take no memory that the system cannot have back.
    """
    import torch
    from tqdm import tqdm

    weights = {}
    for index, name in enumerate(tqdm(weight_names(source.config), desc="reading", unit="weight", disable=None)):
        weight = source.read(name)
        weight_dtype, path = dtype or weight.dtype, folder / str(index)
        with path.open("wb") as file:  # a full disk is an error here; in a mapped page it would be SIGBUS
            os.posix_fallocate(file.fileno(), 0, weight.numel() * weight_dtype.itemsize)
        mapped = torch.from_file(str(path), shared=True, size=weight.numel(), dtype=weight_dtype)
        weights[name] = mapped.view(weight.shape).copy_(weight)
    return weights


def load_model(source: Source, *, device: str = "cpu", dtype: torch.dtype | None = None) -> MultiTokenModel:
    """Return the model for decoding, in `dtype` or that of the weights, on `device`.

    Raises:
        UserError: it does not fit into the device's memory.
    """
    import torch

    from pipeline.model.network import MultiTokenModel

    with torch.device("meta"):
        model = MultiTokenModel(source.config)
    try:
        weights = {name: source.read(name).to(device=device, dtype=dtype) for name in model.state_dict()}
    except torch.OutOfMemoryError as error:
        raise UserError(f"the weights of {source.path} do not fit on {device}; take --dtype bf16") from error
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def fill(model: torch.nn.Module, source: Source, *, new_heads: str) -> None:
    """Copy the weights of `source` into the part of a model that is here, which may have more heads or fewer.

    Args:
        model: named as `model.py` names the whole; a pipeline stage has only some of the weights.
        source: fits (see `start_problems`).
        new_heads: "copy" begins heads that the source lacks as copies of its next-token head; "fresh" leaves them.
    """
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            origin = _origin(name, n_heads=source.config.n_future_tokens, new_heads=new_heads)
            if origin is not None:
                weight.copy_(source.read(origin))


def _origin(name: str, *, n_heads: int, new_heads: str) -> str | None:
    """Return which weight of a model with `n_heads` heads begins the weight `name`; None leaves it as it is."""
    kind, _, rest = name.removeprefix("heads.").partition(".")
    if name.startswith("trunk.") or kind not in ("layers", "extra_outputs"):
        return name
    index, _, rest = rest.partition(".")
    head = int(index) + (kind == "extra_outputs")  # extra_outputs.0 is the second head's unembedding
    if head < n_heads:
        return name
    if new_heads == "fresh":
        return None
    return f"heads.layers.0.{rest}" if kind == "layers" else f"heads.output.{rest}"


_SHARED = ("dim", "n_heads", "kv_heads", "head_dim", "ffn_dim", "vocab_size", "norm_eps", "rope_theta", "head_type")


def check_start(source: Source, config: ModelConfig) -> None:
    """Raise what keeps a run of another number of heads from starting with these weights, all at once.

    Raises:
        UserError: the architectures differ in more than their heads.
    """
    theirs = source.config
    problems = [
        f"its {field} is {getattr(theirs, field)}, and this run's is {getattr(config, field)}"
        for field in _SHARED
        if getattr(theirs, field) != getattr(config, field)
    ]
    several = min(theirs.n_future_tokens, config.n_future_tokens) > 1
    for field in ("head_order", "replicated_unembedding"):
        if several and getattr(theirs, field) != getattr(config, field):
            problems.append(f"its {field} is {getattr(theirs, field)}, and this run's is {getattr(config, field)}")
    if theirs.n_trunk_layers != config.n_trunk_layers:
        n_layers = config.n_layers + theirs.n_trunk_layers - config.n_trunk_layers
        problems.append(
            f"its trunk has {theirs.n_trunk_layers} layers, and this run's {config.n_trunk_layers}; heads are counted"
            f" in n_layers: set model.size=null model.dim={theirs.dim} model.n_heads={theirs.n_heads}"
            f" model.n_layers={n_layers}"
        )
    raise_if_any(problems, heading=f"model.init_from={source.path} does not fit")
