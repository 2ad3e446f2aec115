"""Hugging Face data sets, streamed through the `datasets` library: hf:PATH_OR_NAME[:CONFIG][@SPLIT].

A path is a folder of data files, or a folder that `save_to_disk` wrote. Pieces are the library's shards, usually one
per data file, in the library's order; so parts, workers and restarts work as for files. A shard cannot be cut, and
small shards share a part, as small files do.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.command_line import UserError
from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions, Selection
from data_prep.sources.records import DATASET, document_of_row

PREFIX = "hf:"
_SAVED_SHARD_BYTES = 64 << 20  # the approximate size of the shards into which a saved data set is cut
_DEFAULT_SPLIT = "train"


class _Opened(NamedTuple):
    dataset: Any  # an IterableDataset
    fingerprint: str  # changes when the data change
    shard_bytes: list[int]  # as stored, perhaps compressed; 0 where it is unknown


def cut_shards(path: str, *, selection: Selection) -> tuple[list[Piece], str]:
    """Return one piece per shard, and the data set's fingerprint.

    Raises:
        UserError: the data set, its configuration or its split cannot be loaded.
    """
    opened = _open(path)
    pieces = [Piece(DATASET, path, shard, shard + 1, size, selection) for shard, size in enumerate(opened.shard_bytes)]
    return pieces, opened.fingerprint


def read_shards(piece: Piece, options: ReadOptions) -> Iterator[Document | Dropped]:
    """Yield the documents of a piece's shards. An exception of the library ends the shard, and yields a `Dropped`."""
    for shard in range(piece.start, piece.stop):
        row = 0
        try:
            dataset = _open(piece.path).dataset
            dataset = _projected(dataset.shard(num_shards=dataset.num_shards, index=shard), options)
            for row, values in enumerate(dataset, start=1):
                source = f"{piece.path}:shard {shard}, row {row}"
                text = values.get(options.text_field)
                moved = len(text) if isinstance(text, str | bytes) else 0
                yield document_of_row(values, source, options, input_bytes=moved, place=f"row {row}")
        except Exception as error:  # the library reads any format from any file system
            source = f"{piece.path}:shard {shard}"
            yield Dropped("corrupt_dataset", source, 0, f"after row {row}: {error!r}"[:200])


def _projected(dataset: Any, options: ReadOptions) -> Any:
    if options.fields is None or dataset.features is None or options.text_field not in dataset.features:
        return dataset
    return dataset.select_columns([n for n in dataset.features if n in (options.text_field, *options.fields)])


@functools.cache  # once in each process
def _open(path: str) -> _Opened:
    import datasets

    # Otherwise every worker imports torch, which the library needs only to share counters with torch's data loaders.
    datasets.config.TORCH_AVAILABLE = False
    name, config, split = parse(path)
    if not name:
        raise UserError(f"input {path!r} names no data set; write {PREFIX}PATH_OR_NAME[:CONFIG][@SPLIT]")
    try:
        if saved := _saved_folder(Path(name), split):
            dataset: Any = datasets.load_from_disk(str(saved))
            n_shards = max(1, min(len(dataset), dataset.data.nbytes // _SAVED_SHARD_BYTES))
            state = json.loads((saved / "state.json").read_text(encoding="utf-8"))
            sizes = [dataset.data.nbytes // n_shards] * n_shards
            return _Opened(dataset.to_iterable_dataset(num_shards=n_shards), str(state.get("_fingerprint")), sizes)
        builder = datasets.load_dataset_builder(name, config)
        streamed = builder.as_streaming_dataset(split=split)
        files = list((builder.config.data_files or {}).get(split, ()))
        sizes = [_size_of(file) for file in files] if len(files) == streamed.num_shards else [0] * streamed.num_shards
        return _Opened(streamed, str(builder.hash), sizes)
    except Exception as error:
        raise UserError(f"input {path!r} cannot be loaded: {error}") from error


def _size_of(file: str) -> int:
    """Return the size of a data file in any file system of fsspec; 0 if it is unknown."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(file)
        return int(system.info(path)["size"])
    except Exception:  # of any file system
        return 0


def _saved_folder(folder: Path, split: str) -> Path | None:
    """Return the folder in which `save_to_disk` wrote the split, or None if `folder` was not written by it."""
    if (folder / "dataset_dict.json").is_file():
        folder /= split
    return folder if (folder / "state.json").is_file() else None


def parse(path: str) -> tuple[str, str | None, str]:
    """Return the path or name, the configuration, and the split of hf:PATH_OR_NAME[:CONFIG][@SPLIT]."""
    rest, _, split = path.removeprefix(PREFIX).partition("@")
    name, _, config = rest.partition(":")
    return name, config or None, split or _DEFAULT_SPLIT
