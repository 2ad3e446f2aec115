"""Whole runs of write_shards over mixtures, standard input, damaged input and input that changes."""

import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.command_line import UserError
from common.shard_format import METADATA, read_index
from data_prep import write_parts, write_shards
from data_prep.filters.digests import digest, is_validation
from data_prep.shards.parts import WORK_FOLDER
from data_prep.shards.reader import read_shard
from data_prep.shards.tally import REPORT
from data_prep.sources.mixture import copies_of
from tests.conftest import REPOSITORY
from tests.helpers.held import wait_until
from tests.helpers.shard_writing import kill_in_second_part, option_words

TEXTS = [f"document {i}" for i in range(2000)]


def _write(path: Path, texts: list[str], **columns: str) -> Path:
    path.write_text("".join(json.dumps({"text": text} | columns) + "\n" for text in texts))
    return path


def _run(out: Path, *words: object, **changes: object) -> dict[str, Any]:
    """Write shards of bytes; return metadata.json."""
    options = {"out": out, "tokenizer": "bytes", "seq_len": 64, "lookahead": 8, "num_workers": 1, "val_fraction": 0.0}
    write_shards.main([*map(str, words), *option_words(options | changes)])
    metadata: dict[str, Any] = json.loads((out / METADATA).read_text())
    return metadata


def _shards(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.mds"))}


def test_a_mixture_of_every_kind_of_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    languages = ["python" if i % 2 else "c" for i in range(300)]
    table = pa.table({"text": [f"stack {i}" for i in range(300)], "lang": languages})
    pq.write_table(table, tmp_path / "stack.parquet", row_group_size=50)
    (tmp_path / "hub").mkdir()
    for i in range(2):
        _write(tmp_path / "hub" / f"train-{i}.jsonl", [f"hub {i} {j}" for j in range(50)], lang="c")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "blob.bin").write_bytes(bytes(range(256)))
    (tmp_path / "tree" / "cp1252.py").write_bytes(b"# caf\xe9\n")
    mix = [
        f"py={tmp_path / 'stack.parquet'}#python:2.5",
        f"c={tmp_path / 'stack.parquet'}#c:0.5",
        f"hub=hf:{tmp_path / 'hub'}:1",
        f"tree={tmp_path / 'tree'}:1",
        f"rust={tmp_path / 'stack.parquet'}#rust:1",
    ]
    words = ["--mix", *mix, "--language_field", "lang", "--extensions", "*", "--dedup", "exact"]
    metadata = _run(tmp_path / "out", *words, num_workers=2, part_bytes=1000)

    sources, splits = metadata["shares"], metadata["splits"].values()
    for unit in ("documents", "bytes", "tokens"):
        assert sum(counts[unit] for counts in sources.values()) == sum(split[unit] for split in splits)
    assert list(sources) == ["py", "c", "hub", "tree", "rust"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "--mix rust: none of the first records is in rust; they are in: c, python"
    lines = [line.split() for line in printed[printed.index(next(line for line in printed if "of tokens" in line)) :]]
    assert lines[4][:2] == ["tree", "2"]
    assert lines[5] == ["rust", "0", "0.00", "0", "0.00%"]
    assert sources["hub"]["documents"] == 100
    assert sources["tree"] == {"documents": 2, "bytes": 256 + 7, "tokens": 256 + 7 + 2}
    assert 300 < sources["py"]["documents"] < 450  # 150 documents twice, and half of them a third time
    assert 45 < sources["c"]["documents"] < 105
    assert metadata["dropped"]["other_language"] == 150 + 150 + 300
    assert metadata["dropped"]["not_sampled"] == 150 - sources["c"]["documents"]
    assert [source["weight"] for source in metadata["sources"]] == [2.5, 0.5, 1.0, 1.0, 1.0]
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["kept"]["documents"] == sum(split["documents"] for split in splits)

    _run(tmp_path / "again", *words, num_workers=1, part_bytes=1000)
    assert _shards(tmp_path / "again") == _shards(tmp_path / "out")


def test_small_shards_of_a_data_set_share_parts_as_small_files_do(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    for i in range(60):
        _write(folder / f"train-{i:02}.jsonl", [f"document {i} {j}" for j in range(20 + i)])
    sizes = {"part_bytes": 20_000, "val_fraction": 0.1, "seq_len": 256}
    files = _run(tmp_path / "files", "--input", folder, "--extensions", ".jsonl", **sizes)
    streamed = _run(tmp_path / "streamed", "--input", f"hf:{folder}", **sizes)
    assert streamed["splits"] == files["splits"]
    assert _shards(tmp_path / "streamed") == _shards(tmp_path / "files")
    n_parts = len(list((tmp_path / "streamed" / "train").glob("part-*")))
    assert 3 < n_parts < 8
    assert streamed["splits"]["val"]["tail_tokens"] < n_parts * (256 + 8)


def _command(out: Path, *words: object) -> list[str]:
    fixed = ["--out", out, "--tokenizer", "bytes", "--seq_len", 64, "--num_workers", 1, "--val_fraction", 0]
    return [sys.executable, "-m", "data_prep.write_shards", *map(str, [*fixed, *words])]


def test_standard_input_is_copied_as_a_whole_or_not_at_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    corpus = _write(tmp_path / "a.jsonl", [f"{text} of standard input" for text in TEXTS])
    out, kept = tmp_path / "out", tmp_path / "out" / WORK_FOLDER / "stdin.jsonl"
    command = _command(out, "--input", "-", "--part_bytes", 20_000)

    reading = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE)
    assert reading.stdin is not None
    reading.stdin.write(corpus.read_bytes()[:50_000])
    reading.stdin.flush()
    wait_until(lambda: any((out / WORK_FOLDER).glob(".stdin.jsonl.partial-*")), reading)
    reading.send_signal(signal.SIGKILL)
    reading.wait()
    assert not kept.exists()

    with corpus.open("rb") as file:
        kill_in_second_part(command[3:], file=tmp_path / "held", splits=1, stdin=file)
    assert len(list((out / WORK_FOLDER).glob("part-*[0-9].json"))) == 1
    assert kept.read_bytes() == corpus.read_bytes()
    assert not (out / METADATA).exists()
    assert not list((out / WORK_FOLDER).glob(".stdin*partial*"))

    subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, check=True)
    assert f"continuing with the {corpus.stat().st_size:,} bytes that an earlier run read" in capfd.readouterr().out
    subprocess.run(_command(tmp_path / "file", "--input", corpus, "--part_bytes", 20_000), cwd=REPOSITORY, check=True)
    assert _shards(out) == _shards(tmp_path / "file")
    assert not kept.exists()
    source = json.loads((out / METADATA).read_text())["sources"][0]
    assert source == {"path": "-", "files": 1, "bytes": corpus.stat().st_size}

    subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, check=True)
    assert "standard input is neither read nor compared with the input of that run" in capfd.readouterr().out
    empty = subprocess.run(_command(tmp_path / "x", "--input", "-"), cwd=REPOSITORY, stdin=subprocess.DEVNULL)
    assert empty.returncode == 2
    assert "input '-' is jsonl from standard input, which is empty" in capfd.readouterr().err


