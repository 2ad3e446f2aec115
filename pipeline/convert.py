"""Convert weights between training checkpoints, Meta's format and Hugging Face's format.

    python -m pipeline.convert --input runs/demo --to hf --output exports/demo

The input is a run directory (its newest whole checkpoint is used), a checkpoint with any sharding, or a folder in
Meta's or Hugging Face's format. Without --dtype, all values are kept bit for bit. However large the model is, only one
weight (meta, deepspeed) or one file of at most 5 GB (hf) is in memory at a time. An export comes with a model card,
README.md, in which you fill in the licence. `--to deepspeed` writes a checkpoint that runs can start from with
model.init_from.
"""

from common.endings import exit_on_user_error

import argparse
import fnmatch
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from common.command_line import UserError, command_parser
from common.tokenizers import BYTES, load_tokenizer
from pipeline.weights.formats.detect import EXPORTS, FORMATS, format_of
from pipeline.weights.formats.export import DTYPES, ExportOptions, torch_dtype
from pipeline.weights.formats.model_card import CARD, write_model_card
from pipeline.weights.formats.stored_model import TOKENIZER, StoredModel


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the input is not a model or cannot be written in this format, or the output folder cannot be used.
    """
    arguments = _parse(argv)
    _check_output(arguments.output)
    stored = format_of(arguments.input).open(arguments.input)
    tokenizer = _tokenizer(arguments.tokenizer_path or stored.tokenizer, stored)
    options = ExportOptions(
        dtype=torch_dtype(arguments.dtype) if arguments.dtype else None,
        tokenizer=tokenizer,
        first_token=arguments.first_token or _first_token(stored, arguments.input, tokenizer),
    )
    with published_folder(arguments.output) as folder:
        print(f"reading {stored.path}", flush=True)
        FORMATS[arguments.to].write(stored, folder, options)
        if arguments.to in EXPORTS:
            write_model_card(folder, stored, name=arguments.output.name, format_name=arguments.to, options=options)
    print(f"finished {arguments.output}; to use it:\n  {_use(arguments.to, arguments.output, options)}")


def _tokenizer(name: str | None, stored: StoredModel) -> str | None:
    """Return the tokenizer to include, checked against the model; warn if there is none.

    Raises:
        UserError: the tokenizer and the model have different numbers of ids.
    """
    if name is None:
        print("warning: the output has no tokenizer; give one with --tokenizer_path", file=sys.stderr)
        return None
    n_ids = load_tokenizer(name, vocab_size=stored.config.vocab_size).vocab_size
    if n_ids != stored.config.vocab_size:
        raise UserError(f"the tokenizer {name} has {n_ids} ids, but the model has {stored.config.vocab_size}")
    return name


def _first_token(stored: StoredModel, path: Path, tokenizer: str | None) -> Literal["bos", "eos", "none"]:
    """Return the token before each document in training: as the shards record it, or EOS; BOS for Meta's models."""
    ends = (stored.provenance.shards or {}).get("document_ends")
    if ends is not None:
        return "bos" if ends == "both" else ends
    return "eos" if tokenizer == BYTES or FORMATS["deepspeed"].is_at(path) else "bos"


def _use(format_name: str, folder: Path, options: ExportOptions) -> str:
    """Return a command that uses the export."""
    if format_name == "deepspeed":
        return f"deepspeed --module pipeline.train ... {shlex.quote(f'model.init_from={folder}')}"
    tokenizer = str({None: "TOKENIZER", BYTES: BYTES}.get(options.tokenizer, folder / TOKENIZER))
    return (
        f"python -m pipeline.generate --ckpt_dir {shlex.quote(str(folder))}"
        f" --tokenizer_path {shlex.quote(tokenizer)}"
        f" --first_token {options.first_token} --max_seq_len 128"
    )


def _check_output(folder: Path) -> None:
    """Check that the output folder does not exist, is empty, or holds only an earlier export.

    Raises:
        UserError: the folder holds something else, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; give a folder")
    patterns = [CARD, *(pattern for format_ in FORMATS.values() for pattern in format_.files)]
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    foreign = [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if foreign:
        raise UserError(f"--output {folder} holds {foreign[0]!r}, which no export has; give a new or empty folder")


@contextmanager
def published_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which replaces `folder` on success and is removed on failure.

    Raises:
        UserError: the folder cannot be created, or the disk is full.
    """
    folder = folder.resolve()
    for left in folder.parent.glob(f".{folder.name}.*-*"):  # perhaps from another machine, so it is not deleted
        print(
            f"warning: {left} was left by a conversion that is still running or was killed; if it was killed, delete"
            " the folder",
            file=sys.stderr,
        )
    partial, former = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("partial", "former"))
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.replace(former)
        partial.replace(folder)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if former.exists() and not folder.exists():
            former.replace(folder)
        shutil.rmtree(former, ignore_errors=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("pipeline.convert", description=__doc__)
    input_help = "a run directory (its newest whole checkpoint is used), a checkpoint, or an export in any format"
    parser.add_argument("--input", required=True, type=Path, metavar="RUN_OR_DIR", help=input_help)
    parser.add_argument("--to", required=True, choices=list(FORMATS), help="the format to write")
    output_help = "the folder to write; an earlier export there is replaced as a whole"
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help=output_help)
    dtype_help = "precision of the written weights (default: that of the input; fp32 for checkpoints)"
    parser.add_argument("--dtype", choices=list(DTYPES), help=dtype_help)
    tokenizer_help = "a SentencePiece model, or the word 'bytes' (default: that of the run, or of the input folder)"
    parser.add_argument("--tokenizer_path", metavar="FILE", help=tokenizer_help)
    first_help = (
        "the token before each document in training, which the tokenizer of --to hf puts before each text (default: "
        "eos for runs, as in their shards, and for bytes; else bos)"
    )
    parser.add_argument("--first_token", choices=["bos", "eos", "none"], help=first_help)
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="pipeline.convert")
