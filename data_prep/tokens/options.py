"""How documents become one stream of tokens: the options of the command line, and what metadata.json says of them."""

import argparse
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from common.command_line import UserError
from common.tokenizers import Tokenizer
from data_prep.tokens.fim import FimOptions, load_fim_tokenizer

DocumentEnds = Literal["eos", "bos", "both", "none"]  # EOS after each document, BOS before it, both, neither
_MOST_DOCUMENTS = 1 << 16  # of a window, counted in uint16


@dataclass(frozen=True)
class DocumentOptions:
    """What the command line gives.

    ends: what stands before and after each document.
    fim: which documents of the train split have their middle last; None for none.
    ids: whether windows say which document each token belongs to.
    shuffle_seed: of the order of documents; None for that in which they are read.
    """

    ends: DocumentEnds = "eos"
    fim: FimOptions | None = None
    ids: bool = False
    shuffle_seed: int | None = None


def add_document_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--document_ends`, `--shuffle_documents`, `--fim_rate`, `--fim_spm_rate`, `--seed`, `--document_ids`."""
    group = parser.add_argument_group("documents", "how they become one stream of tokens")
    add = group.add_argument
    ends_help = "EOS after each document, BOS before it, both, or none; generation stops at EOS (default: %(default)s)"
    add("--document_ends", choices=get_args(DocumentEnds), default="eos", help=ends_help)
    shuffle_help = "shuffle files (of plain jsonl, runs of lines) over the whole corpus, then documents in each part"
    add("--shuffle_documents", action="store_true", help=shuffle_help)
    fim_help = "fraction of the train split's documents to fill in the middle: prefix, suffix, then middle (default: 0)"
    add("--fim_rate", type=float, default=0.0, metavar="F", help=fim_help)
    spm_help = "fraction of these to write as suffix, prefix, middle (default: %(default)s)"
    add("--fim_spm_rate", type=float, default=0.5, metavar="F", help=spm_help)
    add("--seed", type=int, default=0, metavar="N", help="of the shuffle and of what is filled (default: %(default)s)")
    ids_help = "a second column, document_ids: each token's document within its window, for masks of attention"
    add("--document_ids", action="store_true", help=ids_help)


def document_options(arguments: argparse.Namespace) -> DocumentOptions:
    """Return the options that `add_document_arguments` added to a parsed command line."""
    rate, spm_rate, seed = arguments.fim_rate, arguments.fim_spm_rate, arguments.seed
    return DocumentOptions(
        ends=arguments.document_ends,
        fim=FimOptions(rate, spm_rate, seed) if rate else None,
        ids=arguments.document_ids,
        shuffle_seed=seed if arguments.shuffle_documents else None,
    )


def document_problems(arguments: argparse.Namespace) -> list[str]:
    """Return what is wrong with the options, one line each."""
    problems = [
        f"--{name} must be 0 to 1, not {getattr(arguments, name)}"
        for name in ("fim_rate", "fim_spm_rate")
        if not 0 <= getattr(arguments, name) <= 1
    ]
    if not 0 <= arguments.seed < 1 << 64:
        problems.append(f"--seed must be 0 to 2**64 - 1, not {arguments.seed}")
    if arguments.document_ids and arguments.seq_len + arguments.lookahead > _MOST_DOCUMENTS:
        problems.append(
            f"--document_ids count to {_MOST_DOCUMENTS} in a window, which --seq_len {arguments.seq_len} may exceed"
        )
    return problems


def document_metadata(options: DocumentOptions, tokenizer: Tokenizer, *, name: str) -> dict[str, Any]:
    """Return what metadata.json says of documents: `document_ends`, `document_ids`, `fim`, `shuffle_seed`.

    Raises:
        UserError: the tokenizer `name` has not the special tokens that the options need.
    """
    if options.ends in ("bos", "both") and tokenizer.bos_id < 0:
        raise UserError(f"--document_ends {options.ends}: tokenizer {name!r} has no BOS; take eos or none")
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
