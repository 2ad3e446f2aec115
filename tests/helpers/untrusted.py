"""Files that an attacker could have made to run code or to exhaust memory."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pipeline.weights.checkpoint.files import METADATA
from pipeline.weights.checkpoint.folder import SHARDED
from pipeline.weights.checkpoint.manifest import entries_of, files_in, write_manifest

OUTSIDE = ("../elsewhere", "/etc/passwd", "a/../../b", "", ".", "a\0b", 7)
"""Names that are not files in a folder."""


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self._witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._witness,)


def witness_in(folder: Path) -> Path:
    """Return the path of the file that a `Hostile` creates, after checking that it does."""
    path = folder / "witness"
    pickle.loads(pickle.dumps(Hostile(path)))
    path.unlink()
    return path


def reseal(checkpoint: Path) -> None:
    """Write a new manifest for a changed checkpoint, as an attacker would."""
    write_manifest(checkpoint, entries_of(checkpoint, files_in(checkpoint)))


def change_metadata(checkpoint: Path, change: Callable[[Any], Any]) -> None:
    """Change the metadata in place, or replace it by what `change` returns, and reseal the checkpoint."""
    path = checkpoint / SHARDED / METADATA
    found = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(change(found) or found))
    reseal(checkpoint)


def tiny_recipe(folder: Path, *, shards: Path) -> Path:
    """Write the recipe of a run of two steps in `folder`/runs/tiny."""
    path = folder / "tiny.yaml"
    values = {
        "run": {"dir": str(folder / "runs"), "name": "tiny"},
        "model": {"dim": 32, "n_layers": 6, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 258, "multiple_of": 16},
        "data": {"shards": str(shards), "seq_len": 32, "num_workers": 1, "num_canonical_nodes": 1},
        "train": {"total_tokens": 256, "batch_tokens": 128, "micro_batch_size": 2, "eval_every_steps": 2},
        "optim": {"warmup_steps": 1},
        "log": {"every_steps": 1},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path
