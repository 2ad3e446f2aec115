"""The run's shard folder: where it is on this node, and whether it fits the recipe.

Shards in S3 are mirrored. `data.cache` holds one folder for each set of shards that was read through it, named by a
hash of their address and their metadata.json, so that different shards never mix, even if new shards replaced others
at the same address. metadata.json, the indexes and the tokenizer are fetched when a run starts; each shard is fetched
when it is first read (`data/storage.py`) and compared with its hash in the index before it gets its final name. Files
of an earlier run are used again.

Every rank does this by itself, at the same time as the other ranks of its node: a file appears whole or not at all.
"""

import functools
import hashlib
import shutil
from pathlib import Path
from typing import Any

from common.command_line import UserError
from common.files import inside, sha256_of_file, write_json, written_whole
from common.s3 import MissingObjectError, S3Path, is_remote
from common.shard_format import INDEX, METADATA, TOKENIZER_MODEL, parse_metadata, read_finished_file
from common.tokenizers import BYTES, load_tokenizer
from common.wording import counted
from pipeline.config.schema import Config, DataConfig, LogConfig, TrainConfig

KEPT_METADATA = "shards.json"
"""The name in a run directory of the shards' metadata.json."""


def local_folder(data: DataConfig) -> Path:
    """Return the folder of the shards on this node: `data.shards` itself, or the mirror of shards in S3.

    Raises:
        UserError: data.cache is missing where it is needed or set where it is not, or the shards in S3 cannot be
            fetched or are not finished.
    """
    if not is_remote(data.shards):
        if data.cache:
            raise UserError(
                f"data.cache={data.cache} is for s3:// only, but data.shards={data.shards} is read in place"
            )
        return Path(data.shards)
    if not data.cache:
        raise UserError(f"data.shards={data.shards} needs data.cache, a folder on each node's own disk")
    return _mirror(data.shards, Path(data.cache))


def folder_here(data: DataConfig) -> Path | None:
    """Return the folder of the shards if it is on this node already; None if it would have to be fetched.

    For the shards that a checkpoint names: where it comes from is not known, so it must not decide with whom this
    machine speaks, or what is written where.
    """
    if "://" not in data.shards:
        return Path(data.shards)
    cached = Path(data.cache).glob("*") if data.cache else ()
    return next((folder for folder in cached if _is_mirror(folder, of=data.shards)), None)


def keep_tokenizer(run_dir: Path, *, data: DataConfig, metadata: dict[str, Any]) -> None:
    """Copy the shards' metadata and tokenizer into the run directory, so that exports need the shards no more.

    Raises:
        OSError: the run directory cannot be written.
    """
    tokenizer = local_folder(data) / TOKENIZER_MODEL
    if tokenizer.is_file():
        with written_whole(run_dir / TOKENIZER_MODEL) as partial:
            shutil.copyfile(tokenizer, partial)
    write_json(run_dir / KEPT_METADATA, metadata)


def corpus_of(data: DataConfig, metadata: dict[str, Any]) -> dict[str, str]:
    """Return what tells the training data of these shards from any other: hashes of the tokenizer and of the index.

    The index has a hash of every shard, so it is the same for copies, wherever they lie.
    """
    index = local_folder(data) / "train" / INDEX
    try:
        of_index = sha256_of_file(index)
    except OSError as error:
        raise UserError(f"{index} cannot be read: {error.strerror}; write the shards again") from error
    return {"tokenizer": metadata["tokenizer"]["sha256"], "train split": of_index}


def remote_split(data: DataConfig, split: str) -> S3Path | None:
    """Return the S3 address from which the shards of a split are fetched; None if they are on a disk."""
    return S3Path(data.shards) / split if is_remote(data.shards) else None


@functools.cache
def _mirror(shards: str, cache: Path) -> Path:
    remote = S3Path(shards)
    remote.check_bucket()
    stored = read_finished_file(remote, METADATA)
    metadata = parse_metadata(stored, path=remote / METADATA)
    folder = cache / _name_of_mirror(str(remote), stored)
    wanted = [f"{split}/{INDEX}" for split in metadata["splits"]]
    wanted += [METADATA] if metadata["tokenizer"]["kind"] == BYTES else [TOKENIZER_MODEL, METADATA]
    for name in wanted:
        path = inside(folder, name, named_in=METADATA)
        if not path.exists():
            _fetch(remote / name, path, cache=cache)
    return folder


def _name_of_mirror(remote: str, metadata: bytes) -> str:
    return hashlib.sha256(f"{remote}\0".encode() + metadata).hexdigest()[:16]


