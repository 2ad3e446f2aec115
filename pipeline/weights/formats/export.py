"""What every format offers, what its writer is told, and the steps that the writers share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.tokenizers import BYTES
from pipeline.config.model import ModelConfig
from pipeline.weights.formats.stored_model import TOKENIZER, StoredModel, shapes_by_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


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
    open: Callable[[Path], StoredModel]
    write: Callable[[StoredModel, Path, ExportOptions], None]
    files: tuple[str, ...]


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype that `--dtype` names; see `DTYPES`."""
    import torch

    return getattr(torch, DTYPES[name])


def copy_tokenizer(tokenizer: str | None, folder: Path) -> None:
    """Put a SentencePiece model into a folder; bytes need none."""
    if tokenizer not in (None, BYTES):
        shutil.copyfile(tokenizer, folder / TOKENIZER)


def staged(stored: StoredModel, folder: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return all weights by our names, cast, each mapped from a file of its own in `folder`.

    `torch.save` and its kin want every tensor at once; mapped ones take no memory that the system cannot have back.
    """
    import torch
    from tqdm import tqdm

    weights = {}
    for index, name in enumerate(tqdm(shapes_by_name(stored.config), desc="reading", unit="weight", disable=None)):
        weight = stored.read(name)
        weight_dtype, path = dtype or weight.dtype, folder / str(index)
        with path.open("wb") as file:  # a full disk is an error here; in a mapped page it would be SIGBUS
            os.posix_fallocate(file.fileno(), 0, weight.numel() * weight_dtype.itemsize)
        mapped = torch.from_file(str(path), shared=True, size=weight.numel(), dtype=weight_dtype)
        weights[name] = mapped.view(weight.shape).copy_(weight)
    return weights
