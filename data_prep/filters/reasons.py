"""The reasons for which a document is dropped: all filters, applied to one record; pure functions.

1. A record that could not become a document has its reason already.
2. The source's selection asks for some languages only, or for a fraction of the documents.
3. The rules: empty documents, licences, numeric limits (`limits`), named rules (`starcoder`), and benchmark text
   (`decontaminate`). All but the first are off by default.
"""

from collections.abc import Sequence
from typing import Any

from data_prep.filters.decontaminate import contamination
from data_prep.filters.digests import digest
from data_prep.filters.limits import limit_exceeded
from data_prep.filters.options import FilterOptions
from data_prep.filters.starcoder import RULES
from data_prep.sources.documents import Document, Dropped, Selection
from data_prep.sources.languages import language_of
from data_prep.sources.mixture import copies_of

OTHER_LANGUAGE, NOT_CHOSEN, IN_VAL = "other_language", "not_sampled", "already_in_val"


def reason_to_drop(record: Document | Dropped, selection: Selection, filters: FilterOptions) -> str | None:
    """Return why a record is dropped, or None if it stays."""
    if isinstance(record, Dropped):
        return record.reason
    return reason_of_selection(record, selection, filters) or rule_broken(record, filters)


def reason_of_selection(document: Document, selection: Selection, filters: FilterOptions) -> str | None:
    """Return why a source does not want a document, or None."""
    languages = selection.languages
    if languages and language_of(document.source, document.row, field=filters.language_field) not in languages:
        return OTHER_LANGUAGE
    if selection.weight < 1 and copies_of(digest(document.utf8), weight=selection.weight) == 0:
        return NOT_CHOSEN
    return None


def rule_broken(document: Document, filters: FilterOptions) -> str | None:
    """Return the name of the first rule that `document` breaks, or None."""
    if not document.text or document.text.isspace():
        return "empty"
    if filters.licenses and not is_licensed(document.row.get(str(filters.license_field)), filters.licenses):
        return "license"
    if limit := limit_exceeded(document, filters.limits):
        return limit
    if filters.rules:
        language = language_of(document.source, document.row, field=filters.language_field)
        for name, breaks in RULES.items():
            if name in filters.rules and breaks(document.text, language):
                return name
    benchmark = contamination(document.text, filters.decontaminate)
    return f"contaminated:{benchmark}" if benchmark is not None else None


def is_licensed(found: Any, licenses: Sequence[str]) -> bool:
    """Return whether a record's licence, or every licence in its list, is among `licenses`, ignoring case.

    Only the record's metadata count, as in The Stack (Kocetkov et al. 2022, arXiv 2211.15533). A record without a
    licence is not licensed.
    """
    names = found if isinstance(found, list) else [found]
    return bool(names) and all(isinstance(name, str) and name.lower() in licenses for name in names)
