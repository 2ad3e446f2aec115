"""Readers of shards: finished folders, and parts that are to be merged."""

import os
import shutil

from data_prep import check_shards, merge_shards, stats, write_shards
from data_prep import report as shards_report
from tests.fuzz import mutations
from tests.fuzz.reader import Folder, Reader

SHARD = "train/part-00000/shard.00000.mds"


def _shards(folder: Folder) -> None:
    """Write byte shards of a few documents."""
    write_shards.main(_arguments(folder))


def _parts(folder: Folder) -> None:
    """Write the parts of the same shards, and do not merge them."""
    write_shards.main([*_arguments(folder), "--part", "1/2"])
    write_shards.main([*_arguments(folder), "--part", "2/2"])


def _arguments(folder: Folder) -> list[str]:
    source = folder / "source"
    source.mkdir(exist_ok=True)
    for number in range(3):
        (source / f"{number}.py").write_text(f"def f{number}(x):\n    return x * {number}\n" * 20)
    words = ["--tokenizer", "bytes", "--seq_len", "32", "--val_fraction", "0.3", "--num_workers", "1"]
    return ["--input", str(source), "--out", str(folder / "shards"), *words, "--part_bytes", "700"]


def _read_metadata(folder: Folder) -> None:
    from common.shard_format import read_metadata

    read_metadata(folder / "shards")


def _read_index(folder: Folder) -> None:
    from common.shard_format import read_index

    read_index(folder / "shards" / "train")


def _check_shards(folder: Folder) -> None:
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


def _merge(folder: Folder) -> None:
    """Merge a copy, since merging changes the folder."""
    shutil.rmtree(folder / "copy", ignore_errors=True)
    shutil.copytree(folder / "shards", folder / "copy", symlinks=True, copy_function=_copy)
    merge_shards.main([str(folder / "copy")])


def _copy(source: str, target: str) -> None:
    """Link what copying would wait for, or write out."""
    if os.path.isfile(source) and os.path.getsize(source) < 1 << 20:
        shutil.copyfile(source, target)
    elif os.path.isfile(source):
        os.link(source, target)
    else:
        os.mkfifo(target)


def _report(folder: Folder) -> None:
    shards_report.main([str(folder / "shards")])


def _stats(folder: Folder) -> None:
    stats.main([str(folder / "shards")])


READERS: dict[str, Reader] = {
    "metadata.json": Reader(file="shards/metadata.json", make=_shards, read=_read_metadata),
    "metadata.json, check_shards": Reader(file="shards/metadata.json", make=_shards, read=_check_shards),
    "index.json": Reader(file="shards/train/index.json", make=_shards, read=_read_index),
    "index.json, check_shards": Reader(file="shards/train/index.json", make=_shards, read=_check_shards),
    "shard.mds": Reader(file=f"shards/{SHARD}", make=_shards, read=_read_windows, changes=mutations.binary),
    "shard.mds, check_shards": Reader(
        file=f"shards/{SHARD}", make=_shards, read=_check_shards, changes=mutations.binary
    ),
    "report.json, report": Reader(file="shards/report.json", make=_shards, read=_report),
    "report.json, stats": Reader(file="shards/report.json", make=_shards, read=_stats),
    "plan.json, merge_shards": Reader(file="shards/work/plan.json", make=_parts, read=_merge, examples=30),
    "mark of a part, merge_shards": Reader(file="shards/work/part-00000.json", make=_parts, read=_merge, examples=30),
    "index of a part, merge_shards": Reader(
        file="shards/train/part-00000/index.json", make=_parts, read=_merge, examples=30
    ),
}  # fmt: skip
