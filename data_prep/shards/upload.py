"""Copying finished shards to S3: each file verified here and there, the copy resumable, metadata.json last."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.command_line import UserError, say
from common.files import sha256_of_file
from common.s3 import S3Path
from common.shard_format import (
    INDEX,
    METADATA,
    TOKENIZER_MODEL,
    file_fault,
    read_finished_file,
    read_index,
    read_metadata,
)
from common.wording import counted
from data_prep.shards.tally import REPORT

_UPLOADING = "uploading.json"  # identifies the shards while their copy is incomplete: hashes of all other small files
_FILES_AT_ONCE = 4  # each of up to 64 MiB, which boto3 sends in pieces


def upload(root: Path, remote: S3Path) -> None:
    """Copy finished shards to `remote`, or the rest of them if an earlier copy was interrupted.

    Raises:
        UserError: the shards are unfinished or damaged, or the storage refuses them or holds something else.
    """
    shards = _shard_files(root)
    others = [name for name in (REPORT, TOKENIZER_MODEL) if (root / name).exists()]
    others += [str(path.relative_to(root)) for path in sorted(root.glob(f"*/{INDEX}"))]
    identity = json.dumps({name: sha256_of_file(root / name) for name in (METADATA, *others)}).encode()
    metadata = read_finished_file(root, METADATA)
    stored = refuse_foreign_content(remote)

    def is_stored(name: str, content: bytes) -> bool:
        return stored.get(name) == len(content) and (remote / name).read_bytes() == content

    if is_stored(METADATA, metadata):
        say(f"{remote} has these shards already; nothing to do")
        return
    if METADATA in stored or (stored and not is_stored(_UPLOADING, identity)):
        raise UserError(f"{remote} holds other shards than {root}; choose another prefix, or empty it")
    (remote / _UPLOADING).write_bytes(identity)
    missing = {name: entry for name, entry in shards.items() if stored.get(name) != entry["bytes"]}
    present = {name: entry for name, entry in shards.items() if name not in missing}
    missing |= _stored_otherwise(present, root, remote)
    n_bytes = sum(entry["bytes"] for entry in missing.values())
    _send_shards(missing, root, remote, n_bytes=n_bytes)
    for name in others:
        (remote / name).upload(root / name)
    (remote / METADATA).write_bytes(metadata)
    (remote / _UPLOADING).unlink()
    already = f", {len(shards) - len(missing)} there already" if len(missing) < len(shards) else ""
    say(f"{remote} is finished: {counted(len(missing), 'file')} of shards sent, {n_bytes / 1e6:,.1f} MB{already}")


def refuse_foreign_content(remote: S3Path) -> dict[str, int]:
    """Return the names and sizes of the objects at `remote`, which is empty or holds a complete or partial copy.

    Raises:
        UserError: it holds something else.
    """
    stored = remote.sizes()
    if stored and not {METADATA, _UPLOADING} & stored.keys():
        raise UserError(
            f"{remote} is not empty, and does not hold shards (it holds {min(stored)}); choose another prefix"
        )
    return stored


def _shard_files(root: Path) -> dict[str, dict[str, Any]]:
    """Return the index entry of each file of shards, by its path in the folder."""
    files = {}
    for split in read_metadata(root)["splits"]:
        for shard in read_index(root / split, strict=True):
            entry = shard.get("zip_data") or shard["raw_data"]
            files[f"{split}/{entry['basename']}"] = entry
    return files


def _stored_otherwise(entries: dict[str, dict[str, Any]], root: Path, remote: S3Path) -> dict[str, dict[str, Any]]:
    """Return the entries of files that an earlier, interrupted copy stored with other bytes than they have now."""
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        differences = pool.map(lambda name: (remote / name).difference(root / name), entries)
        return {name: entries[name] for name, difference in zip(entries, differences, strict=True) if difference}


def _send_shards(entries: dict[str, dict[str, Any]], root: Path, remote: S3Path, *, n_bytes: int) -> None:
    with tqdm(desc="uploading", total=n_bytes, unit="B", unit_scale=True, mininterval=1.0) as bar:

        def send(name: str) -> None:
            _verify(root / name, entries[name])
            (remote / name).upload(root / name, progress=bar.update)

        pool = ThreadPoolExecutor(_FILES_AT_ONCE)
        try:
            list(pool.map(send, entries))
        finally:
            pool.shutdown(cancel_futures=True)


def _verify(path: Path, entry: dict[str, Any]) -> None:
    if fault := file_fault(path, n_bytes=entry["bytes"], hashes=entry["hashes"]):
        raise UserError(f"{fault}; nothing more is sent: write the shards again")
