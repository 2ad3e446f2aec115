"""Continue prompts with a converted model, several tokens per forward where its heads agree with themselves.

The folder is in the format of Meta's release (`consolidated.pth`, `params.json`), as `pipeline.convert --to meta`
writes it. Self-speculative decoding gives what autoregressive decoding gives, sooner: the same tokens if greedy,
tokens of the same distribution if sampled. Without --prompt it completes two small Python programs.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from common.command_line import UserError, exit_on_user_error, raise_if_any
from common.tokenizers import BYTES, Tokenizer, load_tokenizer
from pipeline.config import ModelConfig
from pipeline.convert import DTYPES, load_meta_model, read_meta_params, torch_dtype

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong arguments do without
    from pipeline.decode import Generation

DEFAULT_PROMPTS = (  # short enough for the quickstart's --max_seq_len 128 in bytes, too
    '''def fizz_buzz(n: int) -> str:
    """Return Fizz, Buzz, FizzBuzz or the number."""
''',
    """import argparse

parser = argparse.ArgumentParser(description="Count words.")
""",
)
_WARM_UP_TOKENS = 8
_EXAMPLES = """examples:
  torchrun --nproc_per_node 1 -m pipeline.generate --ckpt_dir 7B_200B_4 --tokenizer_path tokenizer.model \\
      --max_seq_len 128 --max_batch_size 2
  python -m pipeline.generate --ckpt_dir exports/demo --tokenizer_path exports/demo/tokenizer.model --first_token eos \\
      --prompt 'def main():' --compare"""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What became of one prompt; the fields of `--json`, in order."""

    prompt: str
    completion: str
    token_ids: list[int]
    decoding: str
    tokens_per_forward: float
    tokens_per_s: float


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the arguments, the folder, the tokenizer or the prompts do not allow it; says which and why.
    """
    arguments = _parse(argv)
    _check(arguments)
    config = read_meta_params(arguments.ckpt_dir)
    n_heads_used = _heads_used(arguments, config)
    tokenizer = _matching_tokenizer(arguments.tokenizer_path, config)
    prompts = _prompts(arguments)
    prompt_ids = _encoded(prompts, tokenizer, arguments)

    session = _Session(arguments, n_heads=n_heads_used, eos_id=tokenizer.eos_id)
    if arguments.compare:
        session.warm_up(prompt_ids)
    remaining = iter(zip(prompts, prompt_ids, strict=True))
    generations = []
    for generation in session.generations(prompt_ids, n_heads_used=n_heads_used):
        generations.append(generation)
        figures = zip(generation.token_ids, generation.tokens_per_forward, generation.tokens_per_s, strict=True)
        for (token_ids, tokens_per_forward, tokens_per_s), (prompt, ids) in zip(figures, remaining, strict=False):
            completion = Completion(
                prompt=prompt,
                completion=_text_after(ids, token_ids, tokenizer),
                token_ids=token_ids,
                decoding=arguments.decoding,
                tokens_per_forward=round(tokens_per_forward, 4),
                tokens_per_s=round(tokens_per_s, 2),
            )
            print(json.dumps(asdict(completion)) if arguments.json else _readable(completion), flush=True)
    if arguments.compare:
        baseline = list(session.generations(prompt_ids, n_heads_used=1))
        verdict = _comparison(generations, baseline, is_greedy=arguments.temperature == 0)
        print(verdict, file=sys.stderr if arguments.json else sys.stdout)


class _Session:
    """A loaded model with its caches, and the settings that all batches share."""

    def __init__(self, arguments: argparse.Namespace, *, n_heads: int, eos_id: int) -> None:
        import torch

        from pipeline.decode import Decoder

        device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {device} cannot be used ({str(error).splitlines()[0]})") from error
        dtype = torch_dtype(arguments.dtype or ("bf16" if device.startswith("cuda") else "fp32"))
        print(f"loading {arguments.ckpt_dir} ({dtype} on {device})", file=sys.stderr, flush=True)
        model = load_meta_model(arguments.ckpt_dir, device=device, dtype=dtype)
        self._arguments, self._n_heads, self._eos_id = arguments, n_heads, eos_id
        self._decoder = Decoder(
            model,
            max_batch_size=arguments.max_batch_size,
            max_seq_len=arguments.max_seq_len,
            n_heads_used=n_heads,
        )
        self._device = device

    def generations(
        self, prompt_ids: Sequence[list[int]], *, n_heads_used: int, max_gen_len: int | None = None
    ) -> "Iterator[Generation]":
        """Yield one generation per batch of at most max_batch_size prompts, with a progress bar of tokens."""
        import torch
        from tqdm import tqdm

        from pipeline.decode import decode
        from pipeline.sampling import Sampling

        arguments = self._arguments
        generator = torch.Generator(self._device).manual_seed(arguments.seed)
        sampling = Sampling(temperature=arguments.temperature, top_p=arguments.top_p, generator=generator)
        limit = max_gen_len or arguments.max_gen_len or arguments.max_seq_len
        with tqdm(desc=f"{n_heads_used} heads", unit="token", leave=False, disable=None) as bar:
            for first in range(0, len(prompt_ids), arguments.max_batch_size):
                yield decode(
                    self._decoder,
                    prompt_ids[first : first + arguments.max_batch_size],
                    n_heads_used=n_heads_used,
                    max_gen_len=limit,
                    eos_id=self._eos_id,
                    sampling=sampling,
                    on_tokens=lambda sequence, token_ids: bar.update(len(token_ids)),
                )

    def warm_up(self, prompt_ids: Sequence[list[int]]) -> None:
        """Decode a few tokens of the first batch both ways, so that neither pays for first calls."""
        batch = prompt_ids[: self._arguments.max_batch_size]
        for n_heads_used in {1, self._n_heads}:
            list(self.generations(batch, n_heads_used=n_heads_used, max_gen_len=_WARM_UP_TOKENS))


def _text_after(prompt_ids: list[int], token_ids: list[int], tokenizer: Tokenizer) -> str:
    """Return the text that the tokens add: decoded alone, SentencePiece would drop a leading space."""
    return tokenizer.decode([*prompt_ids, *token_ids])[len(tokenizer.decode(prompt_ids)) :]


def _readable(completion: Completion) -> str:
    figures = (
        f"[{len(completion.token_ids)} tokens, {completion.tokens_per_forward:.2f} tokens per forward, "
        f"{completion.tokens_per_s:.1f} tokens/s]"
    )
    return f"{completion.prompt}\n> {completion.completion}\n{figures}\n{'=' * 50}"


def _comparison(fast: "Sequence[Generation]", baseline: "Sequence[Generation]", *, is_greedy: bool) -> str:
    """Return the speed-up over autoregressive decoding, and, if greedy, whether the tokens are the same."""
    rates = []
    for generations in (fast, baseline):
        tokens = sum(len(token_ids) for generation in generations for token_ids in generation.token_ids)
        rates.append(tokens / sum(generation.seconds for generation in generations))
    lines = [
        f"self-speculative {rates[0]:.1f} tokens/s, autoregressive {rates[1]:.1f}: {rates[0] / rates[1]:.2f} times"
    ]
    if is_greedy:
        pairs = [
            (ours, theirs)
            for one, other in zip(fast, baseline, strict=True)
            for ours, theirs in zip(one.token_ids, other.token_ids, strict=True)
        ]
        same = sum(ours == theirs for ours, theirs in pairs)
        lines.append(f"same token for token: {same} of {len(pairs)} completions")
        if same < len(pairs):
            lines[-1] += " (low precision rounds near-ties differently in longer blocks; try --dtype fp32)"
    return "\n".join(lines)


def _heads_used(arguments: argparse.Namespace, config: ModelConfig) -> int:
    """Return how many heads the arguments ask for, within what the model has."""
    if arguments.decoding == "autoregressive":
        if arguments.n_heads_used not in (None, 1):
            raise UserError(
                f"--n_heads_used {arguments.n_heads_used} needs --decoding self_speculative; autoregressive uses one"
            )
        return 1
    n_heads = config.n_future_tokens
    used = n_heads if arguments.n_heads_used is None else arguments.n_heads_used
    if not 1 <= used <= n_heads:
        raise UserError(f"--n_heads_used {used} must be 1 to {n_heads}, the heads of {arguments.ckpt_dir}")
    return used


def _matching_tokenizer(path: str, config: ModelConfig) -> Tokenizer:
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"--tokenizer_path {path} has {tokenizer.vocab_size} ids, but the model has vocab_size "
            f"{config.vocab_size}; give the tokenizer it was trained with ('bytes' for a byte-level model)"
        )
    return tokenizer


def _prompts(arguments: argparse.Namespace) -> list[str]:
    """Return the prompts of the command line, then those of the file; without either, the defaults."""
    prompts = list(arguments.prompt)
    if arguments.prompt_file is not None:
        prompts += _file_prompts(arguments.prompt_file)
    return prompts or list(DEFAULT_PROMPTS)


def _file_prompts(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        prompts = [json.loads(line)["prompt"] for line in lines] if path.suffix == ".jsonl" else lines
    except OSError as error:
        raise UserError(f"--prompt_file {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt_file {path} is not UTF-8 text ({error.reason})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'--prompt_file {path} must hold a JSON object with a "prompt" on every line') from error
    if not prompts:
        raise UserError(f"--prompt_file {path} is empty; it holds one prompt per line")
    return prompts


def _encoded(prompts: Sequence[str], tokenizer: Tokenizer, arguments: argparse.Namespace) -> list[list[int]]:
    """Return the ids of the prompts, led by the token that begins a document.

    Raises:
        UserError: a prompt has no tokens, or leaves no room for one more.
    """
    first_token = arguments.first_token or ("eos" if arguments.tokenizer_path == BYTES else "bos")
    lead = {"bos": [tokenizer.bos_id], "eos": [tokenizer.eos_id], "none": []}[first_token]
    if lead == [-1]:
        raise UserError(f"--first_token {first_token}: the tokenizer has none; take eos or none")
    encoded = [lead + tokenizer.encode(prompt) for prompt in prompts]
    problems = []
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids:
            problems.append("a prompt is empty, and with --first_token none there is nothing to begin with")
        if len(ids) >= arguments.max_seq_len:
            problems.append(
                f"prompt {prompt[:40]!r} has {len(ids)} tokens, which leaves no room in "
                f"--max_seq_len {arguments.max_seq_len}"
            )
    raise_if_any(problems, heading="bad prompts")
    return encoded


def _check(arguments: argparse.Namespace) -> None:
    """Raise what is wrong with the arguments alone, all at once."""
    problems = [
        f"--{name} must be at least 1, not {value}"
        for name in ("max_seq_len", "max_batch_size", "max_gen_len", "n_heads_used")
        if (value := getattr(arguments, name)) is not None and value < 1
    ]
    if not 0 <= arguments.temperature < math.inf:
        problems.append(f"--temperature must be 0 (greedy) or a positive number, not {arguments.temperature}")
    if not 0 < arguments.top_p <= 1:
        problems.append(f"--top_p must be above 0 and at most 1, not {arguments.top_p}")
    if arguments.compare and arguments.decoding == "autoregressive":
        problems.append("--compare compares self_speculative decoding with autoregressive; drop --decoding")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        problems.append(f"one process generates, not {os.environ['WORLD_SIZE']}; take torchrun --nproc_per_node 1")
    raise_if_any(problems, heading="bad arguments")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.generate",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("model").add_argument
    add("--ckpt_dir", required=True, type=Path, metavar="DIR", help="folder with consolidated.pth and params.json")
    add("--tokenizer_path", required=True, metavar="FILE", help="a SentencePiece model, or the word 'bytes'")
    add("--device", help="for instance cpu or cuda:1 (default: cuda if there is one)")
    add("--dtype", choices=list(DTYPES), help="precision of weights and caches (default: bf16 on cuda, else fp32)")
    add = parser.add_argument_group("prompts").add_argument
    add("--prompt", action="append", default=[], metavar="TEXT", help="a text to continue; may be repeated")
    file_help = 'one prompt per line, or, named .jsonl, one object with a "prompt" per line'
    add("--prompt_file", type=Path, metavar="FILE", help=file_help)
    first_help = (
        "what precedes a prompt: bos as in Meta's models, eos as in those trained on data_prep's shards, where "
        "it joins documents (default: bos; eos for bytes)"
    )
    add("--first_token", choices=["bos", "eos", "none"], help=first_help)
    add = parser.add_argument_group("decoding").add_argument
    length_help = "most tokens of a prompt and its completion (default: %(default)s)"
    add("--max_seq_len", type=int, default=256, metavar="N", help=length_help)
    batch_help = "prompts decoded at once; more make several batches (default: %(default)s)"
    add("--max_batch_size", type=int, default=4, metavar="N", help=batch_help)
    add("--max_gen_len", type=int, metavar="N", help="most tokens to generate (default: as max_seq_len allows)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: %(default)s)")
    top_p_help = "sample from the most probable tokens that hold this probability (default: %(default)s)"
    add("--top_p", type=float, default=0.9, metavar="P", help=top_p_help)
    add("--seed", type=int, default=1, metavar="N", help="of the sampling (default: %(default)s)")
    decodings = ["autoregressive", "self_speculative"]
    add("--decoding", choices=decodings, default="self_speculative", help="how (default: %(default)s)")
    add("--n_heads_used", type=int, metavar="K", help="heads that speculate, next-token head included (default: all)")
    add = parser.add_argument_group("output").add_argument
    add(
        "--json",
        action="store_true",
        help="print one JSON object per prompt: " + ", ".join(field.name for field in fields(Completion)),
    )
    add("--compare", action="store_true", help="decode autoregressively, too, and print the speed-up")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="pipeline.generate")
