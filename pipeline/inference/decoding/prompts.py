"""What a model is given: prompts of the command line, a file or standard input, as tokens of its tokenizer."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command_line import UserError, raise_if_any
from common.tokenizers import BYTES, FIM_BYTE_IDS, ByteTokenizer, Tokenizer, load_tokenizer
from pipeline.config.model import ModelConfig
from pipeline.weights.formats.stored_model import TOKENIZER, tokenizer_in

STANDARD_INPUT = Path("-")
FIRST_TOKENS = ("bos", "eos", "none")
DEFAULT_PROMPTS = (  # short enough for the quickstart's --max_seq_len 128 in bytes, too
    '''def fizz_buzz(n: int) -> str:
    """Return Fizz, Buzz, FizzBuzz or the number."""
''',
    """import argparse

parser = argparse.ArgumentParser(description="Count words.")
""",
)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text to continue; `ids` begin with the token that begins a document."""

    text: str
    ids: list[int]


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file: one per line, or, named .jsonl, one object with a "prompt" per line.

    All of standard input (`-`) is one prompt, as for other tools: what is piped is a text, often an unfinished program.
    Its last line end is dropped, which `echo` adds.

    Raises:
        UserError: there is no such file, it is no UTF-8 text, no such objects, or empty.
    """
    name = "standard input" if path == STANDARD_INPUT else f"--prompt_file {path}"
    try:
        contents = sys.stdin.buffer.read() if path == STANDARD_INPUT else path.read_bytes()
        text = contents.decode("utf-8")
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text ({error.reason})") from error
    if not text.strip():
        raise UserError(f"{name} is empty; it holds what to continue")
    if path == STANDARD_INPUT:
        return [text.removesuffix("\n")]
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    return [_prompt_in(line, name) for line in lines] if path.suffix == ".jsonl" else lines


def _prompt_in(line: str, name: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise UserError(f'{name} must hold a JSON object with a "prompt", a text, on every line, not {line[:60]!r}')
    return prompt


def matching_tokenizer(name: str | None, folder: Path, config: ModelConfig) -> Tokenizer:
    """Return the tokenizer of a model: the named one, or else the one that its folder holds.

    A folder without one is taken to be of a byte-level model where the model has as many ids as that: SentencePiece
    models that fall back to bytes have more.

    Raises:
        UserError: there is none, or it has other ids than the model.
    """
    name = name or tokenizer_in(folder)
    if name is None and config.vocab_size in (ByteTokenizer.vocab_size, FIM_BYTE_IDS):
        name = BYTES
    if name is None:
        raise UserError(
            f"{folder} has no {TOKENIZER}; give the one that the model was trained with as --tokenizer_path ('bytes' "
            "for a byte-level model)"
        )
    tokenizer = load_tokenizer(name, vocab_size=config.vocab_size)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"the tokenizer {name} has {tokenizer.vocab_size} ids, but the model has vocab_size {config.vocab_size}; "
            "give the one that it was trained with as --tokenizer_path ('bytes' for a byte-level model)"
        )
    return tokenizer


def encode_prompts(texts: Sequence[str], tokenizer: Tokenizer, *, first_token: str | None) -> list[Prompt]:
    """Return prompts as tokens, led by BOS, EOS or nothing (default: BOS, and EOS for bytes).

    Raises:
        UserError: the tokenizer has no such token, or a prompt has no tokens or is no text.
    """
    first_token = first_token or ("eos" if tokenizer.kind == BYTES else "bos")
    lead = {"bos": [tokenizer.bos_id], "eos": [tokenizer.eos_id], "none": []}[first_token]
    if lead == [-1]:
        raise UserError(f"--first_token {first_token}: the tokenizer has none; take eos or none")
    prompts, problems = [], []
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:  # a command line's bytes that are no UTF-8, or half a \u escape of JSON
            problems.append(f"prompt {text[:40]!r} is not text (UTF-8)")
            continue
        prompts.append(Prompt(text=text, ids=lead + tokenizer.encode(text)))
        if not prompts[-1].ids:
            problems.append("a prompt is empty, and with --first_token none there is nothing to begin with")
    raise_if_any(problems, heading="bad prompts")
    return prompts


def check_lengths(prompts: Sequence[Prompt], *, max_seq_len: int) -> None:
    """Raise which prompts leave no room for one more token.

    Raises:
        UserError: names them, with the --max_seq_len that they need.
    """
    problems = [
        f"prompt {prompt.text[:40]!r} has {len(prompt.ids)} tokens, which leaves no room in --max_seq_len "
        f"{max_seq_len}; raise it above {len(prompt.ids)}"
        for prompt in prompts
        if len(prompt.ids) >= max_seq_len
    ]
    raise_if_any(problems, heading="bad prompts")
