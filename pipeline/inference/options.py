"""The command-line options that `pipeline.generate` and `pipeline.evaluate` share, and what is checked about them."""

import argparse
import os
from collections.abc import Callable
from typing import Any

from common.command_line import a_path, path_text, real_number, whole_number
from pipeline.inference.decoding.session import DECODINGS
from pipeline.weights.formats.export import DTYPES
from pipeline.weights.formats.record import FIRST_TOKENS

_TOKENS = whole_number(at_least=1, at_most=1 << 30)
AddArgument = Callable[..., Any]
"""The `add_argument` of a parser or of one of its groups."""


def add_model_options(add: AddArgument) -> None:
    """Add the options that say which model to load, with which tokenizer, where and in which precision."""
    add("--ckpt_dir", required=True, type=a_path, metavar="DIR", help="an export, in Meta's or Hugging Face's format")
    tokenizer_help = (
        "a SentencePiece model, or the word 'bytes' (default: DIR's tokenizer.model; without it, bytes for a model "
        "with 258 or 262 ids)"
    )
    add("--tokenizer_path", type=path_text, metavar="FILE", help=tokenizer_help)
    add("--device", help="for example cpu or cuda:1 (default: cuda if there is one)")
    add("--dtype", choices=list(DTYPES), help="precision of weights and caches (default: bf16 on cuda, else fp32)")


def add_first_token_option(add: AddArgument) -> None:
    """Add the option that says which token precedes a prompt."""
    first_help = (
        "the token before each prompt: bos for Meta's models, eos for models trained on data_prep's shards, where EOS "
        "separates documents (default: what DIR says, as exports do; else eos for bytes, and bos)"
    )
    add("--first_token", choices=FIRST_TOKENS, help=first_help)


def add_decoding_options(
    add: AddArgument, *, max_seq_len: int, max_batch_size: int, max_gen_len: int | None, top_p: float
) -> None:
    """Add the options that say how completions are decoded, with the command's own defaults."""
    length_help = "maximum number of tokens of a prompt and its completion (default: %(default)s)"
    add("--max_seq_len", type=_TOKENS, default=max_seq_len, metavar="N", help=length_help)
    batch_help = "completions decoded at once; more are decoded in several batches (default: %(default)s)"
    batch = whole_number(at_least=1, at_most=65_536)
    add("--max_batch_size", type=batch, default=max_batch_size, metavar="N", help=batch_help)
    default = "as many as --max_seq_len allows" if max_gen_len is None else "%(default)s"
    gen_help = f"maximum number of tokens to generate (default: {default})"
    add("--max_gen_len", type=_TOKENS, default=max_gen_len, metavar="N", help=gen_help)
    top_p_help = "sample only from the most probable tokens with this total probability (default: %(default)s)"
    add("--top_p", type=real_number(above=0, at_most=1), default=top_p, metavar="P", help=top_p_help)
    seed_help = "seed of the sampling; the same command gives the same text (default: %(default)s)"
    add("--seed", type=whole_number(at_least=0, at_most=2**63 - 1), default=1, metavar="N", help=seed_help)
    decoding_help = "the next-token head alone, or all heads together (default: %(default)s)"
    add("--decoding", choices=DECODINGS, default="self_speculative", help=decoding_help)
    heads_help = "heads that speculate, the next-token head included (default: all)"
    add("--n_heads_used", type=whole_number(at_least=1, at_most=1024), metavar="K", help=heads_help)


def decoding_problems(arguments: argparse.Namespace) -> list[str]:
    """Return what is wrong with the shared options, or with the launcher, one line each."""
    problems = []
    n_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if n_processes > 1:
        problems.append(f"this command runs in 1 process, not {n_processes}; use torchrun --nproc_per_node 1")
    return problems
