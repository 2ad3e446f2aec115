"""Continue prompts with a model; self-speculative decoding yields several tokens per forward.

The model is an export in Meta's or Hugging Face's format, as `pipeline.convert` writes them. Self-speculative decoding
is a faster way to the results of autoregressive decoding: the same tokens if greedy, tokens with the same distribution
if sampled. Without prompts, the command completes two small Python programs.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Sequence

from common.command_line import a_path, command_parser, raise_if_any, real_number
from common.wording import counted
from pipeline.inference.decoding.interactive import complete_lines, write
from pipeline.inference.decoding.prompts import (
    DEFAULT_PROMPTS,
    Prompt,
    check_lengths,
    encode_prompts,
    matching_tokenizer,
    read_prompts,
)
from pipeline.inference.decoding.session import CompletedBatch, Completion, Decoding, Session, choose_heads
from pipeline.inference.options import (
    add_decoding_options,
    add_first_token_option,
    add_model_options,
    decoding_problems,
)
from pipeline.weights.formats.detect import EXPORTS, format_of
from pipeline.weights.formats.stored_model import first_token_in

_WARM_UP_TOKENS = 8
_EXAMPLES = """examples:
  torchrun --nproc_per_node 1 -m pipeline.generate --ckpt_dir 7B_200B_4/ --tokenizer_path tokenizer.model \\
      --max_seq_len 128 --max_batch_size 2
  python -m pipeline.generate --ckpt_dir exports/demo --prompt 'def main():' --compare
  python -m pipeline.generate --ckpt_dir exports/demo --prompt_file - < unfinished.py
  python -m pipeline.generate --ckpt_dir exports/demo --interactive"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: an argument, the folder, the tokenizer or a prompt is wrong.
    """
    arguments = _parse(argv)
    _check(arguments)
    config = format_of(arguments.ckpt_dir, among=EXPORTS).read_config(arguments.ckpt_dir)
    arguments.first_token = arguments.first_token or first_token_in(arguments.ckpt_dir)
    decoding = Decoding(
        n_heads_used=choose_heads(arguments.n_heads_used, config, decoding=arguments.decoding),
        max_gen_len=arguments.max_gen_len,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
        stops=tuple(arguments.stop),
    )
    tokenizer = matching_tokenizer(arguments.tokenizer_path, arguments.ckpt_dir, config)

    def encode(texts: Sequence[str]) -> list[Prompt]:
        prompts = encode_prompts(texts, tokenizer, first_token=arguments.first_token)
        check_lengths(prompts, max_seq_len=arguments.max_seq_len)
        return prompts

    prompts = [] if arguments.interactive else encode(_texts(arguments))
    session = Session(
        arguments.ckpt_dir,
        tokenizer,
        device=arguments.device,
        dtype=arguments.dtype,
        max_batch_size=1 if arguments.interactive else arguments.max_batch_size,
        max_seq_len=arguments.max_seq_len,
        n_heads_used=decoding.n_heads_used,
    )
    if arguments.interactive:
        complete_lines(session, decoding, encode=lambda line: encode([line])[0])
    elif arguments.compare:
        _compare(session, prompts, decoding, as_json=arguments.json)
    elif len(prompts) == 1 and not arguments.json:
        _print_stream(session, prompts[0], decoding)
    else:
        _print_batches(session, prompts, decoding, as_json=arguments.json)


def _texts(arguments: argparse.Namespace) -> list[str]:
    """Return the prompts of the command line, then those of the file; without both, the default prompts."""
    texts = list(arguments.prompt)
    if arguments.prompt_file is not None:
        texts += read_prompts(arguments.prompt_file)
    if not texts:
        print("no --prompt, --prompt_file or --interactive: completing two small programs", file=sys.stderr)
    return texts or list(DEFAULT_PROMPTS)


def _print_stream(session: Session, prompt: Prompt, decoding: Decoding) -> None:
    """Print the same text as `_readable`, piece by piece as it is decoded."""
    write(f"{prompt.text}\n> ")
    completion = session.stream(prompt, decoding, on_text=write)
    print(_after(completion))


def _print_batches(
    session: Session, prompts: Sequence[Prompt], decoding: Decoding, *, as_json: bool
) -> list[CompletedBatch]:
    """Print the completions of each batch when it is finished; return all batches."""
    batches = []
    for batch in session.batches(prompts, decoding):
        for completion in batch.completions:
            write(f"{json.dumps(dataclasses.asdict(completion)) if as_json else _readable(completion)}\n")
        batches.append(batch)
    return batches


def _readable(completion: Completion) -> str:
    return f"{completion.prompt}\n> {completion.completion}{_after(completion)}"


def _after(completion: Completion) -> str:
    return f"\n{completion.figures}\n{'=' * 50}"


def _compare(session: Session, prompts: Sequence[Prompt], decoding: Decoding, *, as_json: bool) -> None:
    """Print completions, and the speed-up over autoregressive decoding."""
    autoregressive = dataclasses.replace(decoding, n_heads_used=1)
    for each in (decoding, autoregressive):  # warm up both, so that neither includes the cost of first calls
        some = dataclasses.replace(each, max_gen_len=_WARM_UP_TOKENS)
        next(session.batches(prompts, some))
    fast = _print_batches(session, prompts, decoding, as_json=as_json)
    baseline = list(session.batches(prompts, autoregressive))
    print(_comparison(fast, baseline, is_greedy=decoding.temperature == 0), file=sys.stderr if as_json else sys.stdout)


def _comparison(fast: Sequence[CompletedBatch], baseline: Sequence[CompletedBatch], *, is_greedy: bool) -> str:
    """Return lines with the speed-up over autoregressive decoding and, if greedy, whether the tokens are the same."""
    token_ids = [
        [completion.token_ids for batch in way for completion in batch.completions] for way in (fast, baseline)
    ]
    rates = [
        sum(map(len, ids)) / sum(batch.seconds for batch in way)
        for ids, way in zip(token_ids, (fast, baseline), strict=True)
    ]
    lines = [
        f"self-speculative {rates[0]:.1f} tokens/s, autoregressive {rates[1]:.1f}: {rates[0] / rates[1]:.2f} times"
    ]
    if is_greedy:
        same = sum(ours == theirs for ours, theirs in zip(*token_ids, strict=True))
        lines.append(f"same token for token: {same} of {counted(len(token_ids[0]), 'completion')}")
        if same < len(token_ids[0]):
            lines[-1] += " (low precision rounds near-ties differently in longer blocks; try --dtype fp32)"
    return "\n".join(lines)


def _check(arguments: argparse.Namespace) -> None:
    """Check what can be checked from the arguments alone.

    Raises:
        UserError: lists every problem.
    """
    problems = decoding_problems(arguments)
    if "" in arguments.stop:
        problems.append("--stop '' would end every completion before it begins; give a text, or leave it out")
    if arguments.compare and arguments.decoding == "autoregressive":
        problems.append("--compare compares self_speculative decoding with autoregressive; leave out --decoding")
    if arguments.interactive:
        taken = [name for name in ("prompt", "prompt_file", "json", "compare") if getattr(arguments, name)]
        problems += [f"--interactive reads prompts and prints text; leave out --{name}" for name in taken]
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's processes do not get the terminal and its Ctrl-C
            problems.append("--interactive needs the terminal; start python -m pipeline.generate without torchrun")
    raise_if_any(problems, heading="bad arguments")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("pipeline.generate", description=__doc__, epilog=_EXAMPLES)
    add_model_options(parser.add_argument_group("model").add_argument)
    add = parser.add_argument_group("prompts").add_argument
    add("--prompt", action="append", default=[], metavar="TEXT", help="a text to continue; may be repeated")
    file_help = (
        'a file with one prompt per line, or, if named .jsonl, one object with a "prompt" per line; - reads standard '
        "input, the whole of it as one prompt"
    )
    add("--prompt_file", type=a_path, metavar="FILE", help=file_help)
    add("--interactive", action="store_true", help="ask for prompts one after the other; each is continued on its own")
    add_first_token_option(add)
    add = parser.add_argument_group("decoding").add_argument
    temperature_help = "sampling temperature; 0 is greedy (default: %(default)s)"
    add("--temperature", type=real_number(at_least=0, at_most=1000), default=0.0, metavar="T", help=temperature_help)
    stop_help = "a text that ends a completion, and is not part of it; may be repeated"
    add("--stop", action="append", default=[], metavar="TEXT", help=stop_help)
    add_decoding_options(add, max_seq_len=256, max_batch_size=4, max_gen_len=None, top_p=0.9)
    add = parser.add_argument_group("output").add_argument
    names = ", ".join(field.name for field in dataclasses.fields(Completion))
    add("--json", action="store_true", help=f"print one JSON object per prompt: {names}")
    add("--compare", action="store_true", help="also decode autoregressively, and print the speed-up")
    return parser.parse_args(argv)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly if, for example, `head` closes the pipe
    exit_on_user_error(main, program="pipeline.generate")
