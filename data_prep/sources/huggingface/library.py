"""Data sets as the `datasets` library sees them, and the shards that only the library can read.

The library finds a data set's configurations, splits and data files. JSON lines and Parquet files are then read by our
own readers; other formats (csv, Arrow, a data set that `save_to_disk` wrote, ...) are read here, one shard at a time.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.command_line import UserError, one_line
from common.small_files import read_json
from common.wording import meant
from data_prep.sources.documents import Dropped, Piece, ReadOptions
from data_prep.sources.records import Records, document_of_row

PREFIX = "hf:"
SAVED_SHARD_BYTES = 64 << 20  # the approximate size of the shards into which a saved data set is cut
_DEFAULT_SPLIT = "train"
_KINDS = ("arrow", "cache", "conll", "csv", "json", "parquet", "text", "webdataset", "xml")
"""The library's modules whose files refer to no other files. An Iceberg table, for example, names its data's paths."""


def parse(path: str) -> tuple[str, str | None, str]:
    """Return the path or name, the configuration, and the split of hf:PATH_OR_NAME[:CONFIG][@SPLIT]."""
    rest, _, split = path.removeprefix(PREFIX).partition("@")
    name, _, config = rest.partition(":")
    return name, config or None, split or _DEFAULT_SPLIT


def builder_of(path: str) -> Any:
    """Return the library's builder of a data set, which knows the data files of its splits, but reads none of them.

    Raises:
        UserError: the library does not load the data set or its configuration.
    """
    name, config, _ = parse(path)
    try:
        builder = _datasets().load_dataset_builder(name, config)
    except Exception as error:  # the library reads any format from any file system
        raise cannot_be_loaded(path, error) from error
    if builder.name not in _KINDS:
        raise UserError(f"input {path!r} holds data of the kind {builder.name!r}; supported are {', '.join(_KINDS)}")
    return builder


@functools.cache  # once in each process
def streamed(path: str) -> Any:
    """Return a split of a data set as an `IterableDataset`, whose shards are its data files in most formats.

    Raises:
        UserError: the library does not load the data set, its configuration or its split.
    """
    try:
        if folder := saved_folder(path):
            dataset = _datasets().load_from_disk(str(folder))
            n_shards = max(1, min(len(dataset), dataset.data.nbytes // SAVED_SHARD_BYTES))
            return dataset.to_iterable_dataset(num_shards=n_shards)
        return builder_of(path).as_streaming_dataset(split=parse(path)[2])
    except UserError:
        raise
    except Exception as error:
        raise cannot_be_loaded(path, error) from error


def cannot_be_loaded(path: str, error: Exception) -> UserError:
    """Return the error for a data set that the library does not load."""
    return UserError(f"input {path!r} cannot be loaded: {one_line(error)}")


def files_of_split(path: str, builder: Any) -> list[str]:
    """Return the data files of a data set's split, in the library's order; empty if the data set has no list of files.

    Raises:
        UserError: the data set does not have this split.
    """
    split, by_split = parse(path)[2], builder.config.data_files or {}
    if by_split and split not in by_split:
        names = ", ".join(map(str, by_split))
        raise UserError(f"input {path!r} has no split {split!r} (it has: {names}){meant(split, map(str, by_split))}")
    return list(by_split.get(split, ()))


def other_files(path: str, builder: Any, files: Sequence[str]) -> list[str]:
    """Return the files of the split that the library leaves out, because most files of the split have another format.

    Empty if the data set names its files itself.
    """
    from datasets.data_files import DataFilesDict, get_data_patterns
    from datasets.packaged_modules import _ALL_ALLOWED_EXTENSIONS, _MODULE_TO_EXTENSIONS

    split, base = parse(path)[2], builder.base_path
    try:
        patterns = {split: get_data_patterns(base)[split]}
        all_files = DataFilesDict.from_patterns(patterns, base_path=base)[split]
        known = DataFilesDict.from_patterns(patterns, base_path=base, allowed_extensions=_ALL_ALLOWED_EXTENSIONS)
        taken = known.filter(extensions=_MODULE_TO_EXTENSIONS[builder.name])[split]
    except (OSError, KeyError, ValueError):
        return []
    return [file for file in all_files if file not in files] if set(taken) == set(files) else []


def saved_folder(path: str) -> Path | None:
    """Return the folder in which `save_to_disk` wrote the split, or None if the data set was not written by it."""
    name, _, split = parse(path)
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file():
        folder /= split
    return folder if (folder / "state.json").is_file() else None


def saved_files(folder: Path) -> tuple[list[str], str]:
    """Return the names of the files of a saved data set, and its fingerprint.

    Raises:
        UserError: its state.json is damaged.
    """
    path = folder / "state.json"
    try:
        state = read_json(path)
        return [str(entry["filename"]) for entry in state["_data_files"]], str(state.get("_fingerprint"))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the state of a saved data set: {error!r}") from error


def read_shards(piece: Piece, options: ReadOptions) -> Records:
    """Yield the documents of a piece's shards. An exception of the library ends the shard, and yields a `Dropped`."""
    names = (options.text_field, *(options.fields or ()))
    for shard in range(piece.start, piece.stop):
        row = n_bytes = 0
        try:
            dataset = streamed(piece.path)
            dataset = dataset.shard(num_shards=dataset.num_shards, index=shard)
            if options.fields is not None and dataset.features and options.text_field in dataset.features:
                dataset = dataset.select_columns([name for name in dataset.features if name in names])
            for row, values in enumerate(dataset, start=1):
                source = f"{piece.path}:shard {shard}, row {row}"
                text = values.get(options.text_field)
                moved = len(text) if isinstance(text, str | bytes) else 0
                n_bytes += moved
                wanted = values if options.fields is None else {name: values[name] for name in names if name in values}
                yield document_of_row(wanted, source, options, input_bytes=moved, place=f"row {row}")
        except Exception as error:
            source, lost = f"{piece.path}:shard {shard}", max(0, piece.size - n_bytes)
            yield Dropped("corrupt_dataset", source, lost, f"after row {row}: {one_line(error)}"[:200])


def _datasets() -> Any:
    import datasets

    # Otherwise every worker imports torch, which the library needs only to share counters with torch's data loaders.
    datasets.config.TORCH_AVAILABLE = False
    return datasets
