"""write_shards against the contract: read back with streaming, compared with sentencepiece called directly."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import sentencepiece
import xxhash

from common.command_line import UserError
from data_prep import train_tokenizer, write_shards
from data_prep.part_writer import WORK_FOLDER
from data_prep.shard_folder import METADATA
from tests.conftest import REPOSITORY, run_module

STDLIB = Path(sysconfig.get_path("stdlib"))
SEQ_LEN, LOOKAHEAD = 64, 8


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _windows(folder: Path) -> list[list[int]]:
    """Every window of a split in order, as training reads them."""
    from common.mds import streaming

    dataset = streaming.StreamingDataset(local=str(folder), batch_size=1)
    tokens = [dataset[i]["tokens"] for i in range(len(dataset))]
    assert all(window.dtype == np.uint16 for window in tokens)
    return [window.tolist() for window in tokens]


def _stream_of(windows: Sequence[Sequence[int]]) -> list[int]:
    """The token stream that overlapping windows were cut from."""
    stream = list(windows[0])
    for window in windows[1:]:
        assert stream[-LOOKAHEAD:] == list(window[:LOOKAHEAD])
        stream += window[LOOKAHEAD:]
    return stream


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    arguments = ["--input", str(STDLIB / "json"), "--output", str(path), "--vocab_size", "500", "--num_threads", "1"]
    train_tokenizer.main(arguments)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Python sources of about 400 kB, with a duplicate, an empty file and a binary one."""
    folder = tmp_path / "corpus"
    shutil.copytree(STDLIB / "json", folder / "json", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(STDLIB / "email", folder / "email", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(folder / "json" / "decoder.py", folder / "zz_copy.py")
    (folder / "empty.py").touch()
    (folder / "binary.py").write_bytes(b"\0\1")
    return folder


def _arguments(corpus: Path, model: Path, out: Path, **changes: Any) -> list[str]:
    options = {
        "input": corpus,
        "tokenizer": model,
        "out": out,
        "seq_len": SEQ_LEN,
        "lookahead": LOOKAHEAD,
        "val_fraction": 0.2,
        "part_bytes": 100_000,
        "num_workers": 1,
    } | changes
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def test_the_shards_are_sentencepieces_ids_of_the_documents(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # one part: the streams of the splits are whole
    write_shards.main(_arguments(corpus, model, out, part_bytes=10**7, compression="zstd", dedup="exact"))
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
    """The documents of a stream, each with its EOS; the last is what follows the last EOS."""
    ends = [position + 1 for position, token in enumerate(stream) if token == eos_id]
    return [stream[start:end] for start, end in pairwise([0, *ends, len(stream)])]


def test_the_metadata_keeps_its_contract(corpus: Path, model: Path, tmp_path: Path) -> None:
    write_shards.main(_arguments(corpus, model, tmp_path / "out"))
    metadata = json.loads((tmp_path / "out" / METADATA).read_text())
    head = ["format_version", "seq_len", "lookahead", "vocab_size", "tokenizer"]
    head += ["document_ends", "document_ids", "fim", "shuffle_seed"]
    assert list(metadata) == [*head, "splits", "dropped", "sources", "arguments", "versions"]
    assert metadata["tokenizer"].keys() == {"kind", "sha256", "bos_id", "eos_id"}
    assert metadata["splits"]["train"].keys() >= {"documents", "tokens", "windows", "bytes"}
    assert (metadata["seq_len"], metadata["lookahead"], metadata["vocab_size"]) == (SEQ_LEN, LOOKAHEAD, 500)
    assert [source["path"] for source in metadata["sources"]] == [str(corpus)]
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == model.read_bytes()
    assert not (tmp_path / "out" / WORK_FOLDER).exists()


def test_bytes_have_their_own_lookahead_and_no_model(byte_shards: Path) -> None:
    metadata = json.loads((byte_shards / METADATA).read_text())
    assert (metadata["lookahead"], metadata["vocab_size"]) == (32, 258)
    assert metadata["tokenizer"] == {"kind": "bytes", "sha256": "", "bos_id": 256, "eos_id": 257}
    assert not (byte_shards / "tokenizer.model").exists()
    texts = [path.read_bytes() for path in sorted((STDLIB / "json").glob("*.py"))]
    stream = [token for window in _windows(byte_shards / "train") for token in window[:32]]
    first = bytes(stream[: stream.index(257)])
    assert first in texts


@pytest.fixture
def reference(corpus: Path, model: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files that one uninterrupted worker writes."""
    write_shards.main(_arguments(corpus, model, tmp_path / "reference", dedup="exact"))
    return _files(tmp_path / "reference")


def test_any_number_of_workers_writes_the_same_bytes(
    corpus: Path, model: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    write_shards.main(_arguments(corpus, model, tmp_path / "out", dedup="exact", num_workers=3))
    assert _files(tmp_path / "out") == reference
    assert len([name for name in reference if name.startswith("train/part-")]) >= 6


def test_every_engine_writes_the_same_shards(
    corpus: Path, model: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    arguments = _arguments(corpus, model, tmp_path / "out", dedup="exact", tokenizer_engine="sentencepiece")
    write_shards.main(arguments)
    files = _files(tmp_path / "out")
    versions, reference_versions = (json.loads(of[METADATA])["versions"] for of in (files, reference))
    assert reference_versions.keys() - versions.keys() == {"gigatoken"}
    assert {name: data for name, data in files.items() if name != METADATA} == {
        name: data for name, data in reference.items() if name != METADATA
    }


def test_an_engine_is_no_argument_that_a_finished_folder_is_refused_for(
    corpus: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards.main(_arguments(corpus, model, tmp_path / "out"))
    write_shards.main(_arguments(corpus, model, tmp_path / "out", tokenizer_engine="sentencepiece"))
    assert "already finished" in capsys.readouterr().out


# Stands where gigatoken does, and is wrong about texts that hold WRONG_TEXT.
_WRONG_ENGINE = """
import os, numpy, sentencepiece

class Tokenizer:
    @classmethod
    def from_json(cls, text):
        return cls()

    def __init__(self):
        self._processor = sentencepiece.SentencePieceProcessor(model_file=os.environ["WRONG_MODEL"])

    def encode(self, text):
        ids = numpy.array(self._processor.encode(text), dtype=numpy.uint32)
        if os.environ["WRONG_TEXT"] in text:
            ids[5] = 7
        return ids
"""


def _run_with_engine(
    folder: Path, source: str, *arguments: str, model: Path, wrong_text: str
) -> subprocess.CompletedProcess[str]:
    """Run write_shards where `import gigatoken` imports `source`."""
    folder.mkdir()
    (folder / "gigatoken.py").write_text(source)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return run_module(
        "data_prep.write_shards", *arguments, PYTHONPATH=path, WRONG_MODEL=str(model), WRONG_TEXT=wrong_text
    )


def test_a_wrong_id_ends_the_run_and_leaves_nothing(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # the first document of a part is compared with the reference's ids whatever its hash
    (corpus / "email" / "00.py").write_text("a = 'a text that an engine has not learned' ; b = 'ABRACADABRA'\n")
    arguments = _arguments(corpus / "email", model, out, num_workers=2)
    result = _run_with_engine(tmp_path / "engine", _WRONG_ENGINE, *arguments, model=model, wrong_text="ABRACADABRA")
    assert result.returncode == 2
    assert f"error: {corpus}/email/00.py: at token 5 the fast tokenizer gives 7, sentencepiece " in result.stderr
    assert "run it again with --tokenizer_engine sentencepiece" in result.stderr
    assert "Traceback" not in result.stderr
    assert set(_files(out)) <= {".lock"}
    again = run_module("data_prep.write_shards", *arguments, "--tokenizer_engine", "sentencepiece")
    assert again.returncode == 0


def test_documents_are_compared_by_their_hash_too(corpus: Path, model: Path, tmp_path: Path) -> None:
    texts = (f"number {i} of many documents that begin alike" for i in range(5000))
    chosen = next(text for text in texts if xxhash.xxh3_128_digest(text.encode())[-1] < 2)
    lines = [json.dumps({"text": text}) for text in (*(f"some text {i} or other" for i in range(20)), chosen)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    arguments = _arguments(tmp_path / "corpus.jsonl", model, tmp_path / "out", seq_len=16)
    result = _run_with_engine(tmp_path / "engine", _WRONG_ENGINE, *arguments, model=model, wrong_text=chosen)
    assert result.returncode == 2
    assert f"{tmp_path}/corpus.jsonl:21: at token 5 the fast" in result.stderr


@pytest.mark.parametrize(
    ("source", "wrong_text", "reason"),
    [
        ("raise ImportError('no such thing')", "", r"gigatoken is not installed, or does not import \(no such thing\)"),
        (_WRONG_ENGINE, "</s>", r"gigatoken \S+ gives other ids than sentencepiece, to 'a</s>b <unk>'"),
    ],
)
def test_without_the_engine_sentencepiece_does_it(
    source: str, wrong_text: str, reason: str, corpus: Path, model: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    arguments = _arguments(corpus, model, tmp_path / "out", dedup="exact")
    result = _run_with_engine(tmp_path / "engine", source, *arguments, model=model, wrong_text=wrong_text)
    assert result.returncode == 0
    assert re.search(rf"^tokenizing with sentencepiece, .*: {reason}$", result.stdout, re.MULTILINE)
    files = _files(tmp_path / "out")
    assert "gigatoken" not in json.loads(files[METADATA])["versions"]
    assert all(files[name] == data for name, data in reference.items() if name != METADATA)


def test_a_run_killed_half_way_is_continued_to_the_same_bytes(
    corpus: Path, model: Path, tmp_path: Path, reference: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = _arguments(corpus, model, out, dedup="exact", num_workers=1)
    command = [sys.executable, "-m", "data_prep.write_shards", *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (list(out.glob("work/part-*.json")) and list(out.glob("work/*.staging-*"))):
        assert process.poll() is None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    workers = {int(staging.name.rpartition("-")[2]) for staging in out.glob("work/*.staging-*")}
    process.kill()
    process.wait()
    assert not (out / METADATA).exists()
    deadline = time.monotonic() + 20
    while any(_is_alive(worker) for worker in workers):  # or two would write one part, once it is started again
        assert time.monotonic() < deadline

    marks = sorted(out.glob("work/part-*.json"))
    marks[-1].unlink()  # as if killed between the rename of a split and the mark
    with (out / "train" / marks[-1].stem / "index.json").open("a") as file:
        file.write("damage")
    with pytest.raises(UserError, match=r"holds an unfinished run with other arguments: --seq_len 64 there, 32 now"):
        write_shards.main(_arguments(corpus, model, out, dedup="exact", seq_len=32))
    write_shards.main(arguments)
    assert _files(out) == reference
    assert ("finished already" in capsys.readouterr().out) == (len(marks) > 1)


def _is_alive(pid: int) -> bool:
    """Return whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_finished_parts_are_not_written_again(
    corpus: Path, model: Path, tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(write_shards, "finish", killed)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="killed"):
                write_shards.main(_arguments(corpus, model, out, dedup="exact"))
            assert not list((out / WORK_FOLDER).glob("*.staging-*"))
            (out / WORK_FOLDER / "part-00000.staging-1").mkdir()  # of a killed worker: its room is given back
    with monkeypatch.context() as patch:
        patch.setattr(write_shards, "worker_pool", killed)  # not needed any more
        write_shards.main(_arguments(corpus, model, out, dedup="exact"))
    assert _files(out) == reference


def test_a_finished_folder_is_reused_or_refused(
    corpus: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    write_shards.main(_arguments(corpus, model, out))
    before = _files(out)
    capsys.readouterr()
    write_shards.main(_arguments(corpus, model, out, num_workers=2))
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--lookahead 8 there, 4 now; --seq_len 64 there, 32 now; choose another"):
        write_shards.main(_arguments(corpus, model, out, lookahead=4, seq_len=32))
    (corpus / "new.py").write_text("x = 1")
    with pytest.raises(UserError, match=r"sources .*choose another"):
        write_shards.main(_arguments(corpus, model, out))
    assert _files(out) == before


def test_a_split_is_a_property_of_the_document(corpus: Path, model: Path, tmp_path: Path) -> None:
    whole, share = tmp_path / "whole", tmp_path / "share"
    write_shards.main(_arguments(corpus, model, whole, val_fraction=0.3, part_bytes=10**7))
    write_shards.main(_arguments(corpus / "email", model, share, val_fraction=0.3, part_bytes=10**7))
    validation = _stream_of(_windows(whole / "val"))
    first_document = _stream_of(_windows(share / "val"))
    first_document = first_document[: first_document.index(2) + 1]
    text = ",".join(map(str, validation))
    assert ",".join(map(str, first_document)) in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 0}, r"--seq_len must be at least 1, not 0"),
        ({"lookahead": 0}, r"--lookahead must be at least 1, not 0"),
        ({"num_workers": 0}, r"--num_workers must be at least 1, not 0"),
        ({"part_bytes": -5}, r"--part_bytes must be at least 1, not -5"),
        ({"val_fraction": 1}, r"--val_fraction must be at least 0 and less than 1, not 1.0"),
        ({"val_fraction": -0.1}, r"--val_fraction must be at least 0 and less than 1, not -0.1"),
        ({"val_fraction": "nan"}, r"--val_fraction must be at least 0 and less than 1, not nan"),
        ({"compression": "zip"}, r"--compression must be zstd.*not 'zip'"),
        ({"compression": "zstd:23"}, r"--compression must be zstd.*not 'zstd:23'"),
        ({"out": __file__}, r"is a file; give a folder"),
        ({"input": "/no/such/input"}, r"input '/no/such/input' does not exist"),
        ({"extensions": ".rs"}, r"holds no file with the extensions \.rs \(it holds: .*\.py"),
        ({"tokenizer": "/no/such/model"}, r"tokenizer '/no/such/model' is not a file"),
        ({"tokenizer": __file__}, r"is not a SentencePiece model"),
        ({"seq_len": 0, "lookahead": 0}, r"--seq_len.*\n.*--lookahead"),
    ],
)
def test_mistakes_are_said_before_any_work(
    changes: dict[str, Any], message: str, corpus: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_shards.main(_arguments(corpus, model, **{"out": tmp_path / "out"} | changes))
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_beyond_uint16_is_refused(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = write_shards.load_tokenizer(str(model))
    tokenizer.vocab_size = 65537
    monkeypatch.setattr(write_shards, "load_tokenizer", lambda name, **_: tokenizer)
    with pytest.raises(UserError, match="has 65537 ids; shards hold 65536"):
        write_shards.main(_arguments(corpus, model, tmp_path / "out"))


def test_a_folder_of_something_else_is_left_alone(corpus: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"is not empty and no shards of ours \(it holds corpus\)"):
        write_shards.main(_arguments(corpus, model, tmp_path))
    assert (tmp_path / "thesis.tex").exists()


def test_two_runs_on_one_folder(corpus: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        filelock.FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(UserError, match="another write_shards is writing to"),
    ):
        write_shards.main(_arguments(corpus, model, tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"val_fraction": 1e-9},
            r"split 'val' would have no window of 64 \+ 8 tokens .*change --val_fraction \(1e-09\)",
        ),
        ({"min_bytes": 10**9}, r"no documents in .*; dropped: 1 binary \(first: .*binary\.py\), .* min_bytes"),
    ],
)
def test_shards_without_windows_are_refused_and_can_be_mended(
    changes: dict[str, Any], message: str, corpus: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_shards.main(_arguments(corpus, model, tmp_path / "out", **changes))
    write_shards.main(_arguments(corpus, model, tmp_path / "out", val_fraction=0))  # the advice can be followed at once
    assert not (tmp_path / "out" / "val").exists()


def test_jsonl_without_the_text_field_says_so(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "x"}\n' * 3)
    with pytest.raises(UserError, match=r"no documents in .*; dropped: 3 no_text_field \(first: .*a\.jsonl:1\)"):
        write_shards.main(_arguments(tmp_path / "a.jsonl", model, tmp_path / "out"))


def test_a_mistake_is_one_line_and_exit_code_2(corpus: Path, tmp_path: Path) -> None:
    done = run_module("data_prep.write_shards", "--input", corpus, "--tokenizer", "bytes", "--out", "x", "--seq_len", 0)
    assert done.returncode == 2
    assert done.stderr == "write_shards: error: bad arguments: --seq_len must be at least 1, not 0\n"


@pytest.mark.parametrize("module", ["write_shards", "check_shards", "train_tokenizer"])
def test_help_shows_an_example(module: str) -> None:
    done = run_module(f"data_prep.{module}", "--help")
    assert done.returncode == 0
    assert f"python -m data_prep.{module} " in done.stdout.partition("examples:")[2]
