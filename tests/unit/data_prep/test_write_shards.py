"""write_shards against its contract: shards read with streaming, and compared with SentencePiece called directly."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from common.command_line import UserError
from common.shard_format import METADATA
from data_prep import write_parts, write_shards
from data_prep.shards.parts import WORK_FOLDER
from tests.helpers.shard_writing import (
    LOOKAHEAD,
    SEQ_LEN,
    STDLIB,
    files_of,
    held_in_part,
    held_run,
    kill,
    model_arguments,
)


def _windows(folder: Path) -> list[list[int]]:
    """Return every window of a split in order, as training reads them."""
    from common.mds import streaming

    dataset = streaming.StreamingDataset(local=str(folder), batch_size=1)
    tokens = [dataset[i]["tokens"] for i in range(len(dataset))]
    assert all(window.dtype == np.uint16 for window in tokens)
    return [window.tolist() for window in tokens]


def _stream_of(windows: Sequence[Sequence[int]]) -> list[int]:
    """Return the stream of tokens that overlapping windows were cut from."""
    stream = list(windows[0])
    for window in windows[1:]:
        assert stream[-LOOKAHEAD:] == list(window[:LOOKAHEAD])
        stream += window[LOOKAHEAD:]
    return stream


def test_the_shards_hold_the_ids_that_sentencepiece_gives_for_the_documents(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    # one part, so that the stream of each split is complete
    write_shards.main(model_arguments(corpus, model, out, part_bytes=10**7, compression="zstd", dedup="exact"))
    metadata = json.loads((out / METADATA).read_text())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    paths = sorted(corpus.glob("*.py")) + sorted((corpus / "email").glob("*.py"))
    paths += sorted((corpus / "email" / "mime").glob("*.py")) + sorted((corpus / "json").glob("*.py"))
    texts = [path.read_bytes().decode() for path in paths if path.name != "binary.py"]
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    documents = [[*processor.encode(text), processor.eos_id()] for text in texts]

    order: dict[str, list[int]] = {}
    for split in ("train", "val"):
        counts = metadata["splits"][split]
        windows = _windows(out / split)
        stream = _stream_of(windows)
        assert {len(window) for window in windows} == {SEQ_LEN + LOOKAHEAD}
        assert len(windows) == counts["windows"]
        assert len(stream) + counts["tail_tokens"] == counts["tokens"]
        *whole, rest = _documents_in(stream, eos_id=processor.eos_id())
        order[split] = [documents.index(document) for document in whole]
        assert order[split] == sorted(order[split])
        assert any(document[: len(rest)] == rest for document in documents)
        assert counts["tail_tokens"] < SEQ_LEN
    assert len(order["val"]) > 2
    assert not set(order["train"]) & set(order["val"])
    counts = metadata["splits"].values()
    assert sum(split["documents"] for split in counts) == len(documents)
    assert sum(split["tokens"] for split in counts) == sum(map(len, documents))
    assert sum(split["bytes"] for split in counts) == sum(len(text.encode()) for text in texts)
    n_empty = sum(not path.read_bytes().strip() for path in paths)
    assert metadata["dropped"] == {"binary": 1, "duplicate": 1, "empty": n_empty}


def _documents_in(stream: list[int], *, eos_id: int) -> list[list[int]]:
    """Return the documents of a stream, each with its EOS; the last item is what follows the last EOS."""
    ends = [position + 1 for position, token in enumerate(stream) if token == eos_id]
    return [stream[start:end] for start, end in pairwise([0, *ends, len(stream)])]


def test_the_metadata_has_the_entries_that_the_contract_names(corpus: Path, model: Path, tmp_path: Path) -> None:
    write_shards.main(model_arguments(corpus, model, tmp_path / "out"))
    metadata = json.loads((tmp_path / "out" / METADATA).read_text())
    head = ["format_version", "seq_len", "lookahead", "vocab_size", "tokenizer"]
    head += ["document_ends", "document_ids", "fim", "shuffle_seed"]
    assert list(metadata) == [*head, "splits", "dropped", "shares", "sources", "arguments", "versions"]
    assert metadata["tokenizer"].keys() == {"kind", "sha256", "bos_id", "eos_id"}
    assert metadata["splits"]["train"].keys() >= {"documents", "tokens", "windows", "bytes"}
    assert (metadata["seq_len"], metadata["lookahead"], metadata["vocab_size"]) == (SEQ_LEN, LOOKAHEAD, 512)
    assert [source["path"] for source in metadata["sources"]] == [str(corpus)]
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == model.read_bytes()
    assert not (tmp_path / "out" / WORK_FOLDER).exists()


def test_byte_shards_have_their_own_default_lookahead_and_no_model(byte_shards: Path) -> None:
    metadata = json.loads((byte_shards / METADATA).read_text())
    assert (metadata["lookahead"], metadata["vocab_size"]) == (32, 258)
    assert metadata["tokenizer"] == {"kind": "bytes", "sha256": "", "bos_id": 256, "eos_id": 257}
    assert not (byte_shards / "tokenizer.model").exists()
    texts = [path.read_bytes() for path in sorted((STDLIB / "json").glob("*.py"))]
    stream = [token for window in _windows(byte_shards / "train") for token in window[:32]]
    first = bytes(stream[: stream.index(257)])
    assert first in texts


def test_any_number_of_workers_writes_the_same_bytes(
    corpus: Path, model: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    write_shards.main(model_arguments(corpus, model, tmp_path / "out", dedup="exact", num_workers=3))
    assert files_of(tmp_path / "out") == reference
    assert len([name for name in reference if name.startswith("train/part-")]) >= 6


def test_a_killed_run_continues_to_the_same_bytes(
    corpus: Path,
    model: Path,
    tmp_path: Path,
    reference: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    arguments = model_arguments(corpus, model, out, dedup="exact", num_workers=1)
    kill(held_run(arguments, held_in_part(2, file=tmp_path / "held")))
    assert not (out / METADATA).exists()
    assert list(out.glob("work/part-00002.staging-*"))
    marks = sorted(out.glob("work/part-*[0-9].json"))
    assert [mark.stem for mark in marks] == ["part-00000", "part-00001"]
    marks[-1].unlink()  # as after a kill between the rename of the splits and the mark
    with (out / "train" / marks[-1].stem / "index.json").open("a") as file:
        file.write("damage")
    with pytest.raises(UserError, match=r"holds an unfinished run with other arguments: --seq_len 64 there, 32 now"):
        write_shards.main(model_arguments(corpus, model, out, dedup="exact", seq_len=32))
    write_shards.main(arguments)
    assert files_of(out) == reference
    assert "finished already" in capsys.readouterr().out


def test_finished_parts_are_not_written_again(
    corpus: Path,
    model: Path,
    tmp_path: Path,
    reference: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(write_shards, "merge", killed)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="killed"):
                write_shards.main(model_arguments(corpus, model, out, dedup="exact"))
            assert not list((out / WORK_FOLDER).glob("*.staging-*"))
            (out / WORK_FOLDER / "part-00000.staging-1").mkdir()  # as left by a killed worker; it is removed
    with monkeypatch.context() as patch:
        patch.setattr(write_parts, "write_part", killed)  # no part is missing; the input is only compared
        write_shards.main(model_arguments(corpus, model, out, dedup="exact"))
    assert files_of(out) == reference


def test_a_finished_folder_is_kept_or_refused(
    corpus: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    write_shards.main(model_arguments(corpus, model, out))
    before = files_of(out)
    capsys.readouterr()
    write_shards.main(model_arguments(corpus, model, out, num_workers=2))
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--lookahead 8 there, 4 now; --seq_len 64 there, 32 now; choose another"):
        write_shards.main(model_arguments(corpus, model, out, lookahead=4, seq_len=32))
    (corpus / "new.py").write_text("x = 1")
    with pytest.raises(UserError, match=r"sources .*choose another"):
        write_shards.main(model_arguments(corpus, model, out))
    assert files_of(out) == before


def test_the_split_of_a_document_depends_on_the_document_alone(corpus: Path, model: Path, tmp_path: Path) -> None:
    whole, share = tmp_path / "whole", tmp_path / "share"
    write_shards.main(model_arguments(corpus, model, whole, val_fraction=0.3, part_bytes=10**7))
    write_shards.main(model_arguments(corpus / "email", model, share, val_fraction=0.3, part_bytes=10**7))
    validation = _stream_of(_windows(whole / "val"))
    first_document = _stream_of(_windows(share / "val"))
    first_document = first_document[: first_document.index(2) + 1]
    text = ",".join(map(str, validation))
    assert ",".join(map(str, first_document)) in text
