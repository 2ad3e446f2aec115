"""Speed of greedy decoding: with 1 to n heads, with early layers (LayerSkip), and by transformers' generate.

    python -m benchmarks.decode --ckpt_dir DIR --prompt_file FILE | --size 0.3B [--batch_sizes 1 8] [--json FILE]

Every way continues the same prompts by the same number of tokens. The ways take turns, so that their ratios within a
round do not depend on the machine's load; the table has medians and quartiles of these ratios. "Of tokens/forward" is
the speed-up over autoregressive decoding divided by the tokens per forward: 1 if a forward over a block costs no more
than a forward over one token.

The drafts of a model with random weights (--size) are never right. --forced_acceptance accepts drafts at given rates
regardless of their content. Then the times are realistic, and the text is not.

The floor of an autoregressive step is the time to read its weights and cached positions at the bandwidth of a copy.
"""

from common.endings import exit_on_user_error

import argparse
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.parts.harness import COUNT, DEFAULT, benchmark_parser, run_benchmark
from common.command_line import UserError, raise_if_any, real_number, whole_number
from common.files import written_whole
from common.shard_format import read_metadata
from pipeline.config.model import MODEL_SIZES, ModelConfig, resolve_model
from pipeline.inference.decoding.prompts import encode_prompts, matching_tokenizer, read_prompts
from pipeline.inference.decoding.session import choose_precision
from pipeline.weights.formats.detect import EXPORTS, format_of
from pipeline.weights.formats.export import DTYPES, torch_dtype
from pipeline.weights.formats.record import FIRST_TOKENS
from pipeline.weights.formats.stored_model import StoredModel, first_token_in, load_model, shapes_by_name

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong arguments do without
    import torch

    from benchmarks.parts.decode_times import Floor, Times


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every way at every batch size, print tables, draw the plot if asked, and return the figures.

    Raises:
        UserError: the arguments do not fit the model or the prompts.
    """
    config = _config(arguments)
    exit_layers = _exit_layers(arguments, config)
    prompts = _prompts(arguments, config)

    from benchmarks.parts.decode_times import measure_floor, plot, table, take_times
    from benchmarks.parts.decoders import AUTOREGRESSIVE, TRANSFORMERS, our_decodings, transformers_decoding

    device, dtype = choose_precision(arguments.device, arguments.dtype)
    model = load_model(_source(arguments, config, device=device), device=device, dtype=torch_dtype(dtype))
    max_seq_len = max(map(len, prompts)) + arguments.max_gen_len
    decodings = our_decodings(
        model,
        max_batch_size=max(arguments.batch_sizes),
        max_seq_len=max_seq_len,
        exit_layers=exit_layers,
        draft_lengths=arguments.n_drafts,
        forced_acceptance=arguments.forced_acceptance,
    )
    decodings[TRANSFORMERS] = transformers_decoding(model, max_seq_len=max_seq_len)
    times, floors = [], []
    counts = {name: getattr(arguments, name) for name in ("max_gen_len", "warm_up", "repeats")}
    for batch_size in arguments.batch_sizes:
        n_prompts = math.ceil(arguments.n_prompts / batch_size) * batch_size
        enough = list(itertools.islice(itertools.cycle(prompts), n_prompts))
        rows = take_times(decodings, enough, batch_size=batch_size, **counts)
        floors.append(measure_floor(model, decodings[AUTOREGRESSIVE], enough[:batch_size], **counts))
        print(f"{table(rows)}\n\n{floors[-1]}\n", flush=True)
        times += rows
    if arguments.plot is not None:
        with written_whole(arguments.plot) as partial:
            plot(times, partial, title=f"{arguments.ckpt_dir or arguments.size}, {dtype} on {device}")
    return _record(times, floors, arguments, device=device, dtype=dtype)


def _config(arguments: argparse.Namespace) -> ModelConfig:
    """Return the model's architecture.

    Raises:
        UserError: the folder holds no model, or a model that transformers' Llama cannot represent.
    """
    if arguments.size is not None:
        return resolve_model(ModelConfig(size=arguments.size))
    config = format_of(arguments.ckpt_dir, among=EXPORTS).read_config(arguments.ckpt_dir)
    if config.head_type != "transformer":
        raise UserError(
            f"--ckpt_dir {arguments.ckpt_dir} has {config.head_type} heads, which transformers' Llama does not support"
        )
    return config


def _exit_layers(arguments: argparse.Namespace, config: ModelConfig) -> list[int]:
    """Return the trunk layers after which LayerSkip exits: those of the options, or a quarter and half of the trunk.

    Raises:
        UserError: the trunk has too few layers.
    """
    n_layers = config.n_trunk_layers
    exits = arguments.exit_layers or sorted({max(1, n_layers // 4), max(1, n_layers // 2)})
    problems = [
        f"{layer} must be 1 to {n_layers - 1}, less than the trunk's layers" for layer in exits if layer >= n_layers
    ]
    raise_if_any(problems, heading="--exit_layers")
    return exits


def _source(arguments: argparse.Namespace, config: ModelConfig, *, device: str) -> StoredModel:
    """Return the weights in the folder, or random weights."""
    if arguments.ckpt_dir is not None:
        return format_of(arguments.ckpt_dir, among=EXPORTS).open(arguments.ckpt_dir)
    import torch

    shapes, generator = shapes_by_name(config), torch.Generator(device).manual_seed(1)

    def read(name: str) -> "torch.Tensor":
        shape = shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        return torch.randn(shape, device=device, generator=generator) / math.sqrt(shape[-1])

    return StoredModel(path=Path(arguments.size), config=config, read=read)


def _prompts(arguments: argparse.Namespace, config: ModelConfig) -> list[list[int]]:
    """Return the token ids of the prompts: from a file, from random windows of shards, or random ids.

    Raises:
        UserError: there are no prompts, or the tokenizer is not the model's.
    """
    if arguments.prompt_file is not None:
        tokenizer = matching_tokenizer(arguments.tokenizer_path, arguments.ckpt_dir, config)
        first_token = arguments.first_token or first_token_in(arguments.ckpt_dir)
        texts = read_prompts(arguments.prompt_file)[: arguments.n_prompts]
        return [prompt.ids for prompt in encode_prompts(texts, tokenizer, first_token=first_token)]
    n_prompts = max(arguments.n_prompts, *arguments.batch_sizes)
    if arguments.shards is not None:
        return _windows(arguments, config, n_prompts=n_prompts)
    chooser = random.Random(1)
    return [[chooser.randrange(config.vocab_size) for _ in range(arguments.prompt_len)] for _ in range(n_prompts)]


def _windows(arguments: argparse.Namespace, config: ModelConfig, *, n_prompts: int) -> list[list[int]]:
    metadata, split = read_metadata(arguments.shards), arguments.split
    if split not in metadata["splits"]:
        raise UserError(f"--split {split} is not in {arguments.shards}; it has {', '.join(metadata['splits'])}")
    n_windows, length = metadata["splits"][split]["windows"], metadata["seq_len"] + metadata["lookahead"]
    problems = []
    if metadata["vocab_size"] != config.vocab_size:
        problems.append(f"they have {metadata['vocab_size']} ids, but the model has vocab_size {config.vocab_size}")
    if n_windows < n_prompts:
        problems.append(f"{split} has {n_windows} windows, and {n_prompts} prompts are needed")
    if length < arguments.prompt_len:
        problems.append(f"a window has {length} tokens, fewer than --prompt_len {arguments.prompt_len}")
    raise_if_any(problems, heading=f"--shards {arguments.shards}")
    from common.mds import streaming

    dataset = streaming.StreamingDataset(local=str(arguments.shards / split), batch_size=1)
    chosen = random.Random(1).sample(range(n_windows), n_prompts)
    return [dataset[index]["tokens"][: arguments.prompt_len].tolist() for index in chosen]


def _record(
    times: "Sequence[Times]", floors: "Sequence[Floor]", arguments: argparse.Namespace, *, device: str, dtype: str
) -> dict[str, Any]:
    import torch
    import transformers

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "device": {"name": name, "threads": torch.get_num_threads(), "dtype": dtype},
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()},
        "times": [{**asdict(way), "efficiency": way.efficiency} for way in times],
        "floors": [asdict(floor) for floor in floors],
    }


def _problems(arguments: argparse.Namespace) -> list[str]:
    """Return the problems with the arguments alone, one line each."""
    problems = []
    if arguments.ckpt_dir is not None and arguments.prompt_file is None and arguments.shards is None:
        problems.append("--ckpt_dir needs prompts: give --prompt_file or --shards")
    if arguments.size is not None and (arguments.prompt_file is not None or arguments.shards is not None):
        problems.append(
            "--size is a model of random weights, which continues random ids; drop --prompt_file and --shards"
        )
    return problems


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("benchmarks.decode", description=__doc__, warm_up=2, repeats=10, plot=True)
    group = parser.add_argument_group("model")
    one = group.add_mutually_exclusive_group(required=True)
    one.add_argument("--ckpt_dir", type=Path, metavar="DIR", help="an export in Meta's or Hugging Face's format")
    one.add_argument("--size", choices=list(MODEL_SIZES), help="a model of this size with random weights")
    group.add_argument("--device", help="for instance cpu or cuda:1 (default: cuda if there is one)")
    dtype_help = "dtype of weights and caches (default: bf16 on cuda, else fp32)"
    group.add_argument("--dtype", choices=list(DTYPES), help=dtype_help)
    group = parser.add_argument_group("prompts")
    one = group.add_mutually_exclusive_group()
    file_help = 'one prompt per line, or, if named .jsonl, one object with a "prompt" per line'
    one.add_argument("--prompt_file", type=Path, metavar="FILE", help=file_help)
    one.add_argument("--shards", type=Path, metavar="DIR", help="shards of data_prep; prompts are random windows")
    add = group.add_argument
    add("--split", default="val", help=f"split of the shards {DEFAULT}")
    length_help = f"tokens of a prompt from shards or of random ids {DEFAULT}"
    add("--prompt_len", type=COUNT, default=32, metavar="N", help=length_help)
    add("--n_prompts", type=COUNT, default=8, metavar="N", help=f"prompts, repeated to fill batches {DEFAULT}")
    tokenizer_help = "tokenizer of --prompt_file, a file or the word 'bytes' (default: the model's own)"
    add("--tokenizer_path", metavar="FILE", help=tokenizer_help)
    add("--first_token", choices=FIRST_TOKENS, help="first token of --prompt_file's prompts, as in pipeline.generate")
    add = parser.add_argument_group("decoding").add_argument
    length = whole_number(at_least=2, at_most=1_000_000)
    add("--max_gen_len", type=length, default=128, metavar="N", help=f"tokens to generate {DEFAULT}")
    add("--batch_sizes", type=COUNT, nargs="+", default=[1], metavar="B", help="sequences per batch (default: 1)")
    exit_help = "trunk layers after which LayerSkip drafts (default: a quarter and half of the trunk)"
    add("--exit_layers", type=COUNT, nargs="+", metavar="E", help=exit_help)
    add("--n_drafts", type=COUNT, nargs="+", default=[2, 4], metavar="D", help="LayerSkip's drafts (default: 2 4)")
    forced_help = "accept draft 1, 2, ... at these rates, whatever they are; the last rate holds for all further drafts"
    rate = real_number(at_least=0, at_most=1)
    add("--forced_acceptance", type=rate, nargs="+", metavar="P", help=forced_help)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    run_benchmark(_parser(), measure, argv, check=_problems)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.decode")
