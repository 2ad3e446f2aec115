"""Convert weights between training checkpoints, Meta's format and Hugging Face's format.

    python -m pipeline.convert --input runs/demo --to hf --output exports/demo

The input is a run directory (its newest whole checkpoint is used), a checkpoint with any sharding, or a folder in
Meta's or Hugging Face's format. Without --dtype, all values are kept bit for bit. However large the model is, only one
weight (meta, deepspeed) or one file of at most 5 GB (hf) is in memory at a time. An export comes with a model card,
README.md, in which you fill in the licence. `--to deepspeed` writes a checkpoint that runs can start from with
model.init_from.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.command_line import UserError, a_path, command_parser, output_path, path_text, say, whole_number
from common.tokenizers import BYTES, load_tokenizer
from pipeline.weights.formats.detect import EXPORTS, FORMATS, format_of
from pipeline.weights.formats.export import DTYPES, ExportOptions, torch_dtype
from pipeline.weights.formats.model_card import write_model_card
from pipeline.weights.formats.publish import checked_output, published_folder
from pipeline.weights.formats.record import FIRST_TOKENS, FirstToken, write_record
from pipeline.weights.formats.stored_model import TOKENIZER, StoredModel, fits_vocabulary, warn


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the input is not a model or cannot be written in this format, or the output folder cannot be used.
    """
    arguments = _parse(argv)
    output = checked_output(arguments.output, source=arguments.input)
    stored = format_of(arguments.input).open(arguments.input)
    stored = replace(stored, seq_len=arguments.seq_len or stored.seq_len)
    tokenizer = _tokenizer(arguments.tokenizer_path or stored.tokenizer, stored)
    options = ExportOptions(
        dtype=torch_dtype(arguments.dtype) if arguments.dtype else None,
        tokenizer=tokenizer,
        first_token=arguments.first_token or _first_token(stored, tokenizer),
    )
    with published_folder(output) as folder:
        say(f"reading {stored.path}")
        FORMATS[arguments.to].write(stored, folder, options)
        if arguments.to in EXPORTS:
            write_model_card(folder, stored, name=output.name, format_name=arguments.to, options=options)
        write_record(folder, first_token=options.first_token, seq_len=stored.seq_len)
    say(f"finished {arguments.output}; to use it:\n  {_use(arguments.to, arguments.output, options)}")


def _tokenizer(name: str | None, stored: StoredModel) -> str | None:
    """Return the tokenizer to include, checked against the model; warn if there is none.

    Raises:
        UserError: the tokenizer and the model have different numbers of ids.
    """
    if name is None:
        print("warning: the output has no tokenizer; give one with --tokenizer_path", file=sys.stderr)
        return None
    tokenizer = load_tokenizer(name, vocab_size=stored.config.vocab_size)
    n_ids = tokenizer.vocab_size
    if not fits_vocabulary(tokenizer, stored.config.vocab_size):
        raise UserError(f"the tokenizer {name} has {n_ids} ids, but the model has {stored.config.vocab_size}")
    if n_ids != stored.config.vocab_size:
        warn(f"the model has {stored.config.vocab_size} ids, and {name} has {n_ids}; the others are padding")
    return name


def _first_token(stored: StoredModel, tokenizer: str | None) -> FirstToken:
    """Return the token before each document in training; if the input does not say, a likely one, with a warning."""
    if stored.first_token is not None:
        return stored.first_token
    likely: FirstToken = "eos" if tokenizer == BYTES else "bos"
    say(
        f"warning: {stored.path} does not say which token precedes each document; the output says {likely}; "
        "--first_token sets it",
        file=sys.stderr,
    )
    return likely


def _use(format_name: str, folder: Path, options: ExportOptions) -> str:
    """Return a command that uses the export."""
    if format_name == "deepspeed":
        return f"deepspeed --module pipeline.train ... {shlex.quote(f'model.init_from={folder}')}"
    tokenizer = {None: "TOKENIZER", BYTES: BYTES}.get(options.tokenizer, str(folder / TOKENIZER))
    ckpt_dir, tokenizer = shlex.quote(str(folder)), shlex.quote(tokenizer)
    return f"python -m pipeline.generate --ckpt_dir {ckpt_dir} --tokenizer_path {tokenizer} --max_seq_len 128"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("pipeline.convert", description=__doc__)
    input_help = "a run directory (its newest whole checkpoint is used), a checkpoint, or an export in any format"
    parser.add_argument("--input", required=True, type=a_path, metavar="RUN_OR_DIR", help=input_help)
    parser.add_argument("--to", required=True, choices=list(FORMATS), help="the format to write")
    output_help = "the folder to write; an earlier export there is replaced as a whole, anything else is refused"
    parser.add_argument("--output", required=True, type=output_path, metavar="DIR", help=output_help)
    dtype_help = "precision of the written weights (default: that of the input; fp32 for checkpoints)"
    parser.add_argument("--dtype", choices=list(DTYPES), help=dtype_help)
    tokenizer_help = "a SentencePiece model, or the word 'bytes' (default: that of the run, or of the input folder)"
    parser.add_argument("--tokenizer_path", type=path_text, metavar="FILE", help=tokenizer_help)
    length_help = (
        "length of the training sequences in tokens, which --to hf writes as max_position_embeddings (default: as the "
        "input says)"
    )
    length = whole_number(at_least=1, at_most=2**31 - 1)
    parser.add_argument("--seq_len", type=length, metavar="N", help=length_help)
    first_help = (
        "the token before each document in training, which travels with the export; pipeline.generate and the "
        "tokenizer of --to hf put it before each text (default: as the input says; else eos for bytes, and bos)"
    )
    parser.add_argument("--first_token", choices=FIRST_TOKENS, help=first_help)
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="pipeline.convert")
