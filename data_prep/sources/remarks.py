"""Remarks about the sources, printed before any work: files that are left out, and names that nothing has.

1. `remarks_on` says what a folder holds besides what is read, and which files are read otherwise than one may expect.
2. `check_names` reads the first records of each source, and refuses a key of the text that none of them has, and fields
   and languages that are misspelt.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from common.command_line import UserError
from common.wording import counted, meant
from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions
from data_prep.sources.formats.recognition import is_compressed_name
from data_prep.sources.languages import language_meant, language_of
from data_prep.sources.listing import ListedSource
from data_prep.sources.readers import read_piece
from data_prep.sources.records import FILE

_RECORDS_PER_PIECE, _MOST_PIECES = 50, 3
_LANGUAGE_KEYS = ("language", "lang")  # of deduplicate_corpus's output and The Stack v2, and of The Stack


class _Sample(NamedTuple):
    """The first records of some pieces of a source."""

    source: ListedSource
    records: list[Document | Dropped]

    @property
    def documents(self) -> list[Document]:
        return [record for record in self.records if isinstance(record, Document)]

    @property
    def has_files(self) -> bool:
        """Whether some of the source's files are one document each."""
        return any(piece.format == FILE for piece in self.source.pieces)


def remarks_on(source: ListedSource, *, keeps_compressed: bool) -> list[str]:
    """Return what should be said about a source, one line each.

    Args:
        source: the source.
        keeps_compressed: whether compressed files that hold no records are read byte by byte.
    """
    files = [piece.path for piece in source.pieces if piece.format == FILE]
    n_files, n_records = len({piece.path for piece in source.pieces}), len(_record_pieces(source))
    remarks = []
    if source.left_out:
        records = f" ({len({piece.path for piece in _record_pieces(source)}):,} of records)" if n_records else ""
        remarks.append(f"{source.path}: {counted(n_files, 'file')}{records}; left out: {source.left_out}")
    if n_json := sum(path.lower().endswith(".json") for path in files):
        remarks.append(f"{source.path}: {counted(n_json, '.json file')} without records, read as one document each")
    if n_compressed := sum(map(is_compressed_name, files)):
        how = "read byte by byte, as they are" if keeps_compressed else "left out; decompress them"
        remarks.append(f"{source.path}: {counted(n_compressed, 'compressed file')} without JSON lines: {how}")
    return remarks


def check_names(
    sources: Sequence[ListedSource], *, text_field: str, language_field: str | None, license_field: str | None
) -> list[str]:
    """Check the names of fields and languages against the first records of each source; return what should be said.

    Raises:
        UserError: no record has the text, a name is misspelt, or a source of a mixture does not hold its languages.
    """
    fields = {"--language_field": language_field, "--license_field": license_field}
    reading = ReadOptions(text_field=text_field, fields=tuple(filter(None, fields.values())))
    samples = [_Sample(source, list(_first_records(source, reading))) for source in sources]
    for sample in samples:
        _check_text_field(sample)
    remarks = _check_fields(samples, fields, text_field=text_field)
    return remarks + [line for sample in samples if (line := _check_languages(sample, language_field=language_field))]


def language_key_remarks(sources: Sequence[ListedSource], *, text_field: str) -> list[str]:
    """Return a remark for each source whose records name their language, if no option says under which key."""
    remarks = []
    for source in sources:
        rows = [record.row for record in _first_records(source, ReadOptions(text_field, fields=_LANGUAGE_KEYS))
                if isinstance(record, Document)]  # fmt: skip
        key = next((key for key in _LANGUAGE_KEYS if any(isinstance(row.get(key), str) for row in rows)), None)
        if key is not None:
            remarks.append(
                f"{source.path}: records name their language under {key!r}, but count as unknown without"
                f" --language_field {key}"
            )
    return list(dict.fromkeys(remarks))  # a mixture often names one path several times


def _record_pieces(source: ListedSource) -> list[Piece]:
    return [piece for piece in source.pieces if piece.format != FILE]


def _first_records(source: ListedSource, reading: ReadOptions) -> Iterable[Document | Dropped]:
    pieces = _record_pieces(source)
    chosen = {0, len(pieces) // 2, len(pieces) - 1} if len(pieces) > _MOST_PIECES else range(len(pieces))
    for i in sorted(chosen):
        yield from itertools.islice(read_piece(pieces[i], reading), _RECORDS_PER_PIECE)


def _check_text_field(sample: _Sample) -> None:
    """Refuse a source of records if none of them has the text; a folder may hold records of another kind, too."""
    if sample.records and not sample.has_files:
        lacking = [each for each in sample.records if isinstance(each, Dropped) and each.reason == "no_text_field"]
        if len(lacking) == len(sample.records):
            first = lacking[0]
            place = f"{first.source}, {first.detail}"
            raise UserError(f"input {sample.source.path!r} holds no text: {place}; name the key with --text_field")


def _check_fields(samples: Sequence[_Sample], fields: Mapping[str, str | None], *, text_field: str) -> list[str]:
    """Return a remark for each field that no record has.

    Raises:
        UserError: the records have a key that is spelt almost like it.
    """
    remarks = []
    documents = [document for sample in samples for document in sample.documents]
    for option, name in fields.items():
        if not documents or name is None or any(name in document.row for document in documents):
            continue
        first = next(sample.source for sample in samples if sample.documents)
        with_all_keys = _first_records(first, ReadOptions(text_field=text_field))
        keys = dict.fromkeys(key for each in with_all_keys if isinstance(each, Document) for key in each.row)
        shown = ", ".join(repr(key) for key in keys)
        remark = (
            f"{option} {name}: none of the first {counted(len(documents), 'record')} has this key (they have: {shown})"
        )
        if near := meant(name, keys):
            raise UserError(remark + near)
        remarks.append(remark)
    return remarks


def _check_languages(sample: _Sample, *, language_field: str | None) -> str | None:
    """Check the languages that a source of a mixture asks for; return a remark if none of them has been seen.

    Raises:
        UserError: one of them is misspelt, or none of them can be there.
    """
    source, wanted = sample.source, sample.source.selection.languages
    if not wanted:
        return None
    option = f"--mix {source.selection.name}"
    files = {language_of(piece.path, {}, field=None) for piece in source.pieces if piece.format == FILE}
    records = {language_of(each.source, each.row, field=language_field) for each in sample.documents}
    found = files | records
    held = ", ".join(sorted(found)) or "no documents"
    for language in wanted:
        if language not in found and (near := language_meant(language, found)):
            raise UserError(f"{option}: no document is in {language!r} (they are in: {held}); did you mean {near!r}?")
    if not found.isdisjoint(wanted) or not source.pieces:
        return None
    if records and language_field is None:
        raise UserError(f"{option}: records do not say their language; name its key with --language_field")
    if not _record_pieces(source):
        raise UserError(f"{option}: no document is in {', '.join(wanted)} (they are in: {held})")
    return f"{option}: none of the first records is in {', '.join(wanted)}; they are in: {held}"
