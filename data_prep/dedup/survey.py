"""Deduplication as a pass before the shards are written: of equal or near documents, the first stays.

1. Workers *survey* each part (`survey_part`): for every record, the rule that drops it, if any; for each document that
   stays, a hash of its text and, with near deduplication, a MinHash signature. A survey is a file in the work folder.
2. One process reads the surveys in the order of the sources, and decides which documents are duplicates (`decide`). All
   hashes are in memory only then. The decision depends on the surveys alone, not on the workers or on kills. It is
   written as a file for each part, so that with many machines only one decides: the one that surveys last, or, if that
   was killed, the next one that finds a file missing.
3. Parts are written by these decisions (`decided`), so no rule is applied twice.

Near duplicates are found as for The Stack (Kocetkov et al. 2022, arXiv 2211.15533) and StarCoder (Li et al. 2023,
section 3): MinHash of 256 permutations over runs of 5 words, and locality-sensitive hashing for a Jaccard similarity of
0.7 (bigcode-project/bigcode-dataset, near_deduplication; The Stack began with 0.85). There are two differences. A
candidate counts only if the similarity estimated from its whole signature reaches the threshold. And a document is
dropped only for an earlier one that *stays*: in a chain where each document is near to the next one only, more than
the first remains. Documents of fewer than 5 words are never near duplicates. In scripts without spaces, such as Thai
and Chinese, each character counts as a word.
"""

import contextlib
import itertools
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from common.command_line import UserError
from common.files import written_whole
from common.small_files import open_regular_file
from data_prep.dedup.near_index import near_rows
from data_prep.filters.changes import DAMAGED_ARRAY, ContentHash
from data_prep.filters.decisions import Reasons
from data_prep.filters.digests import DIGEST_BYTES, digest, first_occurrences
from data_prep.filters.ngrams import ngram_hashes, units_of, word_hashes
from data_prep.filters.reasons import reason_to_drop
from data_prep.shards.parts import WORK_FOLDER, Part, PartOptions
from data_prep.sources.documents import Document
from data_prep.sources.readers import read_piece
from data_prep.workers import count_progress

SHINGLE_WORDS, PERMUTATIONS, THRESHOLD = 5, 256, 0.7
NEAR_METHOD = f"MinHash of {SHINGLE_WORDS} words, or characters where a script has no spaces"
"""Belongs to the identity of what near deduplication writes: another method gives another name."""
DUPLICATE, NEAR_DUPLICATE = "duplicate", "near_duplicate"
_DECISIONS = ("", DUPLICATE, NEAR_DUPLICATE)
Signature = npt.NDArray[np.uint32]
_SHINGLES_AT_ONCE = 4096  # permuted together: 4 MB, which fits into the CPU's cache


def survey_path(part: Part, out: Path) -> Path:
    """Return the path of a part's survey."""
    return out / WORK_FOLDER / f"{part.name}.survey.npz"


def decision_path(part: Part, out: Path) -> Path:
    """Return the path of the decision on a part's documents."""
    return out / WORK_FOLDER / f"{part.name}.decision.npy"


def survey_part(part: Part, options: PartOptions, near: bool) -> None:
    """Write the survey of one part.

    Its arrays are `reasons` (records,), indices into `names`, where "" comes first and means that the document stays;
    `counts` and `contents` (pieces,), the number of records in each piece and their hash; and `digests` and
    `signatures` of the documents that stay, (documents,) and (documents, permutations). Without `near`, `signatures`
    has no rows.
    """
    names = {"": 0}
    reasons: list[int] = []
    counts: list[int] = []
    contents: list[int] = []
    digests = bytearray()
    signatures: list[Signature] = []
    signature_of = signer() if near else None
    for piece in part.pieces:
        content = ContentHash(options.reading)
        for record in read_piece(piece, options.reading):
            content.add(record)
            reason = reason_to_drop(record, piece.selection, options.filters) or ""
            reasons.append(names.setdefault(reason, len(names)))
            if not reason and isinstance(record, Document):
                digests += digest(record.utf8)
                if signature_of is not None:
                    signatures.append(signature_of(record.text))
            count_progress(documents=int(isinstance(record, Document)), input_bytes=record.input_bytes)
        counts.append(content.n_records)
        contents.append(content.value())
    with written_whole(survey_path(part, options.out)) as partial, partial.open("wb") as file:
        np.savez(
            file,
            names=np.array(list(names)),
            reasons=np.array(reasons, dtype=np.uint16),
            counts=np.array(counts, dtype=np.int64),
            contents=np.array(contents, dtype=np.uint64),
            digests=np.frombuffer(bytes(digests), dtype=np.dtype((np.void, DIGEST_BYTES))),
            signatures=np.array(signatures, dtype=np.uint32).reshape(len(signatures), PERMUTATIONS),
        )


