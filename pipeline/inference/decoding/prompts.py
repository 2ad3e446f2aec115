"""Prompts from the command line, a file or standard input, and their tokens."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command_line import UserError, raise_if_any
from common.small_files import BadFileError, parse_json, read_small_file
from common.tokenizers import BYTES, FIM_BYTE_IDS, ByteTokenizer, Tokenizer, load_tokenizer
from common.wording import counted
from pipeline.config.model import ModelConfig
from pipeline.weights.formats.stored_model import TOKENIZER, fits_vocabulary, tokenizer_in, warn

STANDARD_INPUT = Path("-")
_MOST_BYTES = 256 << 20
DEFAULT_PROMPTS = (  # short enough for the quickstart's --max_seq_len 128, also in bytes
    '''def fizz_buzz(n: int) -> str:
    """Return Fizz, Buzz, FizzBuzz or the number."""
''',
    """import argparse

parser = argparse.ArgumentParser(description="Count words.")
""",
)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text to continue."""

    text: str
    ids: list[int]
    """The tokens of the text, after the token that precedes a document, if any."""


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file: one per line, or one object with a "prompt" per line if it is named .jsonl.

    Standard input (`-`) is one prompt as a whole, since what is piped is usually one text, such as an unfinished
    program. Its last line end is dropped, which `echo` adds.

    Raises:
        UserError: the file is missing, empty, or not UTF-8, or a line of a .jsonl file is not such an object.
    """
    name = "standard input" if path == STANDARD_INPUT else f"--prompt_file {path}"
    try:
        text = _contents(path).decode("utf-8-sig")  # a byte order mark is no part of a prompt
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text: {error.reason}") from error
    if not text.strip():
        raise UserError(f"{name} is empty; it must hold the texts to continue")
    if path == STANDARD_INPUT:
        return [text.removesuffix("\n")]
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    return [_prompt_in(line, name) for line in lines] if path.suffix == ".jsonl" else lines


def _contents(path: Path) -> bytes:
    if path != STANDARD_INPUT:
        return read_small_file(path, what="--prompt_file", most_bytes=_MOST_BYTES)
    contents = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(contents) > _MOST_BYTES:
        raise UserError(f"standard input has more than {_MOST_BYTES:,} bytes; it must hold one text to continue")
    return contents


def _prompt_in(line: str, name: str) -> str:
    wanted = f'{name} must have a JSON object with a text "prompt" on every line'
    try:
        row = parse_json(line.encode(), name=f"{line[:60]!r}")
    except BadFileError as error:
        raise UserError(f"{wanted}; {error}") from error
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str):
        raise UserError(f"{wanted}, not {line[:60]!r}")
    return prompt


def matching_tokenizer(name: str | None, folder: Path, config: ModelConfig) -> Tokenizer:
    """Return the tokenizer of a model: the named one, or the one in its folder.

    Without either, a model with as many ids as the byte-level tokenizer is taken to be byte-level; SentencePiece models
    with byte fallback have more ids.

    Raises:
        UserError: there is no tokenizer, or it has another number of ids than the model.
    """
    name = name or tokenizer_in(folder)
    if name is None and config.vocab_size in (ByteTokenizer.vocab_size, FIM_BYTE_IDS):
        name = BYTES
    if name is None:
        raise UserError(
            f"{folder} has no {TOKENIZER}; give the tokenizer that the model was trained with as --tokenizer_path "
            "('bytes' for a byte-level model)"
        )
    tokenizer = load_tokenizer(name, vocab_size=config.vocab_size)
    if not fits_vocabulary(tokenizer, config.vocab_size):
        raise UserError(
            f"the tokenizer {name} has {tokenizer.vocab_size} ids, but the model has vocab_size {config.vocab_size}; "
            "give the tokenizer that it was trained with as --tokenizer_path ('bytes' for a byte-level model)"
        )
    if tokenizer.vocab_size != config.vocab_size:
        warn(f"the model has {config.vocab_size} ids, and {name} has {tokenizer.vocab_size}; the others are padding")
    return tokenizer


def encode_prompts(texts: Sequence[str], tokenizer: Tokenizer, *, first_token: str | None) -> list[Prompt]:
    """Return the texts as prompts.

    Args:
        texts: the texts to continue.
        tokenizer: the model's tokenizer.
        first_token: the token before each text: "bos", "eos" or "none"; None is EOS for bytes, otherwise BOS.

    Raises:
        UserError: the tokenizer lacks this token, or a prompt has no tokens or is not text.
    """
    first_token = first_token or ("eos" if tokenizer.kind == BYTES else "bos")
    lead = {"bos": [tokenizer.bos_id], "eos": [tokenizer.eos_id], "none": []}[first_token]
    if lead == [-1]:
        raise UserError(f"--first_token {first_token}: the tokenizer has no such token; use eos or none")
    prompts, problems = [], []
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:  # from the command line bytes that are not UTF-8, from JSON half a surrogate pair
            problems.append(f"prompt {text[:40]!r} is not text (UTF-8)")
            continue
        prompts.append(Prompt(text=text, ids=lead + tokenizer.encode(text)))
        if not prompts[-1].ids:
            problems.append("a prompt is empty, and with --first_token none it has no token at all")
    raise_if_any(problems, heading="bad prompts")
    return prompts


def check_lengths(prompts: Sequence[Prompt], *, max_seq_len: int) -> None:
    """Check that every prompt leaves room for at least one more token.

    Raises:
        UserError: lists the prompts that do not, with the --max_seq_len that they need.
    """
    problems = [
        f"prompt {prompt.text[:40]!r} has {counted(len(prompt.ids), 'token')}, which leaves no room in --max_seq_len "
        f"{max_seq_len}; raise it above {len(prompt.ids)}"
        for prompt in prompts
        if len(prompt.ids) >= max_seq_len
    ]
    raise_if_any(problems, heading="bad prompts")
