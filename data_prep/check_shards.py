"""Check finished shards: every file's size and hash, every window, every count; show what is in them.

Reads the MDS files by itself rather than through streaming, so that it is a second opinion, and starts at once.
An MDS file is: uint32 n, uint32 offsets[n + 1], a JSON header, then the samples, here of uint16[seq_len + lookahead],
twice where windows have document ids, which come first.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard
from tqdm import tqdm

from common.command_line import UserError, exit_on_user_error, raise_if_any
from common.files import inside, sha256_of_file
from common.tokenizers import BYTES, Tokenizer, load_tokenizer
from data_prep.packing import TokenArray, WindowShape
from data_prep.shard_folder import FORMAT_VERSION, INDEX, METADATA, TOKENIZER_MODEL

_EOS_MARK = "⟦EOS⟧"
_LARGEST_FILE = 1 << 32  # an MDS file's offsets are uint32
_EXAMPLES = """examples:
  python -m data_prep.check_shards data/code
  python -m data_prep.check_shards data/code --sample 3"""


class DamagedShardError(Exception):
    """A file of the shards is not what its index says; the message names it and says how."""


@dataclass
class SplitReport:
    """What was found in one split. `first_windows` holds for each shard the number of windows before it."""

    shards: int = 0
    windows: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the folder holds no finished shards, or something in it is wrong; every problem is listed.
    """
    arguments = _parse(argv)
    root: Path = arguments.folder
    if arguments.sample < 0:
        raise UserError(f"--sample must be at least 0, not {arguments.sample}")
    metadata = read_metadata(root)
    tokenizer, problems = _tokenizer_of(root, metadata)
    print(f"{'split':<8}{'documents':>14}{'tokens':>18}{'windows':>14}{'shards':>9}{'MB on disk':>12}  result")
    for split, expected in metadata["splits"].items():
        report = check_split(root / split, metadata, expected_windows=expected["windows"])
        print(
            f"{split:<8}{expected['documents']:>14,}{expected['tokens']:>18,}{report.windows:>14,}{report.shards:>9,}"
            f"{report.bytes / 1e6:>12,.1f}  {f'{len(report.problems)} problems' if report.problems else 'ok'}"
        )
        problems += report.problems
    raise_if_any(problems, heading=f"{root} is damaged")
    if arguments.sample and tokenizer is not None:
        for split in metadata["splits"]:
            _print_sample(root / split, metadata, tokenizer, n_windows=arguments.sample)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.check_shards",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="what write_shards was given as --out")
    sample_help = f"show the text of N windows of each split, evenly spread; {_EOS_MARK} ends a document"
    parser.add_argument("--sample", type=int, default=0, metavar="N", help=sample_help)
    return parser.parse_args(argv)


def read_metadata(root: Path) -> dict[str, Any]:
    """Return metadata.json of finished shards.

    Raises:
        UserError: it is missing, damaged, or of another version; or a split's name leads out of the folder.
    """
    path = root / METADATA
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        version = metadata.get("format_version")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: not a folder of write_shards, or not finished (run it again)") from error
    except (ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{path} is not JSON of shards ({error}); write the shards again") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format_version {version}, this program {FORMAT_VERSION}")
    try:
        sizes = [metadata[key] for key in ("seq_len", "lookahead", "vocab_size")]
        counts = []
        for split, of_split in metadata["splits"].items():
            inside(root, split, named_in=METADATA)
            counts += [of_split[key] for key in ("documents", "tokens", "windows")]
        tokenizer = [metadata["tokenizer"][key] for key in ("kind", "sha256")]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not describe shards ({error!r}); write the shards again") from error
    are_numbers = all(isinstance(number, int) and number >= 0 for number in sizes + counts)
    if not are_numbers or 0 in sizes or not all(map(_is_text, tokenizer)):
        raise UserError(f"{path} does not describe shards ({sizes}, {counts}, {tokenizer}); write the shards again")
    return dict(metadata)


