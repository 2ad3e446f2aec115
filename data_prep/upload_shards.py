"""Copy finished shards to S3, or what speaks its protocol, where pipeline.train reads them.

1. Every file is compared with its hash in index.json before it is sent; several go at once.
2. uploading.json, sent first, says which shards these are: hashes of the indexes, which have those of all files.
   Another copy of the same shards goes on where a killed one stopped; other shards are refused.
3. metadata.json is sent last: where it is, all else is.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.command_line import UserError, command_parser, exit_on_user_error
from common.files import sha256_of_file
from common.s3 import SCHEME, S3Path, folder_at
from data_prep.report import REPORT
from data_prep.shards.folder import INDEX, METADATA, TOKENIZER_MODEL
from data_prep.shards.reader import DamagedShardError, read_metadata, shards_of, verify

_SEAL = "uploading.json"
_FILES_AT_ONCE = 4  # each of up to 64 MiB, which boto3 cuts into pieces
_EXAMPLES = """example:
  python -m data_prep.upload_shards data/code s3://bucket/code"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the shards are not finished or damaged, or the storage refuses or holds something else.
    """
    parser = command_parser("data_prep.upload_shards", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what write_shards was given as --out")
    parser.add_argument("remote", metavar=f"{SCHEME}BUCKET/PREFIX", help="where to")
    arguments = parser.parse_args(argv)
    remote = folder_at(arguments.remote)
    if not isinstance(remote, S3Path):
        raise UserError(f"{arguments.remote!r} is no {SCHEME}BUCKET/PREFIX")
    upload(arguments.folder, remote)


def upload(root: Path, remote: S3Path) -> None:
    """Send finished shards, or what is missing of them there.

    Raises:
        UserError: the shards are not finished or damaged, or the storage refuses or holds something else.
    """
    shards = _shard_files(root)
    others = [name for name in (REPORT, TOKENIZER_MODEL) if (root / name).exists()]
    others += [str(path.relative_to(root)) for path in sorted(root.glob(f"*/{INDEX}"))]
    seal = json.dumps({name: sha256_of_file(root / name) for name in (METADATA, *others)}).encode()
    there = refuse_others(remote)
    if METADATA in there and (remote / METADATA).read_bytes() == (root / METADATA).read_bytes():
        print(f"{remote} has these shards already; nothing to do")
        return
    if METADATA in there or (there and (remote / _SEAL).read_bytes() != seal):
        raise UserError(f"{remote} holds other shards than {root}; choose another prefix, or empty it")
    (remote / _SEAL).write_bytes(seal)
    missing = [name for name, info in shards.items() if there.get(name) != info["bytes"]]
    n_bytes = sum(shards[name]["bytes"] for name in missing)
    with tqdm(desc="uploading", total=n_bytes, unit="B", unit_scale=True, mininterval=1.0) as bar:

        def send(name: str) -> None:
            _check(root / name, shards[name])
            (remote / name).upload(root / name, progress=bar.update)

        pool = ThreadPoolExecutor(_FILES_AT_ONCE)
        try:
            list(pool.map(send, missing))
        finally:
            pool.shutdown(cancel_futures=True)
    for name in others:
        (remote / name).upload(root / name)
    (remote / METADATA).write_bytes((root / METADATA).read_bytes())
    (remote / _SEAL).unlink()
    already = f", {len(shards) - len(missing)} were there" if len(missing) < len(shards) else ""
    print(f"{remote} is finished: {len(missing)} files of shards sent, {n_bytes / 1e6:,.1f} MB{already}")


def refuse_others(remote: S3Path) -> dict[str, int]:
    """Return the names and sizes of what is there, all of which begins to be, or is, a copy of shards.

    Raises:
        UserError: there is something else.
    """
    there = remote.sizes()
    if there and not {METADATA, _SEAL} & there.keys():
        raise UserError(f"{remote} is not empty and no shards of ours (it holds {min(there)}); choose another prefix")
    return there


def _shard_files(root: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of all files of shards in the indexes, by their path in the folder."""
    files = {}
    for split in read_metadata(root)["splits"]:
        try:
            shards = shards_of(root / split)
        except DamagedShardError as error:
            raise UserError(f"{error}; write the shards again") from error
        for shard in shards:
            info = shard["zip_data"] or shard["raw_data"]
            files[f"{split}/{info['basename']}"] = info
    return files


def _check(path: Path, info: dict[str, Any]) -> None:
    try:
        verify(path.read_bytes(), info, path)
    except (DamagedShardError, OSError) as error:
        raise UserError(f"{error}; nothing more is sent: write the shards again") from error


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.upload_shards")