def _is_mirror(folder: Path, *, of: str) -> bool:
    try:
        stored = read_finished_file(folder, METADATA)
    except UserError:
        return False
    return folder.name == _name_of_mirror(of.rstrip("/"), stored)


def _fetch(file: S3Path, path: Path, *, cache: Path) -> None:
    try:
        file.download(path)
    except MissingObjectError as error:
        raise UserError(f"{file} does not exist; write the shards again") from error
    except OSError as error:
        raise UserError(f"data.cache={cache} cannot be written: {error.strerror}") from error


def shard_problems(metadata: dict[str, Any], config: Config, *, data_ranks: int) -> list[str]:
    """Return the contradictions between the shards and the recipe, one line each."""
    problems = []
    if metadata["seq_len"] != config.data.seq_len:
        problems.append(f"data.seq_len={config.data.seq_len}, but the shards have seq_len={metadata['seq_len']}")
    if metadata["vocab_size"] != config.model.vocab_size:
        problems.append(
            f"model.vocab_size={config.model.vocab_size}, but the shards' tokenizer has {metadata['vocab_size']}"
        )
    if config.model.n_future_tokens > metadata["lookahead"]:
        problems.append(
            f"model.n_future_tokens={config.model.n_future_tokens} is more than the shards' lookahead="
            f"{metadata['lookahead']}; write shards with a larger --lookahead"
        )
    tokenizer = local_folder(config.data) / TOKENIZER_MODEL
    if tokenizer.exists() and sha256_of_file(tokenizer) != metadata["tokenizer"]["sha256"]:
        problems.append(f"{tokenizer} is not the tokenizer that wrote the shards (its SHA-256 differs from {METADATA})")
    if config.log.previews_every_steps:
        problems += preview_problems(metadata, data=config.data, log=config.log)
    windows = {split: metadata["splits"].get(split, {}).get("windows", 0) for split in ("train", "val")}
    per_step = config.train.batch_tokens // config.data.seq_len
    per_micro_step = config.train.micro_batch_size * data_ranks
    if windows["train"] < per_step:
        problems.append(
            f"the train split has {counted(windows['train'], 'window')}, but one step takes {per_step}; write more data"
        )
    elif windows["train"] < config.data.num_canonical_nodes:  # mosaicml-streaming deals windows to each of them
        problems.append(
            f"data.num_canonical_nodes={config.data.num_canonical_nodes} needs as many train windows, but there are"
            f" {windows['train']}; set it to 1"
        )
    if config.train.eval_every_steps and windows["val"] < per_micro_step:
        problems.append(
            f"the val split has {counted(windows['val'], 'window')}, but one micro batch on "
            f"{counted(data_ranks, 'replica')} takes "
            f"{per_micro_step}; write more data or set train.eval_every_steps=0"
        )
    return problems


def preview_problems(metadata: dict[str, Any], *, data: DataConfig, log: LogConfig) -> list[str]:
    """Return why previews cannot be made with the tokenizer and the sequence length of these shards, one line each."""
    name = tokenizer_name(local_folder(data), metadata)
    if name != BYTES and not Path(name).exists():
        return [f"log.previews_every_steps needs {name}, which does not exist; set it to 0"]
    try:
        tokenizer = load_tokenizer(name)
    except UserError as error:
        return [f"log.previews_every_steps: {error}"]
    longest = 1 + max(len(tokenizer.encode(text)) for text in log.prompts) + log.preview_tokens
    if longest <= data.seq_len:
        return []
    return [
        f"log.prompts: the longest takes {longest} tokens, including EOS before it and log.preview_tokens="
        f"{log.preview_tokens} after it, but data.seq_len={data.seq_len}; shorten one of them"
    ]


def tokenizer_name(shards: Path, metadata: dict[str, Any]) -> str:
    """Return the name of the shards' tokenizer, as `load_tokenizer` takes it."""
    return BYTES if metadata["tokenizer"]["kind"] == BYTES else str(shards / TOKENIZER_MODEL)


def evaluation_windows(metadata: dict[str, Any], train: TrainConfig, *, data_ranks: int) -> int:
    """Return the number of windows in each validation: whole micro batches on every rank, at least one."""
    per_micro_step = train.micro_batch_size * data_ranks
    wanted = min(train.eval_tokens // metadata["seq_len"], metadata["splits"]["val"]["windows"])
    return max(1, wanted // per_micro_step) * per_micro_step
