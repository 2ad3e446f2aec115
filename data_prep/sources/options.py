"""The sources' options on the command line: which corpus, and how to read it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.command_line import UserError, path_text, say
from common.tokenizers import BYTES
from data_prep.sources.documents import ReadOptions, Selection
from data_prep.sources.formats.recognition import CODE_EXTENSIONS
from data_prep.sources.huggingface.library import PREFIX
from data_prep.sources.listing import DEFAULT_EXTENSIONS, UNCUT, ListedSource, know_earlier, list_source
from data_prep.sources.mixture import MIX_SYNTAX, parse_mix
from data_prep.sources.remarks import check_names, language_key_remarks, remarks_on
from data_prep.sources.standard_input import STDIN, copied_input
from data_prep.sources.trees import ALL_EXTENSIONS

_INPUT_HELP = (
    "source trees, files (text, JSON lines or arrays [.gz|.zst], .parquet), Hugging Face data sets"
    f" {PREFIX}PATH_OR_NAME[:CONFIG][@SPLIT] (streamed; default split: train){{stdin}}; sources are read in the given"
    " order"
)
_STDIN_HELP = (
    ", or - for jsonl from standard input, which is first copied to the output's work folder, so that a continued run"
    " uses the copy"
)
_MIX_HELP = (
    f"sources with weights, instead of --input: {MIX_SYNTAX}. Each document comes WEIGHT times: 0.25 keeps a quarter,"
    " chosen by a hash of the text, and 2.5 gives two epochs and half of a third. #python,c++ keeps only these"
    " languages. metadata.json counts each source under its NAME"
)


def add_source_arguments(parser: argparse.ArgumentParser, *, files_only: bool = False) -> None:
    """Add the options that name the corpus and say how it is read.

    Args:
        parser: the parser of a command.
        files_only: leave out mixtures and standard input.
    """
    group = parser.add_argument_group("corpus")
    either = group.add_mutually_exclusive_group(required=True)
    input_help = _INPUT_HELP.format(stdin="" if files_only else _STDIN_HELP)
    either.add_argument("--input", nargs="+", type=path_text, metavar="SRC", help=input_help)
    if files_only:
        parser.set_defaults(mix=None)
    else:
        either.add_argument("--mix", nargs="+", metavar="MIX", help=_MIX_HELP)
    group.add_argument(
        "--extensions",
        nargs="+",
        default=list(CODE_EXTENSIONS),
        metavar="EXT",
        help="extensions of the files to read in a folder, e.g. .py .md .jsonl.zst .parquet, or '*' for all"
        " (default: those of common programming languages, of JSON lines and of Parquet)",
    )
    exclude_help = "files and folders to leave out of input folders, in .gitignore syntax: 'build/' '*_pb2.py' '!a.py'"
    group.add_argument("--exclude", nargs="+", default=[], metavar="PATTERN", help=exclude_help)
    field_help = "key of the text in jsonl, or its column in Parquet and data sets (default: %(default)s)"
    group.add_argument("--text_field", default="text", metavar="NAME", help=field_help)
    strict_help = (
        "end the run at the first input that is not a document, and name its file and byte (default: count it and"
        " continue)"
    )
    group.add_argument("--strict", action="store_true", help=strict_help)


def read_options(arguments: argparse.Namespace, **more: str | tuple[str, ...] | None) -> ReadOptions:
    """Return the read options of a parsed command line.

    Args:
        arguments: parsed with the options of `add_source_arguments`.
        more: further fields of `ReadOptions`.
    """
    return ReadOptions(
        text_field=arguments.text_field,
        bad_input="refuse" if arguments.strict else "count",
        compressed="keep" if _keeps_compressed(arguments) else "drop",
        **more,  # type: ignore[arg-type]
    )


def _keeps_compressed(arguments: argparse.Namespace) -> bool:
    """Return whether the command line asks for the bytes of any file, whatever it holds."""
    return ALL_EXTENSIONS in arguments.extensions and getattr(arguments, "tokenizer", None) == BYTES


def _extensions(arguments: argparse.Namespace) -> Sequence[str]:
    """Return the extensions to read in a folder.

    By default these are also the extensions of records. The default of the option itself has to stay as it is, because
    by it a finished output is recognised.
    """
    return DEFAULT_EXTENSIONS if arguments.extensions == list(CODE_EXTENSIONS) else arguments.extensions


def sources_of(
    arguments: argparse.Namespace, *, work: Path, metadata: Path | None = None, piece_bytes: int = UNCUT
) -> list[ListedSource]:
    """Return the sources that a parsed command line names, and print what of them is left out.

    Args:
        arguments: parsed with the options of `add_source_arguments`.
        work: folder for the copy of standard input.
        metadata: path of the finished output's metadata.json, if there may be one.
        piece_bytes: approximate size of the pieces.

    Raises:
        UserError: a source does not exist, holds nothing to read, or is misspelt; no record has a field that is named;
            with `--strict`, a file or folder cannot be read.
    """
    wanted = parse_mix(arguments.mix) if arguments.mix else [(path, Selection(path)) for path in arguments.input]
    stdin = copied_input(work, metadata=metadata) if STDIN in (path for path, _ in wanted) else None
    sources = [
        list_source(
            path,
            selection=selection,
            extensions=_extensions(arguments),
            exclude=arguments.exclude,
            text_field=arguments.text_field,
            piece_bytes=piece_bytes,
            stdin=stdin,
        )
        for path, selection in wanted
    ]
    sources = know_earlier(sources)
    for source in sources if arguments.strict else ():
        for skipped in source.skipped:
            raise UserError(f"{skipped.source}: {skipped.reason} ({skipped.detail}); repair it, or omit --strict")
    remarks = check_names(
        sources,
        text_field=arguments.text_field,
        language_field=getattr(arguments, "language_field", None),
        license_field=getattr(arguments, "license_field", None),
    )
    if hasattr(arguments, "rules") and arguments.language_field is None:
        remarks += language_key_remarks(sources, text_field=arguments.text_field)
    by_path = {source.path: source for source in sources}  # a mixture often names one path several times
    for source in by_path.values():
        remarks += remarks_on(source, keeps_compressed=_keeps_compressed(arguments))
    for line in remarks:
        say(line)
    return sources
