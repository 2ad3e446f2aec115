"""write_shards with the fast engine, with SentencePiece alone, and with an engine that gives wrong ids."""

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
from tests.helpers.shard_writing import files_of, model_arguments


def test_every_engine_writes_the_same_shards(
    corpus: Path, model: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    arguments = model_arguments(corpus, model, tmp_path / "out", dedup="exact", tokenizer_engine="sentencepiece")
    write_shards.main(arguments)
    files = files_of(tmp_path / "out")
    versions, reference_versions = (json.loads(of[METADATA])["versions"] for of in (files, reference))
    assert reference_versions.keys() - versions.keys() == {"gigatoken"}
    assert {name: data for name, data in files.items() if name != METADATA} == {
        name: data for name, data in reference.items() if name != METADATA
    }


def test_a_finished_folder_is_kept_whatever_the_engine(
    corpus: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards.main(model_arguments(corpus, model, tmp_path / "out"))
    write_shards.main(model_arguments(corpus, model, tmp_path / "out", tokenizer_engine="sentencepiece"))
    assert "already finished" in capsys.readouterr().out


# Imported in place of gigatoken; gives a wrong id for texts that contain WRONG_TEXT.
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
    """Run write_shards in an environment where `import gigatoken` imports `source`."""
    folder.mkdir()
    (folder / "gigatoken.py").write_text(source)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return run_module(
        "data_prep.write_shards", *arguments, PYTHONPATH=path, WRONG_MODEL=str(model), WRONG_TEXT=wrong_text
    )


def test_a_wrong_id_ends_the_run_and_what_it_wrote_is_not_continued(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # the ids of the first document of a part are always compared with the reference
    (corpus / "email" / "00.py").write_text("a = 'a text that an engine has not learned' ; b = 'ABRACADABRA'\n")
    arguments = model_arguments(corpus / "email", model, out, num_workers=2)
    result = _run_with_engine(tmp_path / "engine", _WRONG_ENGINE, *arguments, model=model, wrong_text="ABRACADABRA")
    assert result.returncode == 2
    assert f"error: {corpus}/email/00.py: at token 5 the fast tokenizer gives 7, sentencepiece " in result.stderr
    assert "write all of them into another --out, with --tokenizer_engine sentencepiece" in result.stderr
    assert "Traceback" not in result.stderr
    written = files_of(out)
    assert [name for name in written if name.startswith("work/part-")]
    again = run_module("data_prep.write_shards", *arguments, "--tokenizer_engine", "sentencepiece")
    assert again.returncode == 2
    assert f"{out} cannot be continued: {corpus}/email/00.py: at token 5 the fast tokenizer gives" in again.stderr
    assert files_of(out) == written
    arguments[arguments.index("--out") + 1] = str(tmp_path / "another")
    again = run_module("data_prep.write_shards", *arguments, "--tokenizer_engine", "sentencepiece")
    assert again.returncode == 0


def test_later_documents_are_compared_if_their_hash_selects_them(corpus: Path, model: Path, tmp_path: Path) -> None:
    texts = (f"number {i} of many documents that begin alike" for i in range(5000))
    chosen = next(text for text in texts if xxhash.xxh3_128_digest(text.encode())[-1] < 2)
    lines = [json.dumps({"text": text}) for text in (*(f"some text {i} or other" for i in range(20)), chosen)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    arguments = model_arguments(tmp_path / "corpus.jsonl", model, tmp_path / "out", seq_len=16)
    result = _run_with_engine(tmp_path / "engine", _WRONG_ENGINE, *arguments, model=model, wrong_text=chosen)
    assert result.returncode == 2
    assert f"{tmp_path}/corpus.jsonl:21: at token 5 the fast" in result.stderr


@pytest.mark.parametrize(
    ("source", "wrong_text", "reason"),
    [
        ("raise ImportError('no such')", "", r"gigatoken is not installed, or cannot be imported: no such"),
        (_WRONG_ENGINE, "</s>", r"gigatoken \S+ gives other ids than sentencepiece for 'a</s>b <unk>'"),
    ],
)
def test_sentencepiece_is_used_if_the_fast_engine_fails(
    source: str,
    wrong_text: str,
    reason: str,
    corpus: Path,
    model: Path,
    tmp_path: Path,
    reference: dict[str, bytes],
) -> None:
    arguments = model_arguments(corpus, model, tmp_path / "out", dedup="exact")
    result = _run_with_engine(tmp_path / "engine", source, *arguments, model=model, wrong_text=wrong_text)
    assert result.returncode == 0
    assert re.search(rf"^tokenizing with sentencepiece, .*: {reason}$", result.stdout, re.MULTILINE)
    files = files_of(tmp_path / "out")
    assert "gigatoken" not in json.loads(files[METADATA])["versions"]
    assert all(files[name] == data for name, data in reference.items() if name != METADATA)