def check_split(folder: Path, metadata: dict[str, Any], *, expected_windows: int) -> SplitReport:
    """Check every shard of one split, and the overlap of consecutive windows of a part, across its shards too."""
    shape = WindowShape(metadata["seq_len"], metadata["lookahead"])
    report = SplitReport()
    try:
        shards = _shards_of(folder)
    except DamagedShardError as error:
        report.problems.append(str(error))
        return report
    last_part, tail = "", np.empty(0, dtype=np.uint16)
    for shard in tqdm(shards, desc=f"checking {folder.name}", unit="shard", leave=False):
        path = folder / shard["raw_data"]["basename"]
        report.shards += 1
        try:
            raw, n_bytes = _verified_bytes(folder, shard)
            document_ids, windows = _columns_in(raw, shape, metadata, n_windows=shard["samples"], path=path)
        except DamagedShardError as error:
            report.problems.append(str(error))
            last_part = ""
            continue
        report.windows += len(windows)
        report.bytes += n_bytes
        if windows.max() >= metadata["vocab_size"]:
            report.problems.append(f"{path} holds id {windows.max()}, beyond vocab_size {metadata['vocab_size']}")
        if document_ids is not None and not _count_documents(document_ids, windows, metadata):
            report.problems.append(f"{path}: the document ids do not count the documents of each window from 0")
        part = shard["raw_data"]["basename"].partition("/")[0]
        heads = windows[:, : shape.lookahead]
        tails = windows[:, shape.seq_len :]
        if not np.array_equal(heads[1:], tails[:-1]) or (part == last_part and not np.array_equal(heads[0], tail)):
            report.problems.append(f"{path}: windows do not overlap by {shape.lookahead} tokens")
        last_part, tail = part, tails[-1]
    if not report.problems and report.windows != expected_windows:
        report.problems.append(f"{folder} holds {report.windows} windows; {METADATA} says {expected_windows}")
    return report


