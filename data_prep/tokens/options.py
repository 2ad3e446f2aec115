"""The options for turning documents into one stream of tokens: on the command line, and in metadata.json."""

import argparse
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from common.command_line import UserError, real_number, whole_number
from common.tokenizers import Tokenizer
from data_prep.tokens.fim import FimOptions, load_fim_tokenizer

DocumentEnds = Literal["eos", "bos", "both", "none"]  # EOS after each document, BOS before it, both, or neither
_MOST_DOCUMENTS = 1 << 16  # in a window; they are numbered in uint16


@dataclass(frozen=True)
class DocumentOptions:
    """Options for joining documents into one stream of tokens."""

    ends: DocumentEnds = "eos"
    """The special tokens before and after each document."""
    fim: FimOptions | None = None
    """Which documents of the training split have their middle last; None for none."""
    ids: bool = False
    """Whether windows also record the document of each token."""
    shuffle_seed: int | None = None
    """The seed of the documents' random order; None keeps the order in which they are read."""


def add_document_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--document_ends`, `--shuffle_documents`, `--fim_rate`, `--fim_spm_rate`, `--seed`, `--document_ids`."""
    group = parser.add_argument_group("documents", "how documents become one stream of tokens")
    add = group.add_argument
    ends_help = "EOS after each document, BOS before it, both, or none; generation stops at EOS (default: %(default)s)"
    add("--document_ends", choices=get_args(DocumentEnds), default="eos", help=ends_help)
    shuffle_help = "shuffle files (in plain jsonl, runs of lines) over the whole corpus, then documents in each part"
    add("--shuffle_documents", action="store_true", help=shuffle_help)
    fim_help = "fraction of the train split's documents for fill-in-the-middle: prefix, suffix, middle (default: 0)"
    fraction = real_number(at_least=0, at_most=1)
    add("--fim_rate", type=fraction, default=0.0, metavar="F", help=fim_help)
    spm_help = "fraction of these to write as suffix, prefix, middle instead (default: %(default)s)"
    add("--fim_spm_rate", type=fraction, default=0.5, metavar="F", help=spm_help)
    seed_help = "seed of the shuffle and of --fim_rate (default: %(default)s)"
    seed = whole_number(at_least=0, at_most=2**64 - 1)
    add("--seed", type=seed, default=0, metavar="N", help=seed_help)
    ids_help = "add a column document_ids, which numbers the documents in each window, for attention masks"
    add("--document_ids", action="store_true", help=ids_help)


def document_options(arguments: argparse.Namespace) -> DocumentOptions:
    """Return the document options of a parsed command line with the options of `add_document_arguments`."""
    rate, spm_rate, seed = arguments.fim_rate, arguments.fim_spm_rate, arguments.seed
    return DocumentOptions(
        ends=arguments.document_ends,
        fim=FimOptions(rate, spm_rate, seed) if rate else None,
        ids=arguments.document_ids,
        shuffle_seed=seed if arguments.shuffle_documents else None,
    )


def document_problems(arguments: argparse.Namespace) -> list[str]:
    """Return the problems with the document options, one line each."""
    problems = []
    if arguments.document_ids and arguments.seq_len + arguments.lookahead > _MOST_DOCUMENTS:
        problems.append(
            f"--document_ids can number {_MOST_DOCUMENTS} documents in a window; "
            f"--seq_len {arguments.seq_len} is too long"
        )
    return problems


def document_metadata(options: DocumentOptions, tokenizer: Tokenizer, *, name: str) -> dict[str, Any]:
    """Return the entries of metadata.json about documents: `document_ends`, `document_ids`, `fim`, `shuffle_seed`.

    Raises:
        UserError: the tokenizer `name` lacks special tokens that the options need.
    """
    if options.ends in ("bos", "both") and tokenizer.bos_id < 0:
        raise UserError(f"--document_ends {options.ends}: tokenizer {name!r} has no BOS; choose eos or none")
    fim = None
    if options.fim is not None:
        sentinels = load_fim_tokenizer(name, engine="sentencepiece").sentinels
        fim = {**asdict(options.fim), "sentinels": asdict(sentinels)}
    return {
        "document_ends": options.ends,
        "document_ids": options.ids,
        "fim": fim,
        "shuffle_seed": options.shuffle_seed,
    }
