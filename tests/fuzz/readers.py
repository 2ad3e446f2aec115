"""The table of readers: each reads a file that somebody else may have written.

To add a reader, add a row: what the file is called, how a folder with a whole example is made, which file of it is
changed and how, and the call that reads it. The reader may raise a `UserError`, or what the row allows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from hypothesis import strategies as st

from common.command_line import UserError
from tests.fuzz import mutations

Folder = Path


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A reader, and an example of what it reads."""

    file: str
    """The file that is changed, in the folder of the example."""
    make: Callable[[Folder], object]
    """Writes the example into an empty folder."""
    read: Callable[[Folder], object]
    """Reads the changed file, as a command does."""
    changes: Callable[[bytes], st.SearchStrategy[bytes]] = mutations.json_file
    """The changes of the file, given its content."""
    allowed: tuple[type[BaseException], ...] = (UserError,)
    """What reading may raise."""
    most_bytes: int = 40 << 30
    """Size of a file of zeros that is read or refused soon; a record of any length is read to its end."""


def _shards(folder: Folder) -> None:
    """Write byte shards of a few documents."""
    from data_prep import write_shards

    source = folder / "source"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.py").write_text(f"def f{number}(x):\n    return x * {number}\n" * 20)
    write_shards.main(
        ["--input", str(source), "--tokenizer", "bytes", "--out", str(folder / "shards"), "--seq_len", "32",
         "--val_fraction", "0.3", "--num_workers", "1"]
    )  # fmt: skip


def _read_metadata(folder: Folder) -> None:
    from common.shard_format import read_metadata

    read_metadata(folder / "shards")


def _read_index(folder: Folder) -> None:
    from common.shard_format import read_index

    read_index(folder / "shards" / "train")


def _check_shards(folder: Folder) -> None:
    from data_prep import check_shards

    check_shards.main([str(folder / "shards"), "--sample", "2"])


def _read_windows(folder: Folder) -> None:
    """Read a shard as training does once its hash has been compared."""
    from contextlib import suppress

    from common.shard_format import read_index
    from pipeline.data.window_file import BadWindowError, fault_of_windows, layout_of, read_window

    entry, *_ = read_index(folder / "shards" / "train")
    layout = layout_of(entry["column_names"], entry["column_sizes"])
    path, n_windows = folder / "shards" / SHARD, entry["samples"]
    if not path.is_file():  # which comparing it has found
        return
    fault = fault_of_windows(path, n_windows=n_windows, layout=layout, vocab_size=258)
    for index in range(n_windows):
        with suppress(BadWindowError):
            tokens_W = read_window(path, index, layout=layout, vocab_size=258)
            assert fault is not None or tokens_W.shape == (64,)


def _recorded_run(folder: Folder) -> None:
    from tests.helpers.recorded import GOOD, recorded_run

    recorded_run(folder / "run", GOOD)


def _audit(folder: Folder) -> None:
    from pipeline import audit

    audit.main([str(folder / "run")])


def _remove_after(folder: Folder) -> None:
    from pipeline.data.sample_record import remove_after

    remove_after(folder / "run" / "samples", step=2)


def _yaml_file(example: bytes) -> st.SearchStrategy[bytes]:
    values = mutations.json_values(yaml.safe_load(example))
    return values.map(lambda value: yaml.safe_dump(value).encode()) | mutations.binary(example)


def _tokenizer(folder: Folder) -> None:
    from tests.helpers.sentencepiece_models import small_code_model

    small_code_model(folder / "tokenizer.model")


def _load_tokenizer(folder: Folder) -> None:
    from common.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(str(folder / "tokenizer.model"))
    tokenizer.decode(tokenizer.encode("def f(x): return x"))


SHARD = "train/part-00000/shard.00000.mds"
READERS: dict[str, Reader] = {
    "metadata.json": Reader(file="shards/metadata.json", make=_shards, read=_read_metadata),
    "metadata.json, check_shards": Reader(file="shards/metadata.json", make=_shards, read=_check_shards),
    "index.json": Reader(file="shards/train/index.json", make=_shards, read=_read_index),
    "index.json, check_shards": Reader(file="shards/train/index.json", make=_shards, read=_check_shards),
    "shard.mds": Reader(file=f"shards/{SHARD}", make=_shards, read=_read_windows, changes=mutations.binary),
    "shard.mds, check_shards": Reader(
        file=f"shards/{SHARD}", make=_shards, read=_check_shards, changes=mutations.binary
    ),
    "samples, audit": Reader(
        file="run/samples/rank_00000.jsonl", make=_recorded_run, read=_audit, changes=mutations.json_lines,
        allowed=(UserError, SystemExit), most_bytes=256 << 20,
    ),
    "samples, resumed": Reader(
        file="run/samples/rank_00000.jsonl", make=_recorded_run, read=_remove_after, changes=mutations.json_lines,
        most_bytes=256 << 20,
    ),
    "config.yaml, audit": Reader(
        file="run/config.yaml", make=_recorded_run, read=_audit, changes=_yaml_file, allowed=(UserError, SystemExit)
    ),
    "tokenizer.model": Reader(
        file="tokenizer.model", make=_tokenizer, read=_load_tokenizer, changes=mutations.binary
    ),
}  # fmt: skip