def _shards_of(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a split's index.json, each checked."""
    path = folder / INDEX
    try:
        shards: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["shards"]
        for shard in shards:
            _check_entry(folder, shard)
    except FileNotFoundError as error:
        raise DamagedShardError(f"{path} is missing") from error
    except UserError as error:
        raise DamagedShardError(str(error)) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedShardError(f"{path} is not an index of shards ({error!r})") from error
    return shards


def _check_entry(folder: Path, shard: dict[str, Any]) -> None:
    """Check one entry of index.json, whose values may be anything.

    Raises:
        UserError: a file is outside of the folder.
        KeyError, TypeError, ValueError: a value is missing, or is none that MDS can have.
    """
    infos = [shard[key] for key in ("raw_data", "zip_data") if shard[key] is not None]
    for info in infos:
        inside(folder, info["basename"], named_in=INDEX)
        if not _is_text(info["hashes"]["xxh64"]):
            raise TypeError(f"xxh64 {info['hashes']['xxh64']!r}")
    for number in (shard["samples"], *(info["bytes"] for info in infos)):
        if not isinstance(number, int) or not 0 < number < _LARGEST_FILE:
            raise ValueError(f"{number!r} samples or bytes in a shard")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _verified_bytes(folder: Path, shard: dict[str, Any]) -> tuple[bytes, int]:
    """Return the uncompressed bytes of a shard whose sizes and hashes are right, and its bytes on disk."""
    raw_info, zip_info = shard["raw_data"], shard["zip_data"]
    info = zip_info or raw_info
    path = folder / info["basename"]
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise DamagedShardError(f"{path} cannot be read: {error.strerror}") from error
    _verify(stored, info, path)
    if not zip_info:
        return stored, len(stored)
    try:  # a stream, since what is decompressed at once takes the room that the compressed file asks for
        raw = zstandard.ZstdDecompressor().stream_reader(stored).read(raw_info["bytes"] + 1)
    except zstandard.ZstdError as error:
        raise DamagedShardError(f"{path} cannot be decompressed ({error})") from error
    _verify(raw, raw_info, path)
    return raw, len(stored)


def _verify(data: bytes, info: dict[str, Any], path: Path) -> None:
    if len(data) != info["bytes"]:
        raise DamagedShardError(f"{path} has {len(data)} bytes, its index says {info['bytes']}")
    if xxhash.xxh64_hexdigest(data) != info["hashes"]["xxh64"]:
        raise DamagedShardError(f"{path}: its xxh64 hash is not the one in its index")


def _columns_in(
    raw: bytes, shape: WindowShape, metadata: dict[str, Any], *, n_windows: int, path: Path
) -> tuple[TokenArray | None, TokenArray]:
    """Return the columns of an MDS file, (windows, seq_len + lookahead): document ids, if there are any, and tokens."""
    n_columns = 2 if metadata.get("document_ids") else 1
    wrong = DamagedShardError(f"{path} does not hold {n_windows} windows of {shape.length} tokens")
    table = raw[4 : 4 * (n_windows + 2)]
    if int.from_bytes(raw[:4], "little") != n_windows or len(table) != 4 * (n_windows + 1):
        raise wrong
    offsets = np.frombuffer(table, dtype=np.uint32).astype(np.int64)
    if (np.diff(offsets) != 2 * n_columns * shape.length).any() or offsets[-1] != len(raw):
        raise wrong
    samples = np.frombuffer(raw, dtype=np.uint16, offset=int(offsets[0])).reshape(n_windows, n_columns, shape.length)
    return samples[:, 0] if n_columns == 2 else None, samples[:, -1]


def _count_documents(document_ids: TokenArray, windows: TokenArray, metadata: dict[str, Any]) -> bool:
    """Return whether the ids count from 0, by one after each EOS if documents end in one, else by at most one."""
    steps = np.diff(document_ids.astype(np.int32), axis=1)
    if metadata["document_ends"] in ("eos", "both"):
        is_right = steps == (windows[:, :-1] == metadata["tokenizer"]["eos_id"])
    else:
        is_right = (steps == 0) | (steps == 1)
    return bool(is_right.all()) and not document_ids[:, 0].any()


def _tokenizer_of(root: Path, metadata: dict[str, Any]) -> tuple[Tokenizer | None, list[str]]:
    expected = metadata["tokenizer"]
    path = root / TOKENIZER_MODEL
    if expected["kind"] == BYTES:
        return load_tokenizer(BYTES), []
    if not path.is_file():
        return None, [f"{path} is missing"]
    if sha256_of_file(path) != expected["sha256"]:
        return None, [f"{path} is not the tokenizer of these shards: its sha256 is not the one in {METADATA}"]
    return load_tokenizer(str(path)), []


def _print_sample(folder: Path, metadata: dict[str, Any], tokenizer: Tokenizer, *, n_windows: int) -> None:
    total = metadata["splits"][folder.name]["windows"]
    wanted = np.unique(np.linspace(0, total - 1, num=min(n_windows, total)).astype(int))
    for number, window in _windows_at(folder, metadata, wanted.tolist()):
        print(f"\n--- {folder.name}, window {number + 1:,} of {total:,} ---\n{marked_text(window, tokenizer)}")


def _windows_at(folder: Path, metadata: dict[str, Any], numbers: list[int]) -> Iterator[tuple[int, TokenArray]]:
    shape = WindowShape(metadata["seq_len"], metadata["lookahead"])
    first = 0
    for shard in _shards_of(folder):
        inside = [number for number in numbers if first <= number < first + shard["samples"]]
        if inside:
            raw, _ = _verified_bytes(folder, shard)
            _, windows = _columns_in(raw, shape, metadata, n_windows=shard["samples"], path=folder)
            yield from ((number, windows[number - first]) for number in inside)
        first += shard["samples"]


def marked_text(window: TokenArray, tokenizer: Tokenizer) -> str:
    """Return the text of a window (seq_len + lookahead,), with a visible mark where a document ends."""
    ends = np.flatnonzero(window == tokenizer.eos_id)
    runs = np.split(window, ends)
    texts = [tokenizer.decode([int(i) for i in run if i != tokenizer.eos_id]) for run in runs]
    return f"{_EOS_MARK}\n".join(texts)


if __name__ == "__main__":
    exit_on_user_error(main, program="check_shards")
