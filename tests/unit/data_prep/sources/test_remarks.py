"""Omissions are said, and names that nothing has are refused with the nearest right one."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.command_line import UserError
from data_prep.sources.documents import Selection
from data_prep.sources.listing import list_source
from data_prep.sources.remarks import check_names, remarks_on
from tests.helpers.records import jsonl, write_tree


def _remarks(folder: Path, **options: object) -> list[str]:
    return remarks_on(list_source(str(folder), **options), keeps_compressed=False)  # type: ignore[arg-type]


def _checked(*sources: Path, languages: str = "", **names: str | None) -> list[str]:
    selections = [Selection("it", 1.0, tuple(languages.split())) for _ in sources]
    listed = [list_source(str(path), selection=s) for path, s in zip(sources, selections, strict=True)]
    return check_names(listed, **{"text_field": "text", "language_field": None, "license_field": None} | names)  # type: ignore[arg-type]


def test_files_of_other_extensions_are_counted(tmp_path: Path) -> None:
    write_tree(tmp_path, "a.py", "b.tcc", "include/c.tcc", "Makefile", "LICENSE", "x.so.6.0.30", "d.json.xz", ".hidden")
    write_tree(tmp_path, "e.a", "f.b", "g.d", "h.e", "Dr. No and what he said.txt", "node_modules/x.py", ".git/config")
    (remark,) = _remarks(tmp_path, exclude=["*.tcc", "!include/*.tcc"])
    assert remark.startswith(f"{tmp_path}: 1 file; left out: 3 without extension, ")
    assert remark.endswith(", 1 folder .git, 1 folder node_modules")
    assert "2 .tcc" in _remarks(tmp_path)[0]
    assert _remarks(tmp_path, exclude=["*", "!a.py"]) == []
    write_tree(tmp_path / "many", *(f"a.x{i}" for i in range(9)), "a.py")
    assert _remarks(tmp_path / "many")[0].endswith("1 .x5, 3 of 3 other kinds")


def test_records_in_a_folder_are_read(tmp_path: Path) -> None:
    write_tree(tmp_path, "convert.py", "clean.py", "notes.md")
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": "x"}))
    assert _remarks(tmp_path) == [f"{tmp_path}: 3 files (1 of records); left out: 1 .md"]
    for name in ("only.jsonl", "only.jsonl.gz", "c4.json.gz", "a.ndjson.zst"):
        folder = tmp_path / f"folder of {name}"
        folder.mkdir()
        data = jsonl({"text": "x"})
        (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        assert [piece.format for piece in list_source(str(folder)).pieces] != ["file"]
        assert _remarks(folder) == []


def test_json_documents_and_compressed_files_are_said(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{\n"name": "x"\n}')
    (tmp_path / "notes.txt.gz").write_bytes(gzip.compress(b"notes"))
    source = list_source(str(tmp_path), extensions=["*"])
    json_remark = f"{tmp_path}: 1 .json file without records, read as one document each"
    start = f"{tmp_path}: 1 compressed file without JSON lines: "
    assert remarks_on(source, keeps_compressed=False) == [json_remark, f"{start}left out; decompress them"]
    assert remarks_on(source, keeps_compressed=True) == [json_remark, f"{start}read byte by byte, as they are"]


def test_a_misspelt_extension_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path, "a.ipynb", "b.md")
    with pytest.raises(UserError, match=r"with the extensions \.ipnyb .*; did you mean '\.ipynb'\?"):
        list_source(str(tmp_path), extensions=[".ipnyb"])
    with pytest.raises(UserError, match=r"\(it holds: 1 \.ipynb, 1 \.md\); name others with --extensions$"):
        list_source(str(tmp_path))


def test_a_field_that_no_record_has_is_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_bytes(jsonl({"text": "x", "lang": "c", "licence": "mit"}, {"text": "y"}))
    bad.write_bytes(jsonl({"contents": "x"}, {"contents": "y"}))
    pq.write_table(pa.table({"text": ["x"], "lang": ["c"], "size": [1]}), tmp_path / "a.parquet")
    assert _checked(good, tmp_path / "a.parquet", language_field="lang", license_field="licence") == []
    for name, wrong, message in (
        (
            "text_field",
            "content",
            r"bad\.jsonl:1, byte 0: no key 'content' among 'contents'; did you mean 'contents'\?",
        ),
        ("language_field", "lagn", r"--language_field lagn: none of the first 2 records has this key .*'lang'\?"),
        ("license_field", "license", r"\(they have: 'text', 'lang', 'licence'\); did you mean 'licence'\?"),
    ):
        with pytest.raises(UserError, match=message):
            _checked(bad if name == "text_field" else good, **{name: wrong})
    with pytest.raises(UserError, match=r"--language_field sise: none of the first 1 record has .*mean 'size'"):
        _checked(tmp_path / "a.parquet", language_field="sise")
    said = ["--license_field owner: none of the first 2 records has this key (they have: 'text', 'lang', 'licence')"]
    assert _checked(good, license_field="owner") == said
    write_tree(tmp_path, "a.py")  # a folder of code may hold other records
    bad.unlink()
    (tmp_path / "fixtures.jsonl").write_bytes(jsonl({"id": 1}))
    assert _checked(tmp_path) == []


def test_languages_of_files_are_known_before_the_work(tmp_path: Path) -> None:
    write_tree(tmp_path, "a.py", "b.cpp", "c.go")
    assert _checked(tmp_path, languages="python") == _checked(tmp_path, languages="c++ rust") == []
    for wrong, right in (("pyhton", "python"), ("py", "python"), ("cpp", "c++"), ("pythn", "python"), ("cow", None)):
        with pytest.raises(UserError, match=rf"--mix it: no document is in '?{wrong}'?") as raised:
            _checked(tmp_path, languages=wrong)
        assert (f"did you mean {right!r}?" in str(raised.value)) == (right is not None)
        assert "(they are in: c++, go, python)" in str(raised.value)
    with pytest.raises(UserError, match=r"no document is in 'pyhton' .*did you mean 'python'"):
        _checked(tmp_path, languages="c++ pyhton")
    with pytest.raises(UserError, match=r"no document is in rust, objective-c\+\+ \(they are in: c\+\+, go, python\)"):
        _checked(tmp_path, languages="rust objective-c++")


def test_languages_of_records_are_looked_for_in_the_first_of_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "x", "lang": "Python"}, {"text": "y", "lang": "Objective-C"}))
    assert _checked(path, languages="python", language_field="lang") == []
    said = ["--mix it: none of the first records is in objective-c++; they are in: objective-c, python"]
    assert _checked(path, languages="objective-c++", language_field="lang") == said
    with pytest.raises(UserError, match=r"no document is in 'pyhton' .*; did you mean 'python'\?"):
        _checked(path, languages="objective-c pyhton", language_field="lang")
    with pytest.raises(UserError, match="records do not say their language; name its key with --language_field"):
        _checked(path, languages="python")
