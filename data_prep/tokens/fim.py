"""Fill-in-the-middle: some documents are written with their middle last, between sentinels.

A document is cut at two of its characters, drawn independently and uniformly, into prefix, middle and suffix (Bavarian
et al. 2022, arXiv 2207.14255, section 3), and written in one of two orders, as Code Llama has them (Rozière et al.
2023, arXiv 2308.12950, section 2.3):

    PSM    <PRE> prefix <SUF> suffix <MID> middle <EOT>
    SPM    <PRE> <SUF> suffix <MID> prefix+middle <EOT>

Prefix and middle are one text in SPM. What does not begin a document is encoded without the space that SentencePiece
puts before every text. Which documents, in which order, cut where, are functions of the document's hash and the seed.

Sentinels are ids, never text: a model's pieces of their names are made control symbols before anything is encoded, and
those SentencePiece does not look for in text. So `<PRE>` in a document is the characters that it is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from common.command_line import UserError
from common.sentencepiece_model import SPACE, parsed
from common.tokenizers import BYTES, FIM_BYTE_IDS, ByteTokenizer, Engine, Tokenizer, load_tokenizer

SENTINEL_PIECES = tuple(f"{SPACE}<{name}>" for name in ("PRE", "SUF", "MID", "EOT"))  # Code Llama's
Order = Literal["psm", "spm"]


@dataclass(frozen=True)
class FimOptions:
    """The fraction of documents to transform, the fraction of these in the order SPM, and the seed of all choices."""

    rate: float
    spm_rate: float
    seed: int


@dataclass(frozen=True)
class Split:
    """A document in three; each may be empty."""

    prefix: str
    middle: str
    suffix: str
    order: Order


@dataclass(frozen=True)
class Sentinels:
    """Ids of what stands before the prefix, the suffix and the middle, and after the middle."""

    prefix: int
    suffix: int
    middle: int
    end: int


@dataclass(frozen=True)
class FimTokenizer:
    """The sentinels of a tokenizer, and how text is encoded: at the start of a document, and further on in it."""

    sentinels: Sentinels
    start: Tokenizer
    further: Tokenizer


@dataclass(frozen=True)
class Run:
    """A text that is encoded by itself, with the sentinels before it."""

    sentinels: tuple[int, ...]
    text: str
    tokenizer: Tokenizer


def filled_runs(text: str, document_digest: bytes, tokenizer: FimTokenizer, options: FimOptions) -> list[Run] | None:
    """Return the texts that a document is written as with its middle last, or None if it stays as it is."""
    split = split_of(text, document_digest, options)
    return None if split is None else runs_of(split, tokenizer)


def split_of(text: str, document_digest: bytes, options: FimOptions) -> Split | None:
    """Return how a document is cut and ordered, or None if it stays as it is."""

    def draw(what: int) -> int:
        return xxhash.xxh3_64_intdigest(document_digest + bytes([what]), seed=options.seed)

    if draw(0) >= options.rate * 2**64:
        return None
    order: Order = "spm" if draw(1) < options.spm_rate * 2**64 else "psm"
    first, last = sorted(draw(what) * (len(text) + 1) >> 64 for what in (2, 3))
    return Split(text[:first], text[first:last], text[last:], order)


def runs_of(split: Split, tokenizer: FimTokenizer) -> list[Run]:
    """Return the texts of a document in their order, each after its sentinels; after the last one is an empty text."""
    ids, start, further = tokenizer.sentinels, tokenizer.start, tokenizer.further
    last = Run((ids.end,), "", further)
    if split.order == "psm":
        prefix = Run((ids.prefix,), split.prefix, start)
        return [prefix, Run((ids.suffix,), split.suffix, further), Run((ids.middle,), split.middle, further), last]
    suffix = Run((ids.prefix, ids.suffix), split.suffix, further)
    return [suffix, Run((ids.middle,), split.prefix + split.middle, start), last]


def load_fim_tokenizer(name: str, *, engine: Engine) -> FimTokenizer:
    """Return what fills in the middle with the tokenizer that `name` means.

    Raises:
        EngineUnavailable: `engine` is gigatoken, and cannot do this model.
        UserError: it is no tokenizer, or has no sentinels.
    """
    if name == BYTES:
        tokenizer = load_tokenizer(BYTES, vocab_size=FIM_BYTE_IDS)
        first = ByteTokenizer.vocab_size
        return FimTokenizer(Sentinels(first, first + 1, first + 2, first + 3), tokenizer, tokenizer)
    load_tokenizer(name)  # or it says what is wrong with the file
    proto = parsed(Path(name).read_bytes())
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    if missing := [piece for piece in SENTINEL_PIECES if piece not in ids]:
        raise UserError(
            f"tokenizer {name!r} cannot fill in the middle: it has no piece {', '.join(missing)}; train one with "
            "data_prep.train_tokenizer --fim_tokens, take --tokenizer bytes, or leave out --fim_rate"
        )
    for piece in SENTINEL_PIECES:
        proto.pieces[ids[piece]].type = proto.SentencePiece.CONTROL
    start = load_tokenizer(name, engine=engine, variant=proto.SerializeToString())
    proto.normalizer_spec.add_dummy_prefix = False
    further = load_tokenizer(name, engine=engine, variant=proto.SerializeToString())
    return FimTokenizer(Sentinels(*(ids[piece] for piece in SENTINEL_PIECES)), start, further)
