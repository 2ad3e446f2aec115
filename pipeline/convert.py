"""Weights from one format to another: training checkpoints, Meta's release, Hugging Face.

    python -m pipeline.convert --input runs/demo --to hf --output exports/demo

The input is a run directory (its newest whole checkpoint is taken), one checkpoint of any way of running, or a folder
in Meta's or Hugging Face's format. Values are kept bit for bit unless --dtype asks otherwise, and however large the
model is, a weight (meta, deepspeed) or a file of 5 GB (hf) is in memory at a time. With an export goes a model card,
README.md, whose licence is yours to fill in. `--to deepspeed` writes a checkpoint to start runs from (model.init_from).
"""

import argparse
import fnmatch
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from common.command_line import UserError, command_parser, exit_on_user_error
from common.tokenizers import BYTES, load_tokenizer
from pipeline.weights.formats.detect import EXPORTS, FORMATS, format_of
from pipeline.weights.formats.export import DTYPES, ExportOptions, torch_dtype
from pipeline.weights.formats.model_card import CARD, write_model_card
from pipeline.weights.formats.stored_model import TOKENIZER, StoredModel


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the input is no model, does not fit the output's format, or the output folder holds something else.
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
    """Return the tokenizer that goes along, checked against the model.

    Raises:
        UserError: it has other ids than the model.
    """
    if name is None:
        print("warning: no tokenizer goes along; name it with --tokenizer_path", file=sys.stderr)
        return None
    n_ids = load_tokenizer(name, vocab_size=stored.config.vocab_size).vocab_size
    if n_ids != stored.config.vocab_size:
        raise UserError(f"the tokenizer {name} has {n_ids} ids, but the model {stored.config.vocab_size}")
    return name


def _first_token(stored: StoredModel, path: Path, tokenizer: str | None) -> Literal["bos", "eos", "none"]:
    """Return what stood before a document in training: what our shards say, mostly EOS; BOS for Meta's models."""
    ends = (stored.provenance.shards or {}).get("document_ends")
    if ends is not None:
        return "bos" if ends == "both" else ends
    return "eos" if tokenizer == BYTES or FORMATS["deepspeed"].is_at(path) else "bos"


def _use(format_name: str, folder: Path, options: ExportOptions) -> str:
    """Return a command that uses the export."""
    if format_name == "deepspeed":
        return f"deepspeed --module pipeline.train ... model.init_from={folder}"
    tokenizer = {None: "TOKENIZER", BYTES: BYTES}.get(options.tokenizer, folder / TOKENIZER)
    return (
        f"python -m pipeline.generate --ckpt_dir {folder} --tokenizer_path {tokenizer}"
        f" --first_token {options.first_token} --max_seq_len 128"
    )


def _check_output(folder: Path) -> None:
    """Refuse an output folder that holds anything but an earlier export.

    Raises:
        UserError: it does, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; give a folder")
    patterns = [CARD, *(pattern for format_ in FORMATS.values() for pattern in format_.files)]
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    foreign = [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if foreign:
        raise UserError(f"--output {folder} holds {foreign[0]!r}, which is no export; give a new or empty folder")


@contextmanager
def published_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; on success it takes its place, whole, else it is removed.

    Raises:
        UserError: no folder can be made there, or the disk is full.
    """
    folder = folder.resolve()
    for left in folder.parent.glob(f".{folder.name}.*-*"):  # perhaps of another machine's process, so not deleted here
        print(f"warning: {left} is of a conversion that runs or was killed; if killed, delete it", file=sys.stderr)
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
    input_help = "a run directory (its newest whole checkpoint is taken), a checkpoint, or an export of any format"
    parser.add_argument("--input", required=True, type=Path, metavar="RUN_OR_DIR", help=input_help)
    parser.add_argument("--to", required=True, choices=list(FORMATS), help="the format to write")
    output_help = "folder to write; an earlier export there is replaced as a whole"
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help=output_help)
    dtype_help = "precision of the weights written (default: as the input has them; checkpoints have fp32)"
    parser.add_argument("--dtype", choices=list(DTYPES), help=dtype_help)
    tokenizer_help = "a SentencePiece model, or the word 'bytes' (default: the run's, or that in the input folder)"
    parser.add_argument("--tokenizer_path", metavar="FILE", help=tokenizer_help)
    first_help = (
        "what preceded a document in training, and so a text in the tokenizer that --to hf writes (default: eos for "
        "runs, as in their shards, and for bytes; else bos)"
    )
    parser.add_argument("--first_token", choices=["bos", "eos", "none"], help=first_help)
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="pipeline.convert")
