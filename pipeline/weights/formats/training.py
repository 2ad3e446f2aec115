"""Training checkpoints as a format: their fp32 weights, whatever the ZeRO stage, pipeline or number of ranks.

A written checkpoint belongs to no run: it is at step 0 and has no Adam moments. Runs can start from it with
`model.init_from`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.command_line import UserError, say
from common.files import sha256_of_file
from common.shard_format import METADATA, parse_metadata
from common.small_files import read_small_file
from common.tokenizers import BYTES
from pipeline.config.model import ModelConfig
from pipeline.config.schema import DataConfig
from pipeline.config.shard_folder import KEPT_METADATA, folder_here
from pipeline.weights.formats.export import ExportOptions, Format, copy_tokenizer, staged
from pipeline.weights.formats.record import FirstToken, read_record
from pipeline.weights.formats.stored_model import (
    TOKENIZER,
    Provenance,
    StoredModel,
    described_model,
    first_token_in,
    read_json_object,
    shapes_by_name,
    tokenizer_in,
    whole,
)

# The token before each document, by what the shards' metadata says about the ends of documents.
_FIRST_TOKENS: dict[str, FirstToken] = {"eos": "eos", "both": "bos", "none": "none"}
_MOST_METADATA_BYTES = 256 << 20  # it names every source
_STATE, _CHECKPOINTS = "training_state.json", "checkpoints"


def find_checkpoint(path: Path) -> Path:
    """Return `path` if it is a checkpoint, or the newest whole checkpoint if it is a run directory.

    Raises:
        UserError: the checkpoint is damaged, or the run directory has no whole checkpoint.
    """
    from pipeline.weights.checkpoint.folder import damage_of, newest_whole_checkpoint

    if (path / _STATE).is_file():
        damage = damage_of(path)
        if damage is not None:
            raise UserError(f"{path} is damaged: {damage}; give the run directory instead to use an older checkpoint")
        return path
    checkpoint = newest_whole_checkpoint(path / _CHECKPOINTS)
    if checkpoint is None:
        raise UserError(f"{path} has no whole checkpoint in its {_CHECKPOINTS}/ yet")
    return checkpoint


def read_config(path: Path) -> ModelConfig:
    """Return the architecture of a checkpoint, or of the newest whole one of a run; hashes all its files.

    Raises:
        UserError: there is no whole checkpoint, or it describes no model.
    """
    return open_checkpoint(path).config


def open_checkpoint(path: Path) -> StoredModel:
    """Return the model of a checkpoint, or of the newest whole checkpoint of a run.

    Raises:
        UserError: there is no whole checkpoint, it lacks weights of its config, or it holds more than tensors.
    """
    from pipeline.weights.checkpoint.folder import SHARDED, read_checkpoint
    from pipeline.weights.checkpoint.state import weight_reader

    checkpoint = find_checkpoint(path)
    state = read_checkpoint(checkpoint).state
    sections = state["config"]
    if "model" not in sections or not all(isinstance(section, dict) for section in sections.values()):
        raise UserError(f"{checkpoint / _STATE} describes no model")
    config = described_model(sections["model"], source=f"{checkpoint / _STATE}, config.model")
    read = weight_reader(checkpoint / SHARDED, shapes_by_name(config))
    if "data" not in sections:  # a checkpoint of no run
        record = read_record(checkpoint)
        return StoredModel(
            path=checkpoint,
            config=config,
            read=read,
            tokenizer=tokenizer_in(checkpoint),
            first_token=first_token_in(checkpoint),
            seq_len=None if record is None else record.seq_len,
        )
    run_dir = checkpoint.parent.parent
    metadata, tokenizer = _shards_of(run_dir, sections["data"])
    return StoredModel(
        path=checkpoint,
        config=config,
        read=read,
        tokenizer=tokenizer,
        first_token=_FIRST_TOKENS.get(str((metadata or {}).get("document_ends", "eos"))),
        seq_len=whole(sections["data"].get("seq_len")),
        provenance=Provenance(
            step=whole(state["step"]),
            tokens=whole(state.get("tokens")),
            config=sections,
            deepspeed_config=_json_or_none(run_dir / "ds_config.json"),
            environment=_json_or_none(run_dir / "environment.json"),
            shards=metadata,
        ),
    )


def _shards_of(run_dir: Path, data: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """Return the metadata and the tokenizer of a run's shards; warn if they are not found.

    Runs keep both. For runs of earlier versions they are read beside the shards, if those are on this machine.
    """
    source = DataConfig(shards=str(data.get("shards", "")), cache=str(data.get("cache", "")))
    folder, name = (run_dir, KEPT_METADATA)
    if not (folder / name).is_file():
        folder, name = folder_here(source) or run_dir, METADATA
    path = folder / name
    if not path.is_file():
        say(
            f"warning: {run_dir} keeps no tokenizer, as runs of earlier versions, and its shards, {source.shards}, are"
            " not on this machine",
            file=sys.stderr,
        )
        return None, None
    metadata = parse_metadata(read_small_file(path, most_bytes=_MOST_METADATA_BYTES), path=path)
    if metadata["tokenizer"]["kind"] == BYTES:
        return metadata, BYTES
    tokenizer = tokenizer_in(folder)
    if tokenizer is not None and sha256_of_file(Path(tokenizer)) != metadata["tokenizer"]["sha256"]:
        say(f"warning: {tokenizer} is not the tokenizer of the run's shards; it is left out", file=sys.stderr)
        tokenizer = None
    return metadata, tokenizer


def _json_or_none(path: Path) -> dict[str, Any] | None:
    return read_json_object(path) if path.is_file() else None


def write_checkpoint(stored: StoredModel, folder: Path, options: ExportOptions) -> None:
    """Write a whole checkpoint of step 0 into an existing folder; needs twice the disk space while it writes.

    Raises:
        UserError: a dtype other than fp32 is asked for.
    """
    import torch

    from pipeline.weights.checkpoint.folder import SHARDED, seal_checkpoint
    from pipeline.weights.checkpoint.state import save_weights

    if options.dtype not in (None, torch.float32):
        raise UserError(f"--dtype {options.dtype}: training checkpoints are always fp32; leave it out")
    with TemporaryDirectory(dir=folder, prefix=".staged-") as scratch:
        save_weights(folder / SHARDED, staged(stored, Path(scratch), torch.float32))
    copy_tokenizer(options.tokenizer, folder)
    model = dataclasses.asdict(stored.config)
    seal_checkpoint(folder, {"step": 0, "tokens": 0, "config": {"model": model}})


FORMAT = Format(
    is_at=lambda path: (path / _STATE).is_file() or (path / _CHECKPOINTS).is_dir(),
    read_config=read_config,
    open=open_checkpoint,
    write=write_checkpoint,
    files=(_STATE, "manifest.json", "weights_and_moments", TOKENIZER),
)
