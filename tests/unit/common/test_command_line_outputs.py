"""Names of outputs that no command takes, and files that none of them replaces."""

import importlib
import json
from pathlib import Path

import pytest

from common.command_line import UserError
from common.files import PNG_HEAD, refuse_to_replace
from common.sentencepieces.sentencepiece_model import MODEL_HEAD
from data_prep import stats, train_tokenizer
from pipeline import report

OUTPUTS = [
    ("data_prep.write_shards", "--out"),
    ("data_prep.write_shards", "--work_dir"),
    ("data_prep.deduplicate_corpus", "--out"),
    ("data_prep.train_tokenizer", "--output"),
    ("data_prep.stats", "--output"),
    ("pipeline.report", "--output"),
    ("pipeline.plan", "--plot"),
    ("pipeline.convert", "--output"),
    ("pipeline.convert", "--input"),
    ("pipeline.evaluate", "--output"),
]
FOLDERS = ["data_prep.check_shards", "data_prep.merge_shards", "data_prep.report", "data_prep.stats", "pipeline.audit"]
BAD_NAMES = {
    "": "the name is empty; give a path",
    " ": "the name is empty; give a path",
    "n" * 300: "is too long: a name has at most 255 bytes, and a path 4095",
    "é" * 128: "is too long: a name has at most 255 bytes, and a path 4095",
    "/".join(["d" * 200] * 21): "is too long: a name has at most 255 bytes, and a path 4095",
    "a\nb": "'a\\nb' holds control characters; give another name",
    "s3://bucket/\x1b[31m": "'s3://bucket/\\x1b[31m' holds control characters; give another name",
    "a\x9bb": "'a\\x9bb' holds control characters; give another name",
    "a\0b": "holds NUL",
}


@pytest.mark.parametrize("name", BAD_NAMES, ids=[repr(name[:6]) for name in BAD_NAMES])
@pytest.mark.parametrize(("module", "option"), [*OUTPUTS, *((module, None) for module in FOLDERS)])
def test_a_name_that_cannot_be_an_output_is_one_message(
    module: str, option: str | None, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [name] if option is None else [f"{option}={name}"]
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(module).main(words)
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"{module}: error: argument {option or ''}")
    assert BAD_NAMES[name] in message


def test_a_name_of_255_bytes_is_an_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="there is nothing to show"):
        report.main([str(tmp_path), "--output", str(tmp_path / ("n" * 250 + ".html"))])


def test_only_files_of_the_same_kind_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    refuse_to_replace(path, head=PNG_HEAD, kind="a picture")
    for content in (b"", PNG_HEAD, PNG_HEAD + b"more"):
        path.write_bytes(content)
        refuse_to_replace(path, head=PNG_HEAD, kind="a picture")
    path.write_bytes(PNG_HEAD[:-1])
    with pytest.raises(UserError, match=r"a\.png exists already, and is not a picture; choose another name"):
        refuse_to_replace(path, head=PNG_HEAD, kind="a picture")
    with pytest.raises(UserError, match="is no file; choose another name"):
        refuse_to_replace(tmp_path, head=PNG_HEAD, kind="a picture")
    with pytest.raises(UserError, match="there is no folder"):
        refuse_to_replace(tmp_path / "no" / "a.png", head=PNG_HEAD, kind="a picture")


def test_an_output_that_is_an_input_or_a_strangers_file_stays(byte_shards: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("one two three\n" * 99)
    with pytest.raises(UserError, match=r"a\.txt exists already, and is not a SentencePiece model"):
        train_tokenizer.main(["--input", str(text), "--output", str(text)])
    with pytest.raises(UserError, match=r"a\.txt exists already, and is not a report"):
        report.main([str(tmp_path), "--output", str(text)])
    metadata = (byte_shards / "metadata.json").read_bytes()
    with pytest.raises(UserError, match=r"metadata\.json exists already, and is not what stats wrote"):
        stats.main([str(byte_shards), "--output", str(byte_shards / "metadata.png")])
    assert text.read_text() == "one two three\n" * 99
    assert (byte_shards / "metadata.json").read_bytes() == metadata


def test_outputs_of_the_commands_can_be_replaced(byte_shards: Path, sentencepiece_model: Path, tmp_path: Path) -> None:
    assert sentencepiece_model.read_bytes().startswith(MODEL_HEAD)
    for _ in range(2):
        stats.main([str(byte_shards), "--output", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").read_bytes().startswith(PNG_HEAD)
    assert json.loads((tmp_path / "a.json").read_text()).keys() == {"splits", "languages"}
