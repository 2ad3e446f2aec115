"""write_shards with the fast engine, with SentencePiece alone, and with an engine that is wrong."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import xxhash

from common.shard_format import METADATA
from data_prep import write_shards
from tests.conftest import run_module
from tests.helpers.written import arguments_for, files_of, make_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "corpus")


@pytest.fixture
def model(sentencepiece_model: Path) -> Path:
    return sentencepiece_model


@pytest.fixture
def reference(corpus: Path, model: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files that the fast engine writes."""
    write_shards.main(arguments_for(corpus, model, tmp_path / "reference", dedup="exact"))
    return files_of(tmp_path / "reference")


def test_every_engine_writes_the_same_shards(
    corpus: Path, model: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    arguments = arguments_for(corpus, model, tmp_path / "out", dedup="exact", tokenizer_engine="sentencepiece")
    write_shards.main(arguments)
    files = files_of(tmp_path / "out")
    versions, reference_versions = (json.loads(of[METADATA])["versions"] for of in (files, reference))
    assert reference_versions.keys() - versions.keys() == {"gigatoken"}
    assert {name: data for name, data in files.items() if name != METADATA} == {
        name: data for name, data in reference.items() if name != METADATA
    }


def test_an_engine_is_no_argument_that_a_finished_folder_is_refused_for(
    corpus: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards.main(arguments_for(corpus, model, tmp_path / "out"))
    write_shards.main(arguments_for(corpus, model, tmp_path / "out", tokenizer_engine="sentencepiece"))
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
    arguments = arguments_for(corpus / "email", model, out, num_workers=2)
    result = _run_with_engine(tmp_path / "engine", _WRONG_ENGINE, *arguments, model=model, wrong_text="ABRACADABRA")
    assert result.returncode == 2
    assert f"error: {corpus}/email/00.py: at token 5 the fast tokenizer gives 7, sentencepiece " in result.stderr
    assert "run again with --tokenizer_engine sentencepiece" in result.stderr
    assert "Traceback" not in result.stderr
    assert set(files_of(out)) <= {".lock"}
    again = run_module("data_prep.write_shards", *arguments, "--tokenizer_engine", "sentencepiece")
    assert again.returncode == 0


def test_documents_are_compared_by_their_hash_too(corpus: Path, model: Path, tmp_path: Path) -> None:
    texts = (f"number {i} of many documents that begin alike" for i in range(5000))
    chosen = next(text for text in texts if xxhash.xxh3_128_digest(text.encode())[-1] < 2)
    lines = [json.dumps({"text": text}) for text in (*(f"some text {i} or other" for i in range(20)), chosen)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    arguments = arguments_for(tmp_path / "corpus.jsonl", model, tmp_path / "out", seq_len=16)
    result = _run_with_engine(tmp_path / "engine", _WRONG_ENGINE, *arguments, model=model, wrong_text=chosen)
    assert result.returncode == 2
    assert f"{tmp_path}/corpus.jsonl:21: at token 5 the fast" in result.stderr


@pytest.mark.parametrize(
    ("source", "wrong_text", "reason"),
    [
        ("raise ImportError('no such')", "", r"gigatoken is not installed, or cannot be imported \(no such\)"),
        (_WRONG_ENGINE, "</s>", r"gigatoken \S+ gives other ids than sentencepiece for 'a</s>b <unk>'"),
    ],
)
def test_without_the_engine_sentencepiece_does_it(
    source: str, wrong_text: str, reason: str, corpus: Path, model: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    arguments = arguments_for(corpus, model, tmp_path / "out", dedup="exact")
    result = _run_with_engine(tmp_path / "engine", source, *arguments, model=model, wrong_text=wrong_text)
    assert result.returncode == 0
    assert re.search(rf"^tokenizing with sentencepiece, .*: {reason}$", result.stdout, re.MULTILINE)
    files = files_of(tmp_path / "out")
    assert "gigatoken" not in json.loads(files[METADATA])["versions"]
    assert all(files[name] == data for name, data in reference.items() if name != METADATA)
