"""Input that changes between the shares, the readings and the restarts of write_shards, at the same size."""

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.command_line import UserError
from data_prep import merge_shards, write_shards
from tests.helpers.held import wait_until
from tests.helpers.own_problems import HUMANEVAL, write_jsonl
from tests.helpers.shard_writing import (
    SEQ_LEN,
    files_of,
    held_in_part,
    held_run,
    kill,
    model_arguments,
    option_words,
    written_files,
)

N_RECORDS, RECORD_BYTES = 300, 400
LONG_AGO_NS = 1_600_000_000_000_000_000


def _texts(seed: str) -> list[str]:
    return [f"{seed} {i:05} ".ljust(RECORD_BYTES, "x") for i in range(N_RECORDS)]


def _write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def _write_gz(path: Path, texts: list[str]) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(lines, compresslevel=0, mtime=0))


def _write_parquet(path: Path, texts: list[str]) -> None:
    table = pa.table({"text": texts})
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=50)


def _write_text(path: Path, texts: list[str]) -> None:
    path.write_text("\n".join(texts))


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    "jsonl": _write_jsonl, "jsonl.gz": _write_gz, "parquet": _write_parquet, "txt": _write_text,
}  # fmt: skip


def _set_time(path: Path) -> None:
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def _overwrite(path: Path, write: Callable[[Path, list[str]], None], texts: list[str]) -> None:
    """Write a file of the same size in place, at a time that may be the old one."""
    size = path.stat().st_size
    write(path, texts)
    assert path.stat().st_size == size


def _arguments(out: Path, *words: str, **changes: object) -> list[str]:
    options = {"tokenizer": "bytes", "out": out, "seq_len": SEQ_LEN, "val_fraction": 0, "part_bytes": 40_000,
               "num_workers": 1} | changes  # fmt: skip
    return [*words, *option_words(options)]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_changes_between_two_shares_is_refused(kind: str, mixed: bool, tmp_path: Path) -> None:
    names = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for path in names:
        WRITERS[kind](path, _texts("old"))
        _set_time(path)
    sources = ["--mix", *(f"{path.stem}={path}:1" for path in names)] if mixed else ["--input", *map(str, names)]
    words = _arguments(tmp_path / "out", *sources)
    write_shards.main([*words, "--part", "1/2"])
    before = files_of(tmp_path / "out")
    _overwrite(names[0], WRITERS[kind], _texts("new"))
    with pytest.raises(UserError, match=rf"a\.{kind} has changed since part-\d+ was written from it: from byte \d+ "):
        write_shards.main([*words, "--part", "2/2"])
    assert before.items() <= files_of(tmp_path / "out").items()
    _overwrite(names[0], WRITERS[kind], _texts("old"))  # put back, at another time
    write_shards.main([*words, "--part", "2/2"])
    merge_shards.main([str(tmp_path / "out")])
    whole = written_files(_arguments(tmp_path / "whole", *sources), tmp_path / "whole")
    assert {name: data for name, data in files_of(tmp_path / "out").items() if name.endswith(".mds")} == {
        name: data for name, data in whole.items() if name.endswith(".mds")
    }


def test_a_saved_data_set_that_changes_between_two_shares_is_refused(tmp_path: Path) -> None:
    for seed in ("old", "new"):
        datasets.Dataset.from_dict({"text": _texts(seed)}).save_to_disk(str(tmp_path / seed))
    arrow = next((tmp_path / "old").glob("*.arrow"))
    _set_time(arrow)
    jsonl = tmp_path / "a.jsonl"
    _write_jsonl(jsonl, _texts("old"))
    words = _arguments(tmp_path / "out", "--input", f"hf:{tmp_path / 'old'}", str(jsonl))
    write_shards.main([*words, "--part", "1/2"])
    other = next((tmp_path / "new").glob("*.arrow"))
    assert other.stat().st_size == arrow.stat().st_size
    shutil.copyfile(other, arrow)
    with pytest.raises(UserError, match=r"/old has changed since part-00000 was written from it"):
        write_shards.main([*words, "--part", "2/2"])


def test_a_copy_with_other_times_is_the_same_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    _write_jsonl(path, _texts("old"))
    _set_time(path)
    words = _arguments(tmp_path / "out", "--input", str(path))
    write_shards.main([*words, "--part", "1/2"])
    os.utime(path, ns=(LONG_AGO_NS + 1, LONG_AGO_NS + 1))
    assert "comparing" not in capsys.readouterr().err
    write_shards.main([*words, "--part", "2/2"])
    assert "comparing" in capsys.readouterr().err
    merge_shards.main([str(tmp_path / "out")])


