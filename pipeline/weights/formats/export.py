"""Writing a model in some format: the options, the interface of a format, and steps that several formats share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.tokenizers import BYTES
from pipeline.config.model import ModelConfig
from pipeline.weights.formats.record import FirstToken
from pipeline.weights.formats.stored_model import TOKENIZER, StoredModel, shapes_by_name
from pipeline.weights.formats.values import Conversion

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""torch's names of the dtypes that `--dtype` accepts."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of a writer, besides the model."""

    dtype: torch.dtype | None = None
    """Dtype of the written weights; None keeps the stored one."""
    tokenizer: str | None = None
    """The tokenizer to include: "bytes", or the path of a SentencePiece model; None includes none."""
    first_token: FirstToken = "bos"
    """The token before each document in training."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format: recognising, reading and writing its folders."""

    is_at: Callable[[Path], bool]
    """Returns whether a path has this format; looks at file names only."""
    read_config: Callable[[Path], ModelConfig]
    """Returns the architecture, without torch; raises `UserError` if the folder is not whole."""
    open: Callable[[Path], StoredModel]
    """Returns the model; raises `UserError` if the folder is not whole."""
    write: Callable[[StoredModel, Path, ExportOptions], None]
    """Writes a model into an existing, empty folder."""
    files: tuple[str, ...]
    """Patterns of all file names that an export may have."""


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name in `DTYPES`."""
    import torch

    return getattr(torch, DTYPES[name])


def copy_tokenizer(tokenizer: str | None, folder: Path) -> None:
    """Copy a SentencePiece model into a folder; nothing to copy for "bytes" or None."""
    if tokenizer not in (None, BYTES):
        shutil.copyfile(tokenizer, folder / TOKENIZER)


def staged(stored: StoredModel, folder: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return all weights by our names, converted to `dtype`, each mapped from its own file in `folder`.

    `torch.save` needs all tensors at once. The system can drop the pages of mapped tensors and read them again, so a
    model larger than the memory can be saved.

    Raises:
        OSError: the disk is full.
        UserError: a value is not finite, or `dtype` cannot hold it.
    """
    import torch
    from tqdm import tqdm

    weights, conversion = {}, Conversion(dtype=dtype)
    for index, name in enumerate(tqdm(shapes_by_name(stored.config), desc="reading", unit="weight", disable=None)):
        weight, path = conversion.converted(stored.read(name), name=name), folder / str(index)
        weight_dtype = weight.dtype
        with path.open("wb") as file:  # a full disk raises an error here; a write to a mapped page would end in SIGBUS
            os.posix_fallocate(file.fileno(), 0, weight.numel() * weight_dtype.itemsize)
        mapped = torch.from_file(str(path), shared=True, size=weight.numel(), dtype=weight_dtype)
        weights[name] = mapped.view(weight.shape).copy_(weight)
    conversion.finish(heading=f"{stored.path} cannot be converted")
    return weights
