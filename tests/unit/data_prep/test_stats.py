"""The numbers of stats, against the documents that the shards were written from."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot

from common.command_line import UserError
from common.shard_format import read_metadata
from data_prep import stats, write_shards
from tests.helpers.shard_damage import flip_a_byte

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    return np.random.default_rng(0).integers(1, 400, size=300).tolist()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> Path:
    """Byte shards of several parts; each document is a file."""
    folder = tmp_path_factory.mktemp("stats")
    (folder / "corpus").mkdir()
    for number, length in enumerate(lengths):
        (folder / "corpus" / f"{number:03}.py").write_text(chr(97 + number % 26) * length)
    write_shards.main([*_command(folder / "corpus", folder / "out"), "--val_fraction", "0"])
    return folder / "out"


def _command(corpus: Path, out: Path) -> list[str]:
    words = ["--input", str(corpus), "--tokenizer", "bytes", "--out", str(out)]
    return [*words, "--seq_len", "32", "--part_bytes", "20000", "--num_workers", "1"]


def test_lengths_are_those_of_the_documents(
    shards: Path, lengths: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    stats.main([str(shards)])
    numbers = json.loads((shards / "stats.json").read_text())
    train = numbers["splits"]["train"]
    assert numbers["splits"]["all"] == train  # there is no other split
    parts = len(list((shards / "train").glob("part-*")))
    assert parts >= 3
    found, n_cut = stats.document_lengths(shards / "train", read_metadata(shards))
    assert 0 < n_cut <= parts
    whole = iter(length + 1 for length in lengths)  # with EOS
    assert all(length in whole for length in found.tolist())  # the same order, without the cut documents
    assert len(found) >= len(lengths) - 2 * parts
    assert (train["documents"], train["bytes"]) == (len(lengths), sum(lengths))
    assert train["tokens_per_byte"] == pytest.approx((sum(lengths) + len(lengths)) / sum(lengths))
    assert (train["mean_length"], train["longest"]) == (pytest.approx(found.mean()), found.max())
    assert train["percentiles"]["50"] == np.sort(found)[-(-len(found) // 2) - 1]
    assert (shards / "stats.png").read_bytes().startswith(PNG)
    assert "tokens/byte" in capsys.readouterr().out


@pytest.mark.parametrize("bounds", [(1, 1), (5, 9), (900, 1100), (3, 200_000), (1, 10**9), (60_000, 90_000), None])
def test_no_labels_of_the_histogram_overlap(
    bounds: tuple[int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    lengths = np.empty(0, dtype=np.int64) if bounds is None else np.array(bounds, dtype=np.int64)
    stats._draw({"train": lengths, "val": lengths}, tmp_path / "a.png")
    (figure,) = figures
    figure.canvas.draw()
    boxes = [legend.get_window_extent() for legend in figure.legends]
    for panel in figure.axes:
        labels = [label for label in panel.get_xticklabels() if label.get_text()]
        assert len(labels) >= 2
        boxes += [label.get_window_extent() for label in (*labels, panel.xaxis.label, panel.yaxis.label)]
        boxes.append(panel.get_window_extent())
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_mistakes_are_reported(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: the folder was not written by data_prep"):
        stats.main([str(tmp_path)])
    out = tmp_path / "out"
    write_shards.main([*_command(shards.parent / "corpus", out), "--val_fraction", "0", "--document_ends", "none"])
    with pytest.raises(UserError, match="written with --document_ends none: no EOS ends a document"):
        stats.main([str(out)])
    with pytest.raises(SystemExit):
        stats.main([str(shards), "--output", str(tmp_path / "no" / "picture.png")])


@pytest.mark.parametrize("name", ["metadata.png", "notes.png"])
def test_only_an_earlier_histogram_is_replaced(name: str, shards: Path, tmp_path: Path) -> None:
    """metadata.png would have its numbers written to metadata.json."""
    out = Path(shutil.copytree(shards, tmp_path / "out"))
    (out / "notes.png").write_text("mine")
    before = (out / "metadata.json").read_bytes()
    with pytest.raises(UserError, match="exists already, and is not"):
        stats.main([str(out), "--output", str(out / name)])
    assert (before, b"mine") == ((out / "metadata.json").read_bytes(), (out / "notes.png").read_bytes())
    for _ in range(2):
        stats.main([str(out), "--output", str(tmp_path / "own.png")])


def test_damage_is_reported(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_shards.main([*_command(shards.parent / "corpus", out), "--val_fraction", "0"])
    flip_a_byte(out)
    with pytest.raises(
        UserError, match=r"has the xxh64 hash .*, its index says .* see python -m data_prep.check_shards"
    ):
        stats.main([str(out)])
    assert not (out / "stats.png").exists()
