"""Files that are one document each. A file that turns out to hold JSON records gives these, whatever its name."""

import codecs
import io
from dataclasses import replace

from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions
from data_prep.sources.formats.archives import compression_of
from data_prep.sources.formats.json_records import read_json_records
from data_prep.sources.formats.recognition import format_of_content
from data_prep.sources.records import FILE, PARQUET, TOO_LARGE, Records, unreadable

MOST_FILE_BYTES = 1 << 30  # a document is in memory as a whole, and several times
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_file(piece: Piece, options: ReadOptions) -> Records:
    """Yield a whole file as one document; line ends and a byte order mark stay as they are."""
    if piece.size > MOST_FILE_BYTES:
        detail = f"byte 0: one document has at most {MOST_FILE_BYTES:,} bytes; split it, or write JSON lines"
        yield Dropped(TOO_LARGE, piece.path, piece.size, detail)
        return
    try:
        with open(piece.path, "rb", buffering=0) as file:  # faster than Path, which matters for many small files
            data = file.readall()
    except OSError as error:
        yield unreadable(piece, error)
        return
    format_ = format_of_content(io.BytesIO(data), text_field=options.text_field)
    if format_ not in (FILE, PARQUET):
        yield from read_json_records(replace(piece, format=format_), options)
    elif (compression := compression_of(data)) and options.compressed == "drop":
        yield Dropped("compressed", piece.path, piece.size, f"byte 0: {compression} without JSON lines; decompress it")
    elif options.files_as == "bytes":
        yield Document(data.decode("utf-8", errors="surrogateescape"), data, piece.path, piece.size)
    else:
        yield _document_of_text(data, piece)


def _document_of_text(data: bytes, piece: Piece) -> Document | Dropped:
    if data.startswith(_UTF16):
        return Dropped("not_utf8", piece.path, piece.size, "byte 0: UTF-16; convert it to UTF-8")
    if b"\0" in data:
        return Dropped("binary", piece.path, piece.size, f"byte {data.index(0)}: NUL")
    try:
        return Document(data.decode("utf-8"), data, piece.path, piece.size)
    except UnicodeDecodeError as error:
        return Dropped("not_utf8", piece.path, piece.size, f"byte {error.start}: {error.reason}")