def test_a_file_that_changes_between_kill_and_continuation_is_refused(
    corpus: Path, model: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    words, first = model_arguments(corpus, model, tmp_path / "out", dedup="exact"), corpus / "email" / "__init__.py"
    kill(held_run(words, held_in_part(1, file=tmp_path / "hold")))
    old = first.read_bytes()
    first.write_bytes(old.swapcase())
    with pytest.raises(UserError, match=r"email/__init__\.py has changed since part-00000 was written from it"):
        write_shards.main(words)
    first.write_bytes(old)
    assert written_files(words, tmp_path / "out") == reference


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """A file of several parts: the first part holds the old half, and the later ones the new one."""
    path = tmp_path / "a.jsonl"
    _write_jsonl(path, _texts("old"))
    _set_time(path)
    words = _arguments(tmp_path / "out", "--input", str(path))
    hold = held_in_part(1, file=tmp_path / "hold", splits=1)
    run = held_run(words, hold, stderr=subprocess.PIPE, text=True)
    _overwrite(path, _write_jsonl, _texts("new"))
    hold.release()
    wait_until(lambda: run.poll() is not None)
    assert run.returncode == 2
    assert run.stderr is not None
    assert "a.jsonl has changed since part-00000 was written from it" in run.stderr.read()
    assert not (tmp_path / "out" / "metadata.json").exists()


def test_a_finished_folder_says_which_input_is_newer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    _write_jsonl(path, _texts("old"))
    _set_time(path)
    words = _arguments(tmp_path / "out", "--input", str(path))
    write_shards.main(words)
    capsys.readouterr()
    write_shards.main(words)
    assert "changed" not in capsys.readouterr().out
    _overwrite(path, _write_jsonl, _texts("new"))
    write_shards.main(words)
    assert f"1 file of the input changed since it was finished, such as {path}" in capsys.readouterr().out


def _meanwhile(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Let something change after the command line has been read, and before a worker starts."""
    write = write_shards.write_share

    def change_and_write(*arguments: Any, **options: Any) -> None:
        change()
        write(*arguments, **options)

    monkeypatch.setattr(write_shards, "write_share", change_and_write)


def test_the_tokenizer_may_disappear_while_parts_are_written(
    corpus: Path, model: Path, tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copy(model, tmp_path / "copy.model"))
    _meanwhile(monkeypatch, copied.unlink)
    out = tmp_path / "out"
    written = written_files(model_arguments(corpus, copied, out, dedup="exact"), out)
    assert {name: data for name, data in written.items() if name.endswith(".mds")} == {
        name: data for name, data in reference.items() if name.endswith(".mds")
    }


def test_a_benchmark_that_changes_while_parts_are_written_spoils_the_folder(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = write_jsonl(tmp_path / "humaneval.jsonl", HUMANEVAL)
    _meanwhile(monkeypatch, lambda: write_jsonl(benchmark, HUMANEVAL[:1]))
    words = _arguments(tmp_path / "out", "--input", str(corpus), decontaminate=benchmark)
    with pytest.raises(UserError, match="a file of --decontaminate changed while parts were written"):
        write_shards.main(words)
    monkeypatch.undo()
    write_jsonl(benchmark, HUMANEVAL)
    with pytest.raises(UserError, match="cannot be continued: a file of --decontaminate changed"):
        write_shards.main(words)


def test_a_part_that_does_not_say_what_it_was_written_from_is_written_again(
    corpus: Path, model: Path, tmp_path: Path, reference: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """So did earlier versions."""
    words = model_arguments(corpus, model, tmp_path / "out", dedup="exact")
    kill(held_run(words, held_in_part(1, file=tmp_path / "hold")))
    (tmp_path / "out" / "work" / "part-00000.input.npy").unlink()
    assert written_files(words, tmp_path / "out") == reference
    assert "warning: part-00000 does not say what it was written from; it is written again" in capsys.readouterr().out


def test_damaged_notes_on_the_input_are_named(corpus: Path, model: Path, tmp_path: Path) -> None:
    words = model_arguments(corpus, model, tmp_path / "out")
    kill(held_run(words, held_in_part(1, file=tmp_path / "hold")))
    path = tmp_path / "out" / "work" / "part-00000.input.npy"
    for content in (b"", path.read_bytes()[:-8], b"\x93NUMPY junk"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"part-00000\.input\.npy is damaged: .*; delete it, and run the same"):
            write_shards.main(words)
