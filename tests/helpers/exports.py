"""Folders of weights for tests: checkpoints like those of training, and exports of tiny models."""

import json
import warnings
from pathlib import Path

import torch.distributed.checkpoint as dcp
import xxhash
from torch import Tensor

from pipeline.config.schema import Config, DataConfig
from pipeline.model.network import MultiTokenModel
from pipeline.weights.checkpoint.folder import SHARDED
from pipeline.weights.formats.detect import FORMATS
from pipeline.weights.formats.export import ExportOptions
from pipeline.weights.formats.stored_model import StoredModel


def write_checkpoint(folder: Path, model: MultiTokenModel, *, shards: Path | str = "shards") -> None:
    """Write a whole checkpoint folder like those of training, but without Adam's moments."""
    folder.mkdir(parents=True)
    config = Config(model=model.config, data=DataConfig(shards=str(shards), seq_len=64))
    (folder / "training_state.json").write_text(json.dumps({"step": 7, "tokens": 448, "config": config.as_dict()}))
    state = {f"{name}/fp32": weight for name, weight in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(state, checkpoint_id=folder / SHARDED, no_dist=True)
    manifest = {
        str(path.relative_to(folder)): {
            "bytes": path.stat().st_size,
            "xxh64": xxhash.xxh64(path.read_bytes()).hexdigest(),
        }
        for path in folder.rglob("*")
        if path.is_file()
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def in_memory(model: MultiTokenModel) -> StoredModel:
    """Return a model in memory as a stored model."""
    weights: dict[str, Tensor] = dict(model.state_dict())
    return StoredModel(path=Path("memory"), config=model.config, read=weights.__getitem__)


def exported(folder: Path, model: MultiTokenModel, *, to: str = "meta", options: ExportOptions | None = None) -> Path:
    """Write a model into a new folder in one of the formats; return the folder."""
    folder.mkdir()
    FORMATS[to].write(in_memory(model), folder, options or ExportOptions())
    return folder
