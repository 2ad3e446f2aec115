"""The format of a file, by its name and, where that does not settle it, by its content.

A name that says "records" (.jsonl, .ndjson, .json.gz, ...) does not say whether the file is compressed: browsers
decompress what they download, and compressed files are stored under plain names. And .json may be JSON lines, as in
Dolma, an array of records, or a document such as package.json. So these files are looked into.
"""

import codecs
import contextlib
import os
from typing import IO

from data_prep.sources.formats.archives import GZ, ZST, DamagedError, compression_of, decompressed
from data_prep.sources.formats.json_records import is_json_array, is_json_lines
from data_prep.sources.formats.opening import open_input
from data_prep.sources.records import FILE, JSON_ARRAY, JSONL, PARQUET

_EXTENSIONS = """.c .cc .clj .cpp .cs .cu .cuh .cxx .dart .erl .ex .exs .f90 .go .h .hh .hpp .hs .hxx .java .jl .js .jsx
    .kt .lua .m .ml .mli .mm .php .pl .pm .proto .ps1 .py .pyi .pyx .r .R .rb .rs .scala .sh .sql .swift .ts .tsx .vue
    .zig"""
CODE_EXTENSIONS = tuple(_EXTENSIONS.split())
_COMPRESSIONS = {".gz": GZ, ".gzip": GZ, ".zst": ZST, ".zstd": ZST}
_JSONL = (".jsonl", ".ndjson")
_PARQUET = (".parquet", ".pq")
_HEAD_BYTES = 64
RECORD_EXTENSIONS = (
    *_JSONL,
    *(name + suffix for name in (*_JSONL, ".json") for suffix in _COMPRESSIONS),
    *_PARQUET,
)
"""Names of files of records, which are read in every folder. (Most .json files are documents.)"""


def format_of_file(path: str, *, text_field: str, is_named: bool = False) -> str:
    """Return the format of a file.

    Args:
        path: the file.
        text_field: the key of the text in records; a lone JSON object, or an array, holds records only if it has this.
        is_named: whether the user named the file itself, and not a folder that holds it.
    """
    name = path.lower()
    if name.endswith(_PARQUET):
        return PARQUET
    by_name = _format_by_name(name)
    is_open = name.endswith((".json", *_COMPRESSIONS)) or (is_named and not name.endswith(CODE_EXTENSIONS))
    if by_name == FILE and not is_open:
        return FILE
    try:
        with open_input(path) as file:
            by_content = format_of_content(file, text_field=text_field)
            if by_content == FILE and by_name == JSONL:
                file.seek(0)
                compression = compression_of(file.read(_HEAD_BYTES))
                return JSONL + (compression if compression in (GZ, ZST) else "")
    except OSError:
        return by_name  # reading it says why
    return by_name if by_content == FILE else by_content


def is_compressed_name(path: str) -> bool:
    """Return whether a file is compressed, by its name."""
    return path.lower().endswith(tuple(_COMPRESSIONS))


def format_of_content(file: IO[bytes], *, text_field: str) -> str:
    """Return the format of the records in a file, which is at its start and can be read again; or `FILE`."""
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    compression = compression_of(head)
    if compression is None:
        return _format_of_json(file, head, text_field=text_field) or FILE
    if compression not in (GZ, ZST):
        return PARQUET if compression == PARQUET else FILE
    with contextlib.suppress(DamagedError):
        content = decompressed(file, compression)
        if found := _format_of_json(content, content.peek(_HEAD_BYTES), text_field=text_field):
            return found + compression
    return FILE


def _format_by_name(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    compression = _COMPRESSIONS.get(suffix, "")
    return JSONL + compression if (stem if compression else name).endswith(_JSONL) else FILE


def _format_of_json(file: IO[bytes], head: bytes, *, text_field: str) -> str | None:
    """Return the format of a file of JSON records, which starts with `head`; None for anything else."""
    first = head.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if first == b"{" and is_json_lines(file, text_field=text_field):
        return JSONL
    return JSON_ARRAY if first == b"[" and is_json_array(file, text_field=text_field) else None
