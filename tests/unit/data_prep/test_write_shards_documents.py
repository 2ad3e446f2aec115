"""The windows of write_shards, against a stream that is built from the documents one token at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.command_line import UserError
from data_prep import check_shards, write_shards
from data_prep.filters.options import FilterOptions
from data_prep.shards.part_writer import write_part
from data_prep.shards.parts import WORK_FOLDER, Part, PartOptions, PartResult
from data_prep.sources.documents import ReadOptions
from data_prep.sources.listing import list_source
from data_prep.tokens.fim import FimOptions
from data_prep.tokens.options import DocumentOptions
from data_prep.tokens.packing import WindowShape
from tests.helpers.sentencepiece_models import small_code_model
from tests.helpers.shard_writing import files_of

BOS, EOS, PRE, SUF, MID, EOT = range(256, 262)
Rows = list[list[int]]


def texts_of_corpus() -> list[str]:
    """Return documents of 1 to 300 pieces: lookalikes of special tokens, multi-byte characters, two equal documents."""
    random = np.random.default_rng(0)
    alphabet = ["a", "b", " ", "\n", "\t", "\r", "é", "☃", "\U0001f600", "<PRE>", "▁<MID>", "</s>"]
    texts = ["x", "é", "same", "same"]
    texts += ["".join(random.choice(alphabet, size=size)) for size in random.integers(1, 300, size=60)]
    return [text for text in texts if not text.isspace()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the documents as lines of jsonl, half as files."""
    folder, texts = tmp_path_factory.mktemp("corpus"), texts_of_corpus()
    half = len(texts) // 2
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:half]))
    for number, text in enumerate(texts[half:]):
        (folder / f"b{number:03}.txt").write_text(text, newline="")
    return folder


def columns_of(split: Path) -> dict[str, Rows]:
    """Return all windows of a split, by column, as streaming reads them."""
    from common.mds import streaming

    dataset = streaming.StreamingDataset(local=str(split), batch_size=1)
    windows = [dataset[i] for i in range(len(dataset))]
    return {name: [window[name].tolist() for window in windows] for name in (windows[0] if windows else ())}


def part_written(corpus: Path, out: Path, shape: WindowShape, documents: DocumentOptions) -> PartResult:
    """Write the corpus as one part, without a validation split."""
    (out / WORK_FOLDER).mkdir(parents=True)
    pieces = list_source(str(corpus), extensions=[".jsonl", ".txt"]).pieces
    options = PartOptions(
        out, "bytes", "sentencepiece", ReadOptions(), shape, val_fraction=0.0, compression=None,
        filters=FilterOptions(), documents=documents,
    )  # fmt: skip
    return write_part(Part(0, tuple(pieces)), options, None)


def text_of(ids: list[int]) -> str:
    """Return the text of a document from its tokens, rearranged for fill-in-the-middle or not."""
    if ids[0] != PRE:
        return bytes(ids).decode()
    assert ids[-1] == EOT
    suffix_at, middle_at = ids.index(SUF), ids.index(MID)
    prefix, suffix, middle = ids[1:suffix_at], ids[suffix_at + 1 : middle_at], ids[middle_at + 1 : -1]
    assert max(prefix + suffix + middle) < 256
    return bytes(prefix + middle + suffix).decode()


def naive_windows(stream: list[int], shape: WindowShape) -> Rows:
    starts = range(0, len(stream), shape.seq_len)
    windows = [stream[start : start + shape.length] for start in starts]
    return [window for window in windows if len(window) == shape.length]


def documents_in(stream: list[int], *, ends: str) -> Iterator[list[int]]:
    """Yield the tokens of each document without BOS and EOS, whose positions are checked."""
    document: list[int] = []
    for token in stream:
        if token == BOS:
            assert ends in ("bos", "both")
            if ends == "bos" and document:
                yield document
            assert ends == "bos" or not document
            document = []
        elif token == EOS:
            assert ends in ("eos", "both")
            yield document
            document = []
        else:
            document.append(token)
    if ends == "bos":
        yield document
    else:
        assert not document


