"""Fill-in-the-middle: some documents are written with their middle last, between sentinel tokens.

A document is cut at two of its characters, drawn independently and uniformly, into prefix, middle and suffix (Bavarian
et al. 2022, arXiv 2207.14255, section 3). It is written in one of the two orders of Code Llama (Rozière et al. 2023,
arXiv 2308.12950, section 2.3):

    PSM    <PRE> prefix <SUF> suffix <MID> middle <EOT>
    SPM    <PRE> <SUF> suffix <MID> prefix+middle <EOT>

In SPM, prefix and middle are encoded as one text. A text that does not begin the document is encoded without the space
that SentencePiece puts before every text. The choice of documents, the order and the cuts depend on the document's hash
and the seed alone.

Sentinels are ids, never text. A model's sentinel pieces become control symbols before anything is encoded, and
SentencePiece does not match control symbols in text. So the characters `<PRE>` in a document stay ordinary characters.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from common.command_line import UserError
from common.sentencepieces.sentencepiece_model import SPACE, parsed
from common.tokenizers import BYTES, FIM_BYTE_IDS, ByteTokenizer, Engine, Tokenizer, load_tokenizer, read_model

SENTINEL_PIECES = tuple(f"{SPACE}<{name}>" for name in ("PRE", "SUF", "MID", "EOT"))  # Code Llama's
Order = Literal["psm", "spm"]


@dataclass(frozen=True)
class FimOptions:
    """The fraction of documents to transform, the fraction of these in SPM order, and the seed of all choices."""

    rate: float
    spm_rate: float
    seed: int


@dataclass(frozen=True)
class CutDocument:
    """The three parts of a document, each of which may be empty, and the order to write them in."""

    prefix: str
    middle: str
    suffix: str
    order: Order


@dataclass(frozen=True)
class Sentinels:
    """The ids of the sentinels before the prefix, the suffix and the middle, and after the middle."""

    prefix: int
    suffix: int
    middle: int
    end: int


@dataclass(frozen=True)
class FimTokenizer:
    """The sentinels of a tokenizer, and the encoders of text that begins a document and of text further on in it."""

    sentinels: Sentinels
    start: Tokenizer
    further: Tokenizer


@dataclass(frozen=True)
class Segment:
    """A text that is encoded by itself, the sentinels before it, and the tokenizer that encodes it."""

    sentinels: tuple[int, ...]
    text: str
    tokenizer: Tokenizer


def fim_segments(
    text: str, document_digest: bytes, tokenizer: FimTokenizer, options: FimOptions
) -> list[Segment] | None:
    """Return the segments of a document with its middle last, or None if the document stays as it is."""
    cut = cut_document(text, document_digest, options)
    return None if cut is None else segments_of(cut, tokenizer)


def cut_document(text: str, document_digest: bytes, options: FimOptions) -> CutDocument | None:
    """Return the parts of a document and their order, or None if the document stays as it is."""

    def draw(what: int) -> int:
        return xxhash.xxh3_64_intdigest(document_digest + bytes([what]), seed=options.seed)

    if draw(0) >= options.rate * 2**64:
        return None
    order: Order = "spm" if draw(1) < options.spm_rate * 2**64 else "psm"
    first, last = sorted(draw(what) * (len(text) + 1) >> 64 for what in (2, 3))
    return CutDocument(text[:first], text[first:last], text[last:], order)


def segments_of(cut: CutDocument, tokenizer: FimTokenizer) -> list[Segment]:
    """Return the segments of a document in the order of writing; the last one is the end sentinel and no text."""
    ids, start, further = tokenizer.sentinels, tokenizer.start, tokenizer.further
    end = Segment((ids.end,), "", further)
    if cut.order == "psm":
        prefix, suffix = Segment((ids.prefix,), cut.prefix, start), Segment((ids.suffix,), cut.suffix, further)
        return [prefix, suffix, Segment((ids.middle,), cut.middle, further), end]
    suffix = Segment((ids.prefix, ids.suffix), cut.suffix, further)
    return [suffix, Segment((ids.middle,), cut.prefix + cut.middle, start), end]


def load_fim_tokenizer(name: str, *, engine: Engine) -> FimTokenizer:
    """Return the tokenizer that `name` names, with its sentinels.

    Raises:
        EngineUnavailable: `engine` is gigatoken, and does not support this model.
        UserError: `name` is not a tokenizer, or the tokenizer has no sentinels.
    """
    if name == BYTES:
        tokenizer = load_tokenizer(BYTES, vocab_size=FIM_BYTE_IDS)
        first = ByteTokenizer.vocab_size
        return FimTokenizer(Sentinels(first, first + 1, first + 2, first + 3), tokenizer, tokenizer)
    load_tokenizer(name)  # raises the error for a file that is not a model
    proto = parsed(read_model(Path(name)))
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    if missing := [piece for piece in SENTINEL_PIECES if piece not in ids]:
        raise UserError(
            f"tokenizer {name!r} cannot fill in the middle: it has no piece {', '.join(missing)}; train one with "
            "data_prep.train_tokenizer --fim_tokens, use --tokenizer bytes, or omit --fim_rate"
        )
    for piece in SENTINEL_PIECES:
        proto.pieces[ids[piece]].type = proto.SentencePiece.CONTROL
    start = load_tokenizer(name, engine=engine, variant=proto.SerializeToString())
    proto.normalizer_spec.add_dummy_prefix = False
    further = load_tokenizer(name, engine=engine, variant=proto.SerializeToString())
    return FimTokenizer(Sentinels(*(ids[piece] for piece in SENTINEL_PIECES)), start, further)
