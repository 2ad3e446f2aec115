"""MDSWriter against streaming's MDSWriter, byte for byte."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.shards import mds_writer
from data_prep.shards.mds_writer import MDSWriter

LENGTH = 40
LIMIT = 2000  # bytes of a shard, so that few windows fill several shards


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("compression", [None, "zstd", "zstd:9"])
@pytest.mark.parametrize("n_windows", [0, 1, 20, 21, 22, 100])
def test_the_files_are_those_that_streaming_writes(
    compression: str | None, n_windows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.mds import streaming

    windows = np.random.default_rng(n_windows).integers(0, 50, (n_windows, LENGTH)).astype(np.uint16)
    reference = streaming.MDSWriter(
        columns={"tokens": f"ndarray:uint16:{LENGTH}"},
        out=str(tmp_path / "reference"),
        compression=compression,
        hashes=["xxh64"],
        size_limit=LIMIT,
    )
    for window in windows:
        reference.write({"tokens": window})
    reference.finish()

    monkeypatch.setattr(mds_writer, "_SHARD_BYTES", LIMIT)
    writer = MDSWriter(tmp_path / "ours", window_length=LENGTH, compression=compression)
    for piece in np.array_split(windows, [1, 3, 60]):
        writer.add(piece)
    writer.finish()
    ours, theirs = files_of(tmp_path / "ours"), files_of(tmp_path / "reference")
    if compression is None:
        assert ours == theirs
    else:  # their zstd libraries may compress differently; the decompressed windows must be the same
        assert ours.keys() == theirs.keys()
        indices = [json.loads(files["index.json"])["shards"] for files in (ours, theirs)]
        assert [shard["raw_data"] for shard in indices[0]] == [shard["raw_data"] for shard in indices[1]]
        if n_windows:
            dataset = streaming.StreamingDataset(local=str(tmp_path / "ours"), batch_size=1, validate_hash="xxh64")
            assert np.array_equal(np.stack([dataset[i]["tokens"] for i in range(len(dataset))]), windows)


def test_shards_end_after_the_same_window_as_those_of_streaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.mds import streaming

    windows = np.zeros((50, LENGTH), dtype=np.uint16)
    for limit in range(2000, 2000 + 4 + 2 * LENGTH + 1, 4):  # up to room for one more window
        columns, out = {"tokens": f"ndarray:uint16:{LENGTH}"}, str(tmp_path / f"reference-{limit}")
        with streaming.MDSWriter(columns=columns, out=out, hashes=["xxh64"], size_limit=limit) as reference:
            for window in windows:
                reference.write({"tokens": window})
        monkeypatch.setattr(mds_writer, "_SHARD_BYTES", limit)
        writer = MDSWriter(tmp_path / f"ours-{limit}", window_length=LENGTH, compression=None)
        writer.add(windows)
        writer.finish()
        assert files_of(tmp_path / f"ours-{limit}") == files_of(tmp_path / f"reference-{limit}")


def test_the_largest_size_of_a_shard_is_the_default_of_streaming() -> None:
    import inspect

    from common.mds import streaming

    assert inspect.signature(streaming.MDSWriter).parameters["size_limit"].default == mds_writer._SHARD_BYTES


def test_shards_with_two_columns_are_those_that_streaming_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.mds import streaming

    names = ["document_ids", "tokens"]
    windows = np.random.default_rng(0).integers(0, 1 << 16, (50, 2, LENGTH)).astype(np.uint16)
    columns, out = dict.fromkeys(reversed(names), f"ndarray:uint16:{LENGTH}"), str(tmp_path / "reference")
    with streaming.MDSWriter(columns=columns, out=out, hashes=["xxh64"], size_limit=LIMIT) as reference:
        for document_ids, tokens in windows:
            reference.write({"tokens": tokens, "document_ids": document_ids})
    monkeypatch.setattr(mds_writer, "_SHARD_BYTES", LIMIT)
    writer = MDSWriter(tmp_path / "ours", window_length=LENGTH, compression=None, columns=names)
    for piece in np.array_split(windows.reshape(50, 2 * LENGTH), [1, 3, 30]):
        writer.add(piece)
    writer.finish()
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "reference")
    assert len(files_of(tmp_path / "ours")) > 3
