"""Near deduplication by datatrove's stages, against that of one process; a real kill, and datatrove's executor."""

import gzip
import io
import json
import math
import os
import random
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest
import zstandard

from common.command_line import UserError
from common.files import hold_lock
from data_prep import deduplicate_corpus, write_shards
from data_prep.dedup import execution
from data_prep.dedup.survey import decide, decided, survey_part
from data_prep.filters.options import FilterOptions
from data_prep.shards.parts import WORK_FOLDER, Part, PartOptions
from data_prep.shards.tally import REPORT
from data_prep.sources.documents import ReadOptions
from data_prep.sources.listing import list_source
from data_prep.tokens.options import DocumentOptions
from data_prep.tokens.packing import WindowShape
from tests.conftest import run_module
from tests.helpers.held import Hold
from tests.helpers.own_problems import write_jsonl
from tests.helpers.shard_writing import held_run, kill, option_words

N_ORIGINALS = 60


def _text(seed: int, n_words: int = 300) -> list[str]:
    generator = random.Random(seed)
    return [f"w{generator.randrange(5000)}" for _ in range(n_words)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Originals; after them, for every second one, an equal or a near copy; two short documents; source files."""
    folder = tmp_path_factory.mktemp("near") / "corpus"
    folder.mkdir()
    originals = [_text(seed) for seed in range(N_ORIGINALS)]
    copies = []
    for number in range(0, N_ORIGINALS, 2):
        words = list(originals[number])
        if number % 4:
            words[100] = words[200] = "other"  # a Jaccard similarity of 0.93
        copies.append(words)
    rows = [
        {"content": " ".join(words), "lang": "Rust", "license": ["mit"], "stars": number, "path": f"src/{number}.rs"}
        for number, words in enumerate([*originals, *copies, ["few"], ["few"]])
    ]
    rows += [{"content": 5}, {"text": "no content"}]
    write_jsonl(folder / "b.jsonl", rows)
    (folder / "a.py").write_text(" ".join(_text(N_ORIGINALS)))
    (folder / "z.py").write_text("\n".join(_text(N_ORIGINALS)))  # the same words
    return folder


def _arguments(corpus: Path, out: Path, **changes: Any) -> list[str]:
    options = {"input": corpus, "extensions": ".py .jsonl", "text_field": "content", "language_field": "lang",
               "out": out, "tasks": 4, "num_workers": 1} | changes  # fmt: skip
    return option_words(options)


def _rows(out: Path) -> list[dict[str, Any]]:
    lines = []
    for path in sorted((out / "documents").iterdir()):
        with zstandard.open(path, "rt", encoding="utf-8") as file:
            lines += file.read().splitlines()
    return [json.loads(line) for line in lines]


def _files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "documents").iterdir()}


@pytest.fixture(scope="module")
def reference(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "out"
    deduplicate_corpus.main(_arguments(corpus, out))
    return out


def test_the_documents_that_stay_are_those_that_one_process_keeps(
    corpus: Path, reference: Path, tmp_path: Path
) -> None:
    (tmp_path / WORK_FOLDER).mkdir()
    pieces = list_source(str(corpus), extensions=[".py", ".jsonl"]).pieces
    part, reading = Part(0, pieces), ReadOptions(text_field="content")
    options = PartOptions(
        tmp_path, "bytes", "sentencepiece", reading, WindowShape(8, 1), 0.0, None, FilterOptions(), DocumentOptions()
    )
    survey_part(part, options, near=True)
    decide([part], tmp_path, near=True)
    reasons_of_first_file, reasons_of_rows, reasons_of_last_file = decided(part, tmp_path)
    stay = [number for number, reason in enumerate(reasons_of_rows) if not reason]
    assert (reasons_of_first_file, reasons_of_last_file) == ([""], ["near_duplicate"])
    n_short = 1  # one of the two short documents, which have no signature and are equal
    assert len(stay) == N_ORIGINALS + n_short
    rows = _rows(reference)
    assert [row["stars"] for row in rows if "stars" in row] == [*stay, stay[-1] + 1]
    assert [row["path"] for row in rows if "stars" not in row] == [str(corpus / "a.py")]
    assert json.loads((reference / "summary.json").read_text()) == {
        "kept": len(rows),
        "dropped": {"near_duplicate": N_ORIGINALS // 2 + 1, "no_text_field": 1, "text_not_a_string": 1},
    }


def test_records_keep_their_fields_and_write_shards_reads_them(corpus: Path, reference: Path, tmp_path: Path) -> None:
    row = next(row for row in _rows(reference) if row.get("stars") == 7)
    assert row == {"content": " ".join(_text(7)), "lang": "Rust", "license": ["mit"], "stars": 7, "path": "src/7.rs",
                   "language": "rust"}  # fmt: skip
    words = ["--input", str(reference / "documents"), "--extensions", ".jsonl.zst", "--text_field", "content"]
    words += ["--language_field", "language", "--tokenizer", "bytes", "--out", str(tmp_path / "out"), "--seq_len", "64"]
    write_shards.main([*words, "--dedup", "exact", "--val_fraction", "0", "--num_workers", "1"])
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    kept = {name: of["kept"]["documents"] for name, of in report["languages"].items()}
    assert kept == {"python": 1, "rust": N_ORIGINALS + 1}
    assert report["rules"]["duplicate"]["documents"] == 1  # the short one


def test_the_numbers_of_tasks_and_workers_change_no_document(corpus: Path, reference: Path, tmp_path: Path) -> None:
    deduplicate_corpus.main(_arguments(corpus, tmp_path / "a", tasks=1, num_workers=2))
    assert _rows(tmp_path / "a") == _rows(reference)
    assert len(_files(tmp_path / "a")) == 1 < len(_files(reference))


def test_datatroves_own_executor_runs_the_stages(corpus: Path, reference: Path, tmp_path: Path) -> None:
    from datatrove.executor.local import LocalPipelineExecutor

    from data_prep.dedup.minhash import stages_of, write_slices

    sources = [list_source(str(corpus), extensions=[".py", ".jsonl"], piece_bytes=8 << 20)]
    slices = deduplicate_corpus._cut(sources, n_tasks=4)
    work = tmp_path / "work"
    write_slices(slices, work)
    reading, filters = ReadOptions(text_field="content"), FilterOptions(language_field="lang")
    executor = None
    for name, (steps, n_tasks) in stages_of(work, n_tasks=len(slices), reading=reading, filters=filters).items():
        logs = str(tmp_path / "logs" / name)
        executor = LocalPipelineExecutor(steps, tasks=n_tasks, workers=1, logging_dir=logs, depends=executor)
    assert executor is not None
    executor.run()
    assert _files(work) == _files(reference)


def test_a_killed_run_continues(corpus: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    at = "datatrove.pipeline.dedup.minhash:MinhashDedupBuckets.run"
    hold = Hold(command="data_prep.deduplicate_corpus", at=at, after=3, file=tmp_path / "held")
    kill(held_run(_arguments(corpus, out), hold))
    assert not (out / "documents").exists()
    assert not (out / "summary.json").exists()
    done = {path: path.stat().st_mtime_ns for path in out.glob("logs/*/completions/*")}
    assert len(list(out.glob("logs/pairs/completions/*"))) == 3
    deduplicate_corpus.main(_arguments(corpus, out, num_workers=2))
    assert _files(out) == _files(reference)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert not (out / "work").exists()


def test_a_finished_folder_is_kept(corpus: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(reference)
    deduplicate_corpus.main(_arguments(corpus, reference))
    assert "already finished, with the same arguments" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"was written with other arguments: --min_bytes null there, 9 now; choose"):
        deduplicate_corpus.main(_arguments(corpus, reference, min_bytes=9))
    assert _files(reference) == before


def test_rules_apply_before_deduplication(tmp_path: Path) -> None:
    """A copy dropped for its licence does not cause another copy to be dropped; an empty file does no harm."""
    text = " ".join(_text(0))
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text, "license": name} for name in ("gpl-3.0", "mit", "mit")])
    (tmp_path / "b.jsonl").touch()
    words = ["--input", str(path), str(tmp_path / "b.jsonl"), "--license_field", "license", "--licenses", "mit"]
    deduplicate_corpus.main([*words, "--out", str(tmp_path / "out"), "--tasks", "2", "--num_workers", "1"])
    assert [row["license"] for row in _rows(tmp_path / "out")] == ["mit"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["dropped"] == {"license": 1, "near_duplicate": 1}


def test_input_that_changes_between_the_readings_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "corpus"
    shutil.copytree(corpus, copied)
    run_stage = execution._run_stage

    def run_and_change(*arguments: Any, name: str) -> None:
        run_stage(*arguments, name=name)
        if name == "clusters":
            (copied / "a.py").write_text("x" * (copied / "a.py").stat().st_size)

    monkeypatch.setattr(execution, "_run_stage", run_and_change)
    with pytest.raises(UserError, match=r"a\.py changed while it was read: from byte 0 it had other records before"):
        deduplicate_corpus.main(_arguments(copied, tmp_path / "out"))
    assert not list((tmp_path / "out" / "work" / "documents").glob("00000*"))


def test_the_output_is_json_that_others_read(tmp_path: Path) -> None:
    """Fields that nobody wants hold what Python, UTF-8 or JSON cannot: each document and field is still there."""
    texts = [" ".join(_text(number)) for number in range(6)]
    years = pa.array([4 * 10**11, 0], type=pa.timestamp("s"))  # the first is in the year 14645
    table = pa.table({"text": texts[:2], "crawled": years, "path": pa.array([b"a", b"\xff"]).view(pa.string())})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = [{"text": texts[2], "path": "a\udc80"}, {"text": texts[3], "score": math.nan, "path": "b"}]
    write_jsonl(tmp_path / "b.jsonl", rows)
    deep = "[" * 499 + "]" * 499
    (tmp_path / "c.jsonl").write_text(f'{{"text": "{texts[4]}", "path": "c", "tree": {deep}}}\n')
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff.txt")
    Path(strange).write_text(texts[5])
    names = [str(tmp_path / name) for name in ("a.parquet", "b.jsonl", "c.jsonl")]
    words = ["--input", *names, strange, "--out", str(tmp_path / "out"), "--tasks", "1", "--num_workers", "1"]
    deduplicate_corpus.main(words)
    deduplicate_corpus.main(words)  # the same input as before
    written = zstandard.ZstdDecompressor().stream_reader(_files(tmp_path / "out")["00000.jsonl.zst"]).read()
    flat = re.sub(rb', "tree": [\[\]]+', b"", written)
    assert len(flat) == len(written) - len(deep) - len(', "tree": ')
    found = {row["text"]: row for row in pyarrow.json.read_json(io.BytesIO(flat)).to_pylist()}
    assert [found[text]["path"] for text in texts] == ["a", "\\xff", "a\\udc80", "b", "c", f"{tmp_path}/d\\udcff.txt"]
    assert [str(found[text]["crawled"])[:4] for text in texts[:2]] == ["1464", "1970"]


def test_the_command_that_is_printed_next_works_and_counts_languages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"it's": " ".join(_text(number, 500)), "lang": "Rust" if number % 3 else "C"} for number in range(1000)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    words = ["--input", str(path), "--text_field", "it's", "--tasks", "1", "--num_workers", "2"]
    deduplicate_corpus.main([*words, "--language_field", "lang", "--out", str(tmp_path / "my out")])
    printed = capsys.readouterr().out.splitlines()
    command = shlex.split(printed[printed.index("next, or with the file of a tokenizer instead of bytes:") + 1])
    assert command[:3] == ["python", "-m", "data_prep.write_shards"]
    write_shards.main(command[3:])
    report = json.loads((tmp_path / "my out-shards" / REPORT).read_text())
    assert {name: of["kept"]["documents"] for name, of in report["languages"].items()} == {"c": 334, "rust": 666}

    capsys.readouterr()
    at = command.index("--language_field")
    write_shards.main([*command[3:at], *command[at + 2 : -1], str(tmp_path / "unknown")])
    assert "records name their language under 'language', but count as unknown" in capsys.readouterr().out


def test_help_shows_no_mixtures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        deduplicate_corpus.main(["--help"])
    shown = capsys.readouterr().out
    assert "--input SRC" in shown
    assert "--mix" not in shown
    assert "from standard input" not in shown


def test_mistakes_are_one_message(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"content": "a b c d e f"}\n' * 9)[:-9])
    strict = _arguments(tmp_path / "bad", tmp_path / "out", extensions=".jsonl.gz")
    done = run_module("data_prep.deduplicate_corpus", *strict, "--strict")
    assert done.returncode == 2
    assert "data_prep.deduplicate_corpus: error: " in done.stderr
    assert "a.jsonl.gz: corrupt_archive (byte " in done.stderr
    assert "Traceback" not in done.stderr
    deduplicate_corpus.main(strict)  # the same command without --strict continues
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["dropped"]["corrupt_archive"] == 1

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").touch()
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"out": tmp_path / "other"}, "is not empty, and was not written by deduplicate_corpus"),
        (
            {"tasks": 0, "min_bytes": -1},
            r"--min_bytes must .*, not -1\n.*--tasks must .*, not 0",
        ),
        ({"input": tmp_path / "nowhere"}, "does not exist"),
        ({"input": "-"}, "standard input is supported by write_shards only"),
        ({"text_field": "nothing", "extensions": ".jsonl"}, "holds no text: .*; name the key with --text_field"),
        ({"out": corpus / "a.py"}, "a.py is a file; give a folder"),
    ]
    for changes, message in mistakes:
        with pytest.raises(UserError, match=message):
            deduplicate_corpus.main(_arguments(corpus, **{"out": tmp_path / "new"} | changes))


@pytest.mark.parametrize("contents", ["", "{", "[]", '{"documents": -1}', '{"documents": 1, "dropped": [1]}'])
def test_a_damaged_count_of_a_task_is_named(contents: str, tmp_path: Path) -> None:
    counts_of = pytest.importorskip("data_prep.dedup.minhash").counts_of
    for kind in ("seen", "written"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "00000.json").write_text('{"documents": 2}')
    assert counts_of(tmp_path, 1) == (2, 2, {})
    (tmp_path / "seen" / "00000.json").write_text(contents)
    with pytest.raises(UserError, match=r"seen/00000\.json is (damaged|not JSON)"):
        counts_of(tmp_path, 1)


def test_a_second_run_on_a_folder_is_refused(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    hold_lock(out / ".lock")  # a second run in this process would not see the lock
    done = run_module("data_prep.deduplicate_corpus", *_arguments(corpus, out))
    assert done.returncode == 2
    assert f"is writing to {out}; wait until it ends, or choose another --out" in done.stderr
    assert {path.name for path in out.iterdir()} == {".lock"}
