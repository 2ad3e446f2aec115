"""Train a SentencePiece tokenizer on a corpus: BPE with byte fallback, like the tokenizer of Llama 2.

Decoding gives back the text unchanged: nothing is normalized, no space is dropped, and characters without a token
become bytes. (The one exception is U+2581, SentencePiece's own sign for a space, which is decoded as a space.) Digits
are single tokens. Unlike in Llama 2's tokenizer, line ends may be part of longer tokens, which suits code.

With --fim_tokens, the ids include the sentinels of fill-in-the-middle under Code Llama's names. They are control
symbols: no text is ever encoded to them.

Documents are read in a random but fixed order, so that the first --max_bytes represent the whole corpus, and the same
input gives the same model.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse
import io
import os
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import sentencepiece
from tqdm import tqdm

from common.command_line import UserError, command_parser, output_path, raise_if_any, say, whole_number
from common.files import refuse_to_replace, written_whole
from common.sentencepieces.sentencepiece_model import MODEL_HEAD, parsed
from common.wording import counted
from data_prep.filters.options import FilterOptions
from data_prep.filters.reasons import reason_to_drop
from data_prep.sources.documents import Document, ReadOptions
from data_prep.sources.listing import ListedSource
from data_prep.sources.options import add_source_arguments, read_options, sources_of
from data_prep.sources.readers import read_piece
from data_prep.tokens.fim import SENTINEL_PIECES

_MIB = 1 << 20
_MAX_VOCAB_SIZE = 1 << 16  # shards store ids as uint16
_RESERVED_IDS = 3 + 256  # unk, bos, eos, and the bytes
# SentencePiece silently skips sentences of more than `max_sentence_length` bytes; a character has up to four.
_SENTENCE_CHARACTERS = 2048
_RESERVED = "\N{LOWER FIVE EIGHTHS BLOCK}"  # SentencePiece silently skips sentences that have this character
_EXAMPLES = """examples:
  python -m data_prep.train_tokenizer --input ~/src/cpython --extensions .py .c --output tokenizer.model
  python -m data_prep.train_tokenizer --input corpus/*.jsonl.zst --output tokenizer.model --max_bytes 100000000"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the arguments are wrong, the corpus is empty or too small for the vocabulary, or the model cannot be
            written.
    """
    arguments = _parse(argv)
    _check(arguments)
    try:
        _run(arguments)
    except OSError as error:  # not from reading: a file that cannot be read is skipped
        raise UserError(f"cannot write --output {arguments.output}: {error.strerror}") from error


def _run(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.output.absolute().parent) as work:  # for a copy of standard input
        sources = sources_of(arguments, work=Path(work), piece_bytes=_MIB)
        documents, dropped = read_documents(
            sources,
            reading=read_options(arguments, fields=(arguments.language_field,) if arguments.language_field else ()),
            language_field=arguments.language_field,
            max_bytes=arguments.max_bytes,
        )
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
    if not documents:
        named = " ".join(arguments.input or arguments.mix)
        raise UserError(f"no readable documents in {named} (left out: {left_out or 'none'}); nothing to train on")
    if left_out:
        say(f"left out, of what was read: {left_out}")
    mb = sum(len(document.utf8) for document in documents) / 1e6
    say(f"training {arguments.vocab_size} ids on {counted(len(documents), 'document')}, {mb:.1f} MB ...")
    if n_reserved := sum(document.text.count(_RESERVED) for document in documents):
        say(f"left out {counted(n_reserved, 'character')} U+2585, which SentencePiece reserves; it becomes bytes")
    sentences = (sentence for document in documents for sentence in sentences_of(document.text))
    symbols = SENTINEL_PIECES if arguments.fim_tokens else ()
    model = train(
        sentences, vocab_size=arguments.vocab_size, num_threads=arguments.num_threads, control_symbols=symbols
    )
    with written_whole(arguments.output) as partial:
        partial.write_bytes(model)
    ratio = bytes_per_token(model, documents[:200])
    say(f"{arguments.output} is finished in {time.monotonic() - started:.1f} s; {ratio:.2f} bytes per token")


def read_documents(
    sources: Sequence[ListedSource], *, reading: ReadOptions, max_bytes: int, language_field: str | None = None
) -> tuple[list[Document], Counter[str]]:
    """Return documents of all sources, up to `max_bytes` of text, in a random but fixed order of their pieces.

    Also return how many records were dropped for each reason.

    A piece gives at most an equal part of `max_bytes`, or 1 MiB if that is more, because a compressed file is a single
    piece of any size and should not fill the whole amount. If sources have weights, the heaviest one gives all of its
    documents, and the others a fraction of theirs, in proportion to their weights.
    """
    pieces = [piece for source in sources for piece in source.pieces]
    heaviest = max((source.selection.weight for source in sources), default=1.0)
    filters = FilterOptions(language_field=language_field)
    random.Random(0).shuffle(pieces)
    max_piece_bytes = max(_MIB, max_bytes // len(pieces))
    documents: list[Document] = []
    dropped = Counter(skipped.reason for source in sources for skipped in source.skipped)
    n_bytes = 0
    with tqdm(desc="reading", total=max_bytes, unit="B", unit_scale=True, leave=False) as bar:
        for piece in pieces:
            n_piece_bytes = 0
            selection = replace(piece.selection, weight=piece.selection.weight / heaviest)
            for record in read_piece(piece, reading):
                reason = reason_to_drop(record, selection, filters)
                if isinstance(record, Document) and reason is None:
                    documents.append(record)
                    n_piece_bytes += len(record.utf8)
                else:
                    dropped[str(reason)] += 1
                if n_piece_bytes >= max_piece_bytes or n_bytes + n_piece_bytes >= max_bytes:
                    break
            n_bytes += n_piece_bytes
            bar.update(n_piece_bytes)
            if n_bytes >= max_bytes:
                break
    return documents, dropped


def sentences_of(text: str) -> Iterator[str]:
    """Yield consecutive runs of `text` of at most 2048 characters, cut after a line end where there is one.

    The runs are also cut at U+2585, which is left out, because SentencePiece would leave out the whole run.
    """
    start = 0
    while start < len(text):
        stop = start + _SENTENCE_CHARACTERS
        line_end = text.rfind("\n", start, stop) + 1
        if stop < len(text) and line_end > start:
            stop = line_end
        yield from filter(None, text[start:stop].split(_RESERVED))
        start = stop


def train(sentences: Iterator[str], *, vocab_size: int, num_threads: int, control_symbols: Sequence[str] = ()) -> bytes:
    """Return a serialized SentencePiece model, which has `control_symbols` after unk, bos and eos.

    Raises:
        UserError: the sentences do not give `vocab_size` ids, or have more characters than that.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.99995,  # as Llama 2; other characters become bytes
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            allow_whitespace_only_pieces=True,  # runs of spaces, for the indentation of code
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            control_symbols=list(control_symbols),
            max_sentence_length=4 * _SENTENCE_CHARACTERS,
            num_threads=num_threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _as_user_error(error, vocab_size) from error
    proto = parsed(model.getvalue())
    proto.trainer_spec.ClearField("num_threads")  # changes no piece, but would change the file's hash
    return proto.SerializeToString(deterministic=True)


def bytes_per_token(model: bytes, documents: Sequence[Document]) -> float:
    """Return the mean number of UTF-8 bytes per token of `model` in `documents`."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    n_tokens = sum(len(processor.encode(document.text)) for document in documents)
    return sum(len(document.utf8) for document in documents) / n_tokens


def _as_user_error(error: RuntimeError, vocab_size: int) -> Exception:
    if found := re.search(r"too high .*<= (\d+)", str(error)):
        advice = f"the text gives at most {found[1]} ids: lower --vocab_size, raise --max_bytes, or add input"
    elif found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
        advice = f"the bytes and the characters of the text alone need {found[1]} ids: raise --vocab_size"
    else:
        return error
    return UserError(f"--vocab_size {vocab_size} does not fit the corpus; {advice}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("data_prep.train_tokenizer", description=__doc__, epilog=_EXAMPLES)
    add_source_arguments(parser)
    language_help = "jsonl key of the language, for languages in --mix (default: from the file extension)"
    parser.add_argument("--language_field", metavar="NAME", help=language_help)
    group = parser.add_argument_group("model")
    add = group.add_argument
    add(
        "--output", required=True, type=output_path, metavar="FILE", help="model file to write, such as tokenizer.model"
    )
    ids = whole_number(at_least=_RESERVED_IDS + 1, at_most=_MAX_VOCAB_SIZE)
    add("--vocab_size", type=ids, default=32000, metavar="N", help="number of ids (default: %(default)s)")
    fim_help = f"reserve ids for fill-in-the-middle: {' '.join(SENTINEL_PIECES)}"
    add("--fim_tokens", action="store_true", help=fim_help)
    bytes_help = "bytes of text to train on; time and memory grow in proportion (default: %(default)s)"
    n_bytes = whole_number(at_least=1, at_most=10**12)
    add("--max_bytes", type=n_bytes, default=10_000_000, metavar="N", help=bytes_help)
    threads_help = "number of threads (default: one per CPU)"
    threads = whole_number(at_least=1, at_most=1024)
    add("--num_threads", type=threads, default=os.cpu_count(), metavar="N", help=threads_help)
    return parser.parse_args(argv)


def _check(arguments: argparse.Namespace) -> None:
    problems = []
    min_vocab_size = _RESERVED_IDS + len(SENTINEL_PIECES) * arguments.fim_tokens + 1
    if arguments.vocab_size < min_vocab_size:
        problems.append(f"--vocab_size must be at least {min_vocab_size} with --fim_tokens, not {arguments.vocab_size}")
    if arguments.output.is_dir() or not arguments.output.absolute().parent.is_dir():
        problems.append(f"--output {arguments.output} must be a file in a folder that exists")
    raise_if_any(problems, heading="bad arguments")
    refuse_to_replace(arguments.output, head=MODEL_HEAD, kind="a SentencePiece model")


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.train_tokenizer")