@pytest.mark.parametrize("ends", ["eos", "bos", "both"])
@pytest.mark.parametrize("shuffle_seed", [None, 0, 1])
@pytest.mark.parametrize("fim_rate", [0.0, 0.5, 1.0])
def test_no_token_is_lost_or_repeated(
    ends: Any, shuffle_seed: int | None, fim_rate: float, corpus: Path, tmp_path: Path
) -> None:
    """Windows of one position leave no tail, so together they are the whole stream."""
    fim = FimOptions(fim_rate, 0.5, 0) if fim_rate else None
    options = DocumentOptions(ends=ends, fim=fim, shuffle_seed=shuffle_seed)
    counts = part_written(corpus, tmp_path, WindowShape(1, 1), options).splits["train"]
    windows = windows_by_hand(tmp_path / "train" / "part-00000", length=2)
    assert windows[:-1, 1].tolist() == windows[1:, 0].tolist()
    stream = [*windows[:, 0].tolist(), int(windows[-1, 1])]
    documents = list(documents_in(stream, ends=ends))
    found, expected = [text_of(document) for document in documents], texts_of_corpus()
    assert (sorted(found) == sorted(expected)) if shuffle_seed is not None else (found == expected)
    assert (found == expected) == (shuffle_seed is None)
    n_filled = sum(document[0] == PRE for document in documents)
    assert (counts.documents, counts.tokens, counts.tail_tokens) == (len(expected), len(stream), 0)
    assert counts.fim_documents == n_filled
    assert abs(n_filled - fim_rate * len(expected)) <= 12  # three standard deviations
    assert n_filled == fim_rate * len(expected) or 0 < fim_rate < 1


def windows_by_hand(folder: Path, *, length: int) -> Any:
    """Return the windows of a part's only shard, (n_windows, length)."""
    raw = (folder / "shard.00000.mds").read_bytes()
    n_windows, start = np.frombuffer(raw, dtype=np.uint32, count=2).tolist()
    return np.frombuffer(raw, dtype=np.uint16, offset=start).reshape(n_windows, length)


@pytest.mark.parametrize(("seq_len", "lookahead"), [(16, 3), (5, 40), (600, 8)])
@pytest.mark.parametrize("ends", ["eos", "bos", "none"])
def test_every_token_has_the_id_of_its_document(
    seq_len: int, lookahead: int, ends: Any, corpus: Path, tmp_path: Path
) -> None:
    shape = WindowShape(seq_len, lookahead)
    counts = part_written(corpus, tmp_path, shape, DocumentOptions(ends=ends, ids=True)).splits["train"]
    stream: list[int] = []
    owners: list[int] = []
    for number, text in enumerate(texts_of_corpus()):
        document = [*[BOS][: ends == "bos"], *text.encode(), *[EOS][: ends == "eos"]]
        stream += document
        owners += [number] * len(document)
    columns = columns_of(tmp_path / "train" / "part-00000")
    assert columns["tokens"] == naive_windows(stream, shape)
    expected = [[owner - window[0] for owner in window] for window in naive_windows(owners, shape)]
    assert columns["document_ids"] == expected
    assert counts.tail_tokens == len(stream) - lookahead - seq_len * len(expected)


def test_a_flush_between_documents_changes_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = DocumentOptions(ids=True, shuffle_seed=1)
    part_written(corpus, tmp_path / "one", WindowShape(16, 3), options)
    monkeypatch.setattr("data_prep.shards.part_writer._TOKENS_BETWEEN_FLUSHES", 100)
    part_written(corpus, tmp_path / "many", WindowShape(16, 3), options)
    name = "train/part-00000/shard.00000.mds"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


