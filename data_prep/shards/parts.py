"""Parts of a corpus, the unit of work and of restart: their pieces of the input, their options and their results.

    DIR/train/part-00000/   the shards of a part, one folder for each split
    DIR/work/               files of unfinished work, among them part-00000.json, the *mark* of a part that is written

A mark is written after the shards of its part and holds the part's `PartResult`. The last step removes the work folder.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from common.command_line import UserError
from common.files import write_json
from common.tokenizers import Engine
from data_prep.filters.options import FilterOptions
from data_prep.shards.identity import read_json, shape_fault
from data_prep.shards.tally import UNITS, Count, DroppedExamples, Tally
from data_prep.sources.documents import Piece, ReadOptions
from data_prep.tokens.options import DocumentOptions
from data_prep.tokens.packing import WindowShape

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
WORK_FOLDER = "work"


@dataclass(frozen=True)
class Part:
    """A run of consecutive pieces of the corpus; `index` counts parts from 0, in the order of the corpus."""

    index: int
    pieces: tuple[Piece, ...]

    @property
    def name(self) -> str:
        return f"part-{self.index:05}"


@dataclass(frozen=True)
class RunShare:
    """The parts that one of several runs writes (`--part 1/8`): every `total`-th, from index `number` - 1 on."""

    number: int = 1
    total: int = 1

    @property
    def is_whole(self) -> bool:
        return self.total == 1

    def of(self, parts: Sequence[Part]) -> Sequence[Part]:
        """Return this share's parts, in order; empty if there are too few parts for it."""
        return parts[self.number - 1 :: self.total]

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


@dataclass(frozen=True)
class PartOptions:
    """The options that all parts are written with."""

    out: Path
    """Root of the shard folder."""
    tokenizer: str
    engine: Engine
    reading: ReadOptions
    shape: WindowShape
    val_fraction: float
    compression: str | None
    filters: FilterOptions
    documents: DocumentOptions


@dataclass
class SplitCounts:
    """Counts of one split."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    documents: Count = 0
    tokens: Count = 0
    """All tokens of the documents, special ones included."""
    windows: Count = 0
    bytes: Count = 0
    """UTF-8 bytes of the documents."""
    tail_tokens: Count = 0
    """Tokens at the ends of parts that are too few for another window."""
    fim_documents: Count = 0
    """Documents rearranged for fill-in-the-middle."""

    def add(self, other: "SplitCounts") -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


def _checked_units(counts: dict[str, int]) -> dict[str, int]:
    if not counts.keys() <= set(UNITS):
        raise ValueError(f"it has other keys than {', '.join(UNITS)}")
    return counts


# by name of the source: the documents, bytes and tokens written from it
SourceCounts = dict[str, Annotated[dict[str, Count], AfterValidator(_checked_units)]]


@dataclass
class PartResult:
    """Counts of what was written from a part and of what was dropped; the tally and examples are for report.json."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    splits: dict[Split, SplitCounts] = field(default_factory=dict)
    dropped: dict[str, Count] = field(default_factory=dict)
    """Number of dropped records for each reason."""
    input_bytes: Count = 0
    sources: SourceCounts = field(default_factory=dict)
    tally: Tally = field(default_factory=dict)
    examples: DroppedExamples = field(default_factory=dict)


def add_source_counts(sources: SourceCounts, name: str, **counts: int) -> None:
    """Add to the counts of one source."""
    total = sources.setdefault(name, dict.fromkeys(counts, 0))
    for unit, value in counts.items():
        total[unit] += value


def mark_path(part: Part, out: Path) -> Path:
    """Return the path of a part's mark."""
    return out / WORK_FOLDER / f"{part.name}.json"


def fingerprints_path(part: Part, out: Path) -> Path:
    """Return the path of the times and contents of the pieces that a part was written from."""
    return out / WORK_FOLDER / f"{part.name}.input.npy"


def mark_finished(part: Part, out: Path, result: PartResult) -> None:
    """Write the mark of a part whose shards are in place."""
    write_json(mark_path(part, out), asdict(result))


class Marks(NamedTuple):
    """The marks of parts, by index: the results of those that can be used, and what is wrong with the others."""

    results: dict[int, PartResult]
    damaged: dict[int, str]


def read_marks(parts: Sequence[Part], out: Path) -> Marks:
    """Return what the marks of these parts say; a part whose mark is damaged has to be written again."""
    marks = Marks({}, {})
    for part in parts:
        path, advice = mark_path(part, out), "the part has to be written again"
        try:
            if (mark := read_json(path, advice=advice)) is not None:
                marks.results[part.index] = _MARK.validate_python(mark)
        except ValidationError as error:
            marks.damaged[part.index] = f"{path} is damaged: {shape_fault(error)}; {advice}"
        except UserError as error:
            marks.damaged[part.index] = str(error)
    return marks


_MARK = TypeAdapter(PartResult)
