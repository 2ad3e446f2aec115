"""Which language a document is in: by a field of its jsonl record, or else by the extension of its file's name.

Names are Linguist's in lower case, as The Stack has them; an extension that is not listed names itself.
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
_RECORDS = re.compile(r"\.(jsonl(\.gz|\.zst)?|parquet)(:|$)|^hf:")  # a file of records, or one of them
_LANGUAGE_OF = {suffix: language for language, suffixes in _EXTENSIONS.items() for suffix in suffixes.split()}


def language_of(source: str, row: Mapping[str, Any], *, field: str | None) -> str:
    """Return the language of a document, in lower case.

    Args:
        source: the file's path; for a record of jsonl, its path and line, which say nothing of the language.
        row: the jsonl record, or nothing.
        field: the key of `row` that names the language.
    """
    if field is not None and isinstance(row.get(field), str) and row[field].strip():
        return str(row[field]).strip().lower()
    suffix = os.path.splitext(source)[1].lower()  # of each document: a Path costs four times as much
    if row or suffix in ("", ".") or _RECORDS.search(source):
        return UNKNOWN
    return _LANGUAGE_OF.get(suffix, suffix[1:])
