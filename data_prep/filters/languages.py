"""The language of a document: from a field of its record, or else from the extension of its file.

Names are Linguist's names in lower case, as in The Stack. An extension that is not listed here is its own name.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

UNKNOWN = "unknown"
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
_RECORDS = re.compile(r"\.(jsonl(\.gz|\.zst)?|parquet)(:|$)|^hf:")  # a file of records, or a record in it
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
