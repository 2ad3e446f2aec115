"""Inputs and options that write_shards refuses, and its messages."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from data_prep import write_shards
from data_prep.shards.folder import locked
from tests.conftest import REPOSITORY, run_module
from tests.helpers.records import jsonl
from tests.helpers.shard_writing import files_of, model_arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 0}, r"--seq_len must be a whole number from 1 to 536,870,912, not 0"),
        ({"seq_len": 10**30}, r"--seq_len must be a whole number from 1 to 536,870,912, not 1000"),
        ({"seq_len": 1 << 29}, r"--seq_len and --lookahead must be at most 536870912 together"),
        ({"lookahead": 0}, r"--lookahead must be a whole number from 1 to 536,870,912, not 0"),
        ({"num_workers": 0}, r"--num_workers must be a whole number from 1 to 1,024, not 0"),
        ({"part_bytes": -5}, r"--part_bytes must be a whole number from 1 to .*, not -5"),
        ({"val_fraction": 1}, r"--val_fraction must be a number at least 0 and below 1, not 1$"),
        ({"val_fraction": -0.1}, r"--val_fraction must be a number at least 0 and below 1, not -0.1"),
        ({"val_fraction": "nan"}, r"--val_fraction must be a number at least 0 and below 1, not nan"),
        ({"compression": "zip"}, r"--compression must be zstd.*not 'zip'"),
        ({"compression": "zstd:23"}, r"--compression must be zstd.*not 'zstd:23'"),
        ({"min_bytes": -1}, r"--min_bytes must be a whole number from 0 to .*, not -1"),
        ({"max_bytes": 0}, r"--max_bytes must be a whole number from 1 to .*, not 0"),
        ({"min_bytes": 9, "max_bytes": 8}, r"--min_bytes 9 and --max_bytes 8 leave no document"),
        ({"max_line_length": -3}, r"--max_line_length must be a whole number from 1 to .*, not -3"),
        (
            {"max_mean_line_length": "nan"},
            r"--max_mean_line_length must be a number at least 1 and .*, not nan",
        ),
        (
            {"min_alphanumeric_fraction": 25},
            r"--min_alphanumeric_fraction must be a number .*, not 25",
        ),
        (
            {"licenses": "mit", "min_bytes": 9, "max_bytes": 8},
            r"--min_bytes.*\n.*--license_field and --licenses need",
        ),
        ({"out": __file__}, r"is a file; give a folder"),
        ({"input": "/dev/null"}, r"input '/dev/null' is a pipe or a device"),
        ({"input": "hf:"}, r"input 'hf:' names no data set; write hf:PATH_OR_NAME"),
        ({"input": "/no/such/input"}, r"input '/no/such/input' does not exist"),
        ({"input": "s3://bucket/corpus"}, r"input 's3://bucket/corpus' is not a local path"),
        ({"extensions": ".rs"}, r"holds no file with the extensions \.rs \(it holds: .*\.py"),
        ({"tokenizer": "/no/such/model"}, r"tokenizer /no/such/model cannot be read: No such file"),
        ({"tokenizer": __file__}, r"is not a SentencePiece model"),
        ({"seq_len": 0, "lookahead": 0}, r"--seq_len.*\n.*--lookahead"),
    ],
)
def test_mistakes_are_reported_before_any_work(
    changes: dict[str, Any], message: str, corpus: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_shards.main(model_arguments(corpus, model, **{"out": tmp_path / "out"} | changes))
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_beyond_uint16_is_refused(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = write_shards.load_tokenizer(str(model))
    tokenizer.vocab_size = 65537
    monkeypatch.setattr(write_shards, "load_tokenizer", lambda name, **_: tokenizer)
    with pytest.raises(UserError, match="has 65537 ids; shards hold 65536"):
        write_shards.main(model_arguments(corpus, model, tmp_path / "out"))


def test_a_folder_of_something_else_is_left_alone(corpus: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"is not empty, and does not hold shards \(it holds corpus\)"):
        write_shards.main(model_arguments(corpus, model, tmp_path))
    assert (tmp_path / "thesis.tex").exists()


def test_a_second_run_on_a_folder_is_refused(corpus: Path, model: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "out"):  # a second run in this process would not see the lock
        done = run_module("data_prep.write_shards", *model_arguments(corpus, model, tmp_path / "out"))
    assert done.returncode == 2
    assert "another write_shards is writing to" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"val_fraction": 1e-9},
            r"split 'val' would have no window of 64 \+ 8 tokens .* one of 4 parts\): raise --val_fraction \(1e-09\)",
        ),
        (
            {"min_bytes": 10**9},
            r"no documents in .*; dropped: 1 binary \(first: .*binary\.py, byte \d+: NUL\), .* min_bytes",
        ),
    ],
)
def test_shards_without_windows_are_refused_and_the_advice_helps(
    changes: dict[str, Any], message: str, corpus: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        write_shards.main(model_arguments(corpus, model, out, **changes))
    refused = files_of(out)
    marks = [name for name in refused if name.startswith("work/part-") and name.endswith(".json")]
    assert len(marks) == 4  # all parts are finished, and stay
    with pytest.raises(UserError, match=message):
        write_shards.main(model_arguments(corpus, model, out, **changes))
    assert files_of(out) == refused
    with pytest.raises(UserError, match=r"unfinished run with other arguments: .*; choose another --out, or delete it"):
        write_shards.main(model_arguments(corpus, model, out, val_fraction=0))
    write_shards.main(model_arguments(corpus, model, tmp_path / "another", val_fraction=0))
    assert not (tmp_path / "another" / "val").exists()


def test_parts_too_small_for_a_window_are_kept_and_larger_ones_advised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "corpus.jsonl", tmp_path / "out"
    path.write_bytes(jsonl(*({"text": f"document {i} " * 20} for i in range(500))))
    wanted = {"tokenizer": "bytes", "seq_len": 4096, "val_fraction": 0.1, "part_bytes": 10_000}
    message = (
        r"split 'val' would have no window of 4096 \+ 8 tokens \(it has \d+ documents, [\d,]{6} tokens, of which "
        rf"\d+ in one of 14 parts\): raise --part_bytes, .*; all finished parts stay in {out}, so that"
    )
    with pytest.raises(UserError, match=message):
        write_shards.main(model_arguments(path, path, out, **wanted))
    assert "warning: val/ may be without a window of 4096 + 8 tokens" in capsys.readouterr().out
    assert len(list(out.glob("train/part-*/index.json"))) == len(list(out.glob("work/part-*.json"))) == 14
    write_shards.main(model_arguments(path, path, tmp_path / "another", **wanted | {"part_bytes": 10**6}))
    assert "warning" not in capsys.readouterr().out


def test_jsonl_without_the_text_field_is_reported(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"contents": "x"}\n' * 3)
    message = r"holds no text: .*a\.jsonl:1, byte 0: no key 'content' among 'contents'; did you mean 'contents'\?; name"
    with pytest.raises(UserError, match=message):
        write_shards.main(model_arguments(tmp_path / "a.jsonl", model, tmp_path / "out", text_field="content"))
    assert not (tmp_path / "out").exists()


def test_closed_standard_input_is_refused(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "data_prep.write_shards", "--input", "-", "--tokenizer", "bytes", "--out"]
    command = f"{shlex.join(words)} {shlex.quote(str(tmp_path / 'out'))} <&-"
    done = subprocess.run(command, shell=True, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "data_prep.write_shards: error: input '-' is jsonl from standard input, which is closed;"
        " pipe something into it\n"
    )


def test_a_mistake_gives_one_line_and_exit_code_2(corpus: Path, tmp_path: Path) -> None:
    done = run_module("data_prep.write_shards", "--input", corpus, "--tokenizer", "bytes", "--out", "x", "--seq_len", 0)
    assert done.returncode == 2
    assert done.stderr == (
        "data_prep.write_shards: error: bad arguments: --seq_len must be a whole number from 1 to 536,870,912, not 0\n"
    )


@pytest.mark.parametrize("module", ["write_shards", "merge_shards", "upload_shards", "check_shards", "train_tokenizer"])
def test_help_shows_an_example(module: str) -> None:
    done = run_module(f"data_prep.{module}", "--help")
    assert done.returncode == 0
    assert f"python -m data_prep.{module} " in done.stdout.partition("example")[2]