def test_strict_ends_the_run_and_the_same_command_without_it_continues(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = _write(tmp_path / "a.jsonl", TEXTS).read_bytes()
    whole = gzip.compress(texts)
    (tmp_path / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    words = ["--input", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl.gz"), "--part_bytes", "20000"]
    strict = subprocess.run(_command(tmp_path / "out", *words, "--strict"), cwd=REPOSITORY)
    assert strict.returncode == 2
    error = capfd.readouterr().err
    assert f"data_prep.write_shards: error: {tmp_path}/b.jsonl.gz: corrupt_archive (byte {len(whole) // 2}: " in error
    assert "Traceback" not in error
    metadata = _run(tmp_path / "out", *words, lookahead=32, val_fraction=0.0)
    assert metadata["dropped"] == {"corrupt_archive": 1}
    assert metadata["splits"]["train"]["documents"] > len(TEXTS)
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    place = f"byte {len(whole) // 2}: the file ends too early"
    assert report["samples"]["corrupt_archive"][0]["detail"] == place
    assert f"{tmp_path}/b.jsonl.gz, {place}\n" in capfd.readouterr().out


def test_input_that_changed_since_the_survey_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "a.jsonl", TEXTS)
    decide = write_parts.decide

    def decide_and_change(*arguments: Any, **options: Any) -> Any:
        decided = decide(*arguments, **options)
        _write(path, TEXTS[:-100])
        return decided

    monkeypatch.setattr(write_parts, "decide", decide_and_change)
    with pytest.raises(
        UserError, match=r"a\.jsonl changed while it was read: .* 2000 records .* and 1900 when written"
    ):
        _run(tmp_path / "out", "--input", path, "--dedup", "exact")


def _texts_of_val(out: Path, metadata: dict[str, Any]) -> list[str]:
    """Return the documents of val/, but for those at the end of each part, of which tokens may be left over."""
    texts = []
    for entry in read_index(out / "val", strict=True):
        windows = read_shard(out / "val", entry, metadata).tokens
        ids = np.concatenate([windows[:, : metadata["seq_len"]].ravel(), windows[-1, metadata["seq_len"] :]])
        ends = np.flatnonzero(ids == metadata["tokenizer"]["eos_id"])
        texts += [bytes(run[run < 256].astype(np.uint8)).decode() for run in np.split(ids, ends)[:-1]]
    return texts


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("dedup", ["none", "exact"])
def test_val_has_each_document_of_a_file_once_whatever_names_it(suffix: str, dedup: str, tmp_path: Path) -> None:
    languages = ["python" if i % 2 else "c" for i in range(len(TEXTS))]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": TEXTS, "lang": languages}), path, row_group_size=100)
    else:
        rows = zip(TEXTS, languages, strict=True)
        path.write_text("".join(json.dumps({"text": text, "lang": name}) + "\n" for text, name in rows))
    (tmp_path / "link").symlink_to(path)
    mix = [f"few={path}#python:0.3", f"all={tmp_path}/./a{suffix}:1", f"c={tmp_path / 'link'}#c:2.5"]
    out = tmp_path / "out"
    metadata = _run(out, "--mix", *mix, "--language_field", "lang", val_fraction=0.2, dedup=dedup)
    in_val = [text for text in TEXTS if is_validation(digest(text.encode()), val_fraction=0.2)]
    assert metadata["splits"]["val"]["documents"] == len(in_val)
    found = _texts_of_val(out, metadata)
    assert len(found) > 0.9 * len(in_val)
    assert len(set(found)) == len(found)
    assert set(found) <= set(in_val)
    few = [text for text in TEXTS[1::2] if copies_of(digest(text.encode()), weight=0.3)]
    if dedup == "none":  # the second source gives those that the first one has not chosen, and the third none
        n_again = len(set(few) & set(in_val)) + len(set(TEXTS[::2]) & set(in_val))
        assert metadata["dropped"]["already_in_val"] == n_again
        train = {name: counts["documents"] for name, counts in metadata["shares"].items()}
        assert train["few"] == len(few)
        assert train["all"] == len(TEXTS) - len(set(few) & set(in_val))
        assert 2000 < train["c"] < 2.6 * 800