ALL = ["--fim_rate", "0.5", "--shuffle_documents", "--seed", "7", "--document_ends", "both", "--document_ids"]


def command(corpus: Path, out: Path, *more: str) -> list[str]:
    usual = ["--extensions", ".jsonl", ".txt", "--tokenizer", "bytes", "--seq_len", "32", "--val_fraction", "0.3"]
    return ["--input", str(corpus), "--out", str(out), *usual, "--part_bytes", "4000", "--num_workers", "1", *more]


def test_with_all_options_any_number_of_workers_writes_the_same(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "1"
    write_shards.main(command(corpus, out, *ALL))
    one = files_of(out)
    assert len([name for name in one if name.startswith("train/part-")]) >= 6
    for n_workers in ("2", "3"):
        write_shards.main(command(corpus, tmp_path / n_workers, *ALL, "--num_workers", n_workers))
        assert files_of(tmp_path / n_workers) == one
    check_shards.main([str(out)])
    metadata = json.loads(one["metadata.json"])
    assert metadata["vocab_size"] == 262
    assert (metadata["document_ends"], metadata["document_ids"], metadata["shuffle_seed"]) == ("both", True, 7)
    sentinels = {"prefix": PRE, "suffix": SUF, "middle": MID, "end": EOT}
    assert metadata["fim"] == {"rate": 0.5, "spm_rate": 0.5, "seed": 7, "sentinels": sentinels}
    counts = metadata["splits"]
    assert 0 < counts["train"]["fim_documents"] < counts["train"]["documents"]
    assert counts["val"]["fim_documents"] == 0
    texts = texts_of_corpus()
    assert sum(split["documents"] for split in counts.values()) == len(texts)
    assert sum(split["bytes"] for split in counts.values()) == sum(len(text.encode()) for text in texts)
    ids = columns_of(out / "train")
    assert max(max(window) for window in ids["document_ids"]) > 0
    assert {PRE, SUF, MID, EOT, BOS, EOS} <= {token for window in ids["tokens"] for token in window}


def test_a_killed_run_continues_with_the_same_shuffle(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    write_shards.main(command(corpus, tmp_path / "whole", *ALL))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(write_shards, "merge", killed)
        with pytest.raises(RuntimeError, match="killed"):
            write_shards.main(command(corpus, out, *ALL))
    for number in (1, 3):
        (out / WORK_FOLDER / f"part-{number:05}.json").unlink()
    (out / WORK_FOLDER / "part-00001.staging-1").mkdir()
    (out / WORK_FOLDER / "part-00001.staging-1" / "train.documents").write_bytes(b"left by a killed worker")
    write_shards.main(command(corpus, out, *ALL))
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fim_rate", "1.5"], "--fim_rate must be a number at least 0 and at most 1, not 1.5"),
        (["--fim_rate", "nan"], "--fim_rate must be a number .*, not nan"),
        (["--fim_spm_rate", "-1"], "--fim_spm_rate must be a number .*, not -1$"),
        (["--seed", "-1"], r"--seed must be a whole number from 0 to .*, not -1"),
        (
            ["--document_ids", "--seq_len", "65536"],
            "--document_ids can number 65536 documents in a window; --seq_len 65536",
        ),
    ],
)
def test_mistakes_are_reported(words: list[str], message: str, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_shards.main(command(corpus, tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


def test_a_model_without_the_special_tokens_is_refused(corpus: Path, tmp_path: Path) -> None:
    name = small_code_model(tmp_path / "m", bos_id=-1)
    for words, message in (
        (["--document_ends", "both"], "--document_ends both: tokenizer .* has no BOS; choose eos or none"),
        (["--fim_rate", "1"], "cannot fill in the middle: it has no piece ▁<PRE>, "),
    ):
        with pytest.raises(UserError, match=message):
            write_shards.main(command(corpus, tmp_path / "out", *words, "--tokenizer", name))
        assert not (tmp_path / "out").exists()
