"""Small checkpoint folders as the module `pipeline.weights.checkpoint.folder` describes them, written independently."""

import json
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import xxhash


def _weights() -> dict[str, bytes]:
    """Return the files that torch writes for one tensor, by name."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save({"weight/fp32": torch.arange(1000.0)}, checkpoint_id=folder, no_dist=True)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


FILES = {
    **{f"weights_and_moments/{name}": contents for name, contents in sorted(_weights().items())},
    "training_state.json": b'{"step": 1, "config": {}}',
}


def write_checkpoint(directory: Path, step: int, *, files: dict[str, bytes] = FILES) -> Path:
    """Write a whole checkpoint of these files into `directory`; return its folder."""
    path = directory / f"step_{step:08d}"
    for name, contents in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(contents)
    manifest = {
        name: {"bytes": len(contents), "xxh64": xxhash.xxh64(contents).hexdigest()} for name, contents in files.items()
    }
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return path


def flip_one_bit(file: Path) -> None:
    """Damage a file."""
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)
