"""The language of a document: from a field of its record, or else from the extension of its file.

Names are Linguist's names in lower case, as in The Stack. An extension that is not listed here is its own name.
"""

import difflib
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from data_prep.sources.formats.recognition import CODE_EXTENSIONS

UNKNOWN = "unknown"
_NEAR = 0.75  # similarity of a misspelt name
_EXTENSIONS = {
    "c": ".c .h",
    "c++": ".cc .cpp .cxx .hh .hpp .hxx",
    "c#": ".cs",
    "clojure": ".clj",
    "cuda": ".cu .cuh",
    "erlang": ".erl",
    "elixir": ".ex .exs",
    "fortran": ".f90",
    "graphviz (dot)": ".dot .gv",
    "haskell": ".hs",
    "html": ".htm .html .xhtml",
    "javascript": ".js .jsx",
    "json": ".json",
    "julia": ".jl",
    "kotlin": ".kt",
    "markdown": ".markdown .md",
    "objective-c": ".m .mm",
    "ocaml": ".ml .mli",
    "perl": ".pl .pm",
    "powershell": ".ps1",
    "protocol buffer": ".proto",
    "python": ".py .pyi",
    "cython": ".pyx",
    "r": ".r",
    "roff": ".roff",
    "ruby": ".rb",
    "rust": ".rs",
    "shell": ".bash .sh",
    "smt": ".smt .smt2",
    "tex": ".tex",
    "text": ".txt",
    "typescript": ".ts .tsx",
    "web ontology language": ".owl",
    "xml": ".xml",
    "xslt": ".xsl .xslt",
    "yaml": ".yaml .yml",
}
_RECORDS = re.compile(
    r":(\d+|(shard \d+, )?row \d+|byte \d+ \+ line \d+)$"  # a record in a file
    r"|\.(jsonl|ndjson)$|\.parquet$|\.pq$|\.gz$|\.zst$|^hf:"  # a file of records, or a compressed one
)
_LANGUAGE_OF = {suffix: language for language, suffixes in _EXTENSIONS.items() for suffix in suffixes.split()}


def language_of(source: str, row: Mapping[str, Any], *, field: str | None) -> str:
    """Return the language of a document, in lower case.

    Args:
        source: the file's path, or a record's path and line, which do not tell the language.
        row: the fields of the record; empty for a file.
        field: the key of `row` that names the language; None if there is none.
    """
    if field is not None and isinstance(row.get(field), str) and row[field].strip():
        return str(row[field]).strip().lower()
    suffix = os.path.splitext(source)[1].lower()  # called for each document; a Path takes four times as long
    if row or suffix in ("", ".") or _RECORDS.search(source):
        return UNKNOWN
    return _LANGUAGE_OF.get(suffix, suffix[1:])


def language_meant(word: str, found: Collection[str]) -> str | None:
    """Return the language that a misspelt name was meant to be, or None if it may be the name of another language.

    Args:
        word: a name in lower case, which is not among `found`.
        found: languages of the corpus; those of the table above are known, too.
    """
    known = {*_LANGUAGE_OF.values(), *(suffix[1:] for suffix in CODE_EXTENSIONS if suffix not in _LANGUAGE_OF)}
    if word in known:
        return None
    if f".{word}" in _LANGUAGE_OF:
        return _LANGUAGE_OF[f".{word}"]
    names = {name for name in known | set(found) if not word.startswith(name)}  # objective-c++ is not objective-c
    near = difflib.get_close_matches(word, names, n=1, cutoff=_NEAR)
    return near[0] if near else None