def decide(parts: Sequence[Part], out: Path, *, near: bool) -> None:
    """Write, for each part, which of the documents that no rule drops are duplicates, given the surveys of all."""
    is_first = first_occurrences([_read(part, out, "digests") for part in parts])
    is_near = _near_documents(parts, out, is_first) if near else [np.zeros_like(firsts) for firsts in is_first]
    for part, firsts, nears in zip(parts, is_first, is_near, strict=True):
        decision = np.where(firsts, np.where(nears, _DECISIONS.index(NEAR_DUPLICATE), 0), _DECISIONS.index(DUPLICATE))
        with written_whole(decision_path(part, out)) as partial, partial.open("wb") as file:
            np.save(file, decision.astype(np.uint8))


def decided(part: Part, out: Path) -> Reasons:
    """Return why each record of a part is dropped ("" if it stays), from its survey and the decision on it."""
    names = _read(part, out, "names").tolist()
    reasons = [names[index] for index in _read(part, out, "reasons").tolist()]
    staying = [place for place, reason in enumerate(reasons) if not reason]
    with _damage_explained(decision_path(part, out)) as file:
        for place, decision in zip(staying, np.load(file).tolist(), strict=True):
            reasons[place] = _DECISIONS[decision]
    ends = np.cumsum(_read(part, out, "counts")).tolist()
    return [reasons[start:end] for start, end in itertools.pairwise([0, *ends])]


def surveyed_contents(part: Part, out: Path) -> list[int]:
    """Return the hash of the content of each piece of a part when it was surveyed."""
    return [int(content) for content in _read(part, out, "contents")]


def _near_documents(
    parts: Sequence[Part], out: Path, is_first: Sequence[npt.NDArray[np.bool_]]
) -> list[npt.NDArray[np.bool_]]:
    """Return for each part which of the documents that no rule drops are near to an earlier one that stays."""
    bands, band_size = bands_and_size()
    considered: list[npt.NDArray[np.bool_]] = []
    with tempfile.TemporaryDirectory(dir=out / WORK_FOLDER) as folder:
        path = Path(folder) / "signatures"
        with path.open("wb") as file:
            for part, firsts in zip(parts, is_first, strict=True):
                signatures = _read(part, out, "signatures")
                considered.append(firsts & signatures.any(axis=1))  # zeros mean too few words
                signatures[considered[-1]].tofile(file)
        n_rows = path.stat().st_size // (4 * PERMUTATIONS)
        shape = (n_rows, PERMUTATIONS)
        mapped = np.memmap(path, dtype=np.uint32, mode="r", shape=shape) if n_rows else np.empty(shape, np.uint32)
        found = near_rows(mapped, threshold=THRESHOLD, bands=bands, band_size=band_size, folder=Path(folder))
    is_near = [np.zeros_like(in_part) for in_part in considered]
    ends = np.cumsum([in_part.sum() for in_part in considered])
    for near_in_part, in_part, rows in zip(is_near, considered, np.split(found, ends[:-1]), strict=True):
        near_in_part[in_part] = rows
    return is_near


def _read(part: Part, out: Path, name: str) -> Any:
    with _damage_explained(survey_path(part, out)) as file, np.load(file, allow_pickle=False) as survey:
        return survey[name]


@contextlib.contextmanager
def _damage_explained(path: Path) -> Iterator[IO[bytes]]:
    try:
        with open_regular_file(path, name=path) as file:
            yield file
    except (*DAMAGED_ARRAY, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}; delete it, and run the same command again") from error


def bands_and_size() -> tuple[int, int]:
    """Return the number of bands and the number of values in each, which datasketch chooses for the threshold."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    return index.b, index.r


def signer() -> Callable[[str], Signature]:
    """Return a function that computes the MinHash signature (permutations,) of a text, zeros if it has < 5 words."""
    from datasketch import MinHash

    empty = MinHash(num_perm=PERMUTATIONS, hashfunc=int)

    def signature_of(text: str) -> Signature:
        hashes = np.unique(ngram_hashes(word_hashes(units_of(text)), n=SHINGLE_WORDS) >> np.uint64(32)).tolist()
        if not hashes:
            return np.zeros(PERMUTATIONS, dtype=np.uint32)
        sketch = empty.copy()
        for start in range(0, len(hashes), _SHINGLES_AT_ONCE):
            sketch.update_batch(hashes[start : start + _SHINGLES_AT_ONCE])
        return np.asarray(sketch.hashvalues, dtype=np.uint32)

    return signature_of
