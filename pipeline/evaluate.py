"""pass@k of a converted model on HumanEval or MBPP: samples of every problem, executed in a sandbox.

What is drawn and what came of it is kept in the output folder as it comes: the same command continues where a killed
one stopped, and what a finished one keeps serves any --k up to --n_samples. Generated programs run without network, in
a file system that they cannot change, with limits on time, memory and processes; where Linux does not allow this,
nothing runs unless --allow_weak_sandbox.
"""

import argparse
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.command_line import UserError, below_one, command_parser, exit_on_user_error, raise_if_any
from common.files import sha256_of_file, write_json
from common.tokenizers import Tokenizer
from pipeline.inference.decoding.prompts import FIRST_TOKENS, Prompt, encode_prompts, matching_tokenizer
from pipeline.inference.decoding.session import DECODINGS, Decoding, Session, choose_heads, choose_precision
from pipeline.inference.evaluation.pass_at_k import best, scores, table
from pipeline.inference.evaluation.problems import FORMATS, Problem, load_problems
from pipeline.inference.evaluation.sample_log import SampleId, SampleLog, open_folder
from pipeline.inference.evaluation.sandbox import Isolation, Limits, Verdict, find_isolation, run_program
from pipeline.weights.formats.detect import EXPORTS, format_of
from pipeline.weights.formats.export import DTYPES

_EXAMPLES = """example, the paper's measure:
  python -m pipeline.evaluate --ckpt_dir exports/7B_200B --first_token eos --problems HumanEval.jsonl.gz \\
      --output evaluations/7B_200B --max_batch_size 200"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the arguments, the folders, the problems or this machine do not allow it; says which and why.
    """
    arguments = _parse(argv)
    _check(arguments)
    problems = load_problems(arguments.problems, problem_format=arguments.format)
    config = format_of(arguments.ckpt_dir, among=EXPORTS).read_config(arguments.ckpt_dir)
    decoding = Decoding(
        n_heads_used=choose_heads(arguments.n_heads_used, config, decoding=arguments.decoding),
        max_gen_len=arguments.max_gen_len,
        top_p=arguments.top_p,
        seed=arguments.seed,
        stops=problems[0].stops,  # all are of one format
    )
    tokenizer = matching_tokenizer(arguments.tokenizer_path, arguments.ckpt_dir, config)
    prompts = _prompts(problems, tokenizer, arguments)
    isolation = find_isolation(allow_weak=arguments.allow_weak_sandbox)
    print(f"isolation of generated programs: {isolation.value}", file=sys.stderr, flush=True)
    arguments.device, arguments.dtype = choose_precision(arguments.device, arguments.dtype)
    open_folder(arguments.output, _settings(arguments, tokenizer, decoding, isolation))

    samples_path, results_path = (arguments.output / name for name in ("samples.jsonl", "results.jsonl"))
    with SampleLog(samples_path) as samples, SampleLog(results_path) as results:
        _draw(samples, prompts, tokenizer, decoding, arguments)
        _execute(samples, results, problems, isolation=isolation, arguments=arguments)
        report = _report(samples, results, list(prompts), arguments)
    write_json(arguments.output / "results.json", {"isolation": isolation.value, **report})
    print(f"{len(problems)} problems, {arguments.n_samples} samples each, pass@k in %\n{table(report['pass_at_k'])}")


def _draw(
    samples: SampleLog,
    prompts: dict[str, Prompt],
    tokenizer: Tokenizer,
    decoding: Decoding,
    arguments: argparse.Namespace,
) -> None:
    """Draw the samples that are missing; without any, the model is not loaded."""
    from pipeline.inference.evaluation.completions import deal_batches, draw_missing

    dealt = deal_batches(
        list(prompts), arguments.temperatures, n_samples=arguments.n_samples, batch_size=arguments.max_batch_size
    )
    batches = list(dealt)
    if all(sample in samples.entries for batch in batches for sample in batch):
        return
    session = Session(
        arguments.ckpt_dir,
        tokenizer,
        device=arguments.device,
        dtype=arguments.dtype,
        max_batch_size=arguments.max_batch_size,
        max_seq_len=arguments.max_seq_len,
        n_heads_used=decoding.n_heads_used,
    )
    draw_missing(session, tokenizer, decoding, samples=samples, batches=batches, prompts=prompts)


def _execute(
    samples: SampleLog,
    results: SampleLog,
    problems: Sequence[Problem],
    *,
    isolation: Isolation,
    arguments: argparse.Namespace,
) -> None:
    """Execute the samples whose results are missing."""
    from tqdm import tqdm

    by_task = {problem.task_id: problem for problem in problems}
    limits = Limits(timeout_s=arguments.timeout_s)

    def executed(sample: SampleId) -> Verdict:
        problem = by_task[sample.task_id]
        program = problem.head + samples.entries[sample]["completion"]
        return run_program(program, problem.checks, isolation=isolation, limits=limits)

    missing = [sample for sample in samples.entries if sample not in results.entries]
    bar = tqdm(desc="executing", unit="program", total=len(samples.entries), initial=len(results.entries), disable=None)
    with bar, ThreadPoolExecutor(arguments.num_workers) as pool:
        futures = {pool.submit(executed, sample): sample for sample in missing}
        try:
            for future in as_completed(futures):
                verdict = future.result()
                results.add([(futures[future], {"outcome": verdict.outcome, "detail": verdict.detail})])
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _report(
    samples: SampleLog, results: SampleLog, task_ids: Sequence[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return what `results.json` holds: pass@k, by temperature and at the best one, and the counts behind it."""
    n_cut = Counter(sample.temperature for sample, fields in samples.entries.items() if fields["ended"] == "length")
    outcomes = {temperature: Counter[str]() for temperature in arguments.temperatures}
    n_passed = {temperature: dict.fromkeys(task_ids, 0) for temperature in arguments.temperatures}
    for sample, fields in results.entries.items():
        outcomes[sample.temperature][fields["outcome"]] += 1
        n_passed[sample.temperature][sample.task_id] += fields["outcome"] == "passed"
    counts = {temperature: list(by_task.values()) for temperature, by_task in n_passed.items()}
    by_temperature = scores(counts, n_samples=arguments.n_samples, ks=arguments.k)
    return {
        "n_problems": len(task_ids),
        "n_samples": arguments.n_samples,
        "pass_at_k": by_temperature,
        "best": {k: asdict(choice) for k, choice in best(by_temperature).items()},
        "outcomes": {temperature: dict(sorted(counter.items())) for temperature, counter in outcomes.items()},
        "cut_by_max_gen_len": {temperature: n_cut[temperature] for temperature in arguments.temperatures},
        "n_passed": n_passed,
    }


def _prompts(problems: Sequence[Problem], tokenizer: Tokenizer, arguments: argparse.Namespace) -> dict[str, Prompt]:
    """Return the prompts as tokens, by task_id.

    Raises:
        UserError: one is no text, or does not leave room for a whole completion; names the longest.
    """
    encoded = encode_prompts([problem.prompt for problem in problems], tokenizer, first_token=arguments.first_token)
    prompts = {problem.task_id: prompt for problem, prompt in zip(problems, encoded, strict=True)}
    longest = max(prompts, key=lambda task_id: len(prompts[task_id].ids))
    n_tokens = len(prompts[longest].ids)
    if n_tokens + arguments.max_gen_len > arguments.max_seq_len:
        raise UserError(
            f"the longest prompt, {longest!r}, has {n_tokens} tokens, which with --max_gen_len "
            f"{arguments.max_gen_len} is more than --max_seq_len {arguments.max_seq_len}; raise --max_seq_len to "
            f"{n_tokens + arguments.max_gen_len}, or lower --max_gen_len"
        )
    return prompts


def _settings(
    arguments: argparse.Namespace, tokenizer: Tokenizer, decoding: Decoding, isolation: Isolation
) -> dict[str, Any]:
    """Return all that decides what is drawn and what comes of it."""
    names = ("format", "n_samples", "temperatures", "top_p", "seed", "first_token", "decoding", "max_batch_size",
             "max_seq_len", "max_gen_len", "dtype", "timeout_s")  # fmt: skip
    patterns = format_of(arguments.ckpt_dir, among=EXPORTS).files
    files = sorted({path for pattern in patterns for path in arguments.ckpt_dir.glob(pattern)})
    stats = {path.name: path.stat() for path in files}
    return {
        "ckpt_dir": str(arguments.ckpt_dir.resolve()),
        # to hash the weights would take as long as to read them; an export written anew has new times
        "files": {
            name: f"{stat.st_size} bytes of {datetime.fromtimestamp(stat.st_mtime, UTC).isoformat()}"
            for name, stat in stats.items()
        },
        "tokenizer": tokenizer.sha256 or tokenizer.kind,
        "problems": sha256_of_file(arguments.problems),
        **{name: getattr(arguments, name) for name in names},
        "n_heads_used": decoding.n_heads_used,
        "isolation": isolation.name,
    }


def _check(arguments: argparse.Namespace) -> None:
    """Raise what is wrong with the arguments alone, all at once."""
    names = ("n_samples", "max_seq_len", "max_batch_size", "max_gen_len", "n_heads_used", "num_workers")
    problems = below_one(arguments, *names) + [f"--k must be at least 1, not {k}" for k in arguments.k if k < 1]
    for k in arguments.k:
        if k > arguments.n_samples:
            problems.append(f"--k {k} cannot be estimated from --n_samples {arguments.n_samples}; draw at least {k}")
    for temperature in arguments.temperatures:
        if not 0 <= temperature < math.inf:
            problems.append(f"--temperatures must be 0 (greedy) or positive numbers, not {temperature}")
    if not 0 < arguments.top_p <= 1:
        problems.append(f"--top_p must be above 0 and at most 1, not {arguments.top_p}")
    if not 0 <= arguments.seed < 2**63:
        problems.append(f"--seed must be 0 to 2^63 - 1, not {arguments.seed}")
    if not 0 < arguments.timeout_s < math.inf:
        problems.append(f"--timeout_s must be a positive number of seconds, not {arguments.timeout_s}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        problems.append(f"one process evaluates, not {os.environ['WORLD_SIZE']}; take torchrun --nproc_per_node 1")
    raise_if_any(problems, heading="bad arguments")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("pipeline.evaluate", description=__doc__, epilog=_EXAMPLES)
    add = parser.add_argument_group("model").add_argument
    add("--ckpt_dir", required=True, type=Path, metavar="DIR", help="an export, in Meta's or Hugging Face's format")
    tokenizer_help = "a SentencePiece model, or the word 'bytes' (default: DIR's own tokenizer.model)"
    add("--tokenizer_path", metavar="FILE", help=tokenizer_help)
    add("--device", help="for instance cpu or cuda:1 (default: cuda if there is one)")
    add("--dtype", choices=list(DTYPES), help="precision of weights and caches (default: bf16 on cuda, else fp32)")
    add = parser.add_argument_group("problems").add_argument
    problems_help = "HumanEval or MBPP (whose test split is task_id 11 to 510), .jsonl or .jsonl.gz"
    add("--problems", required=True, type=Path, metavar="FILE", help=problems_help)
    add("--format", choices=FORMATS, help="of the problems (default: told by their keys)")
    first_help = "what precedes a prompt; as in pipeline.generate (default: bos; eos for bytes)"
    add("--first_token", choices=FIRST_TOKENS, help=first_help)
    add = parser.add_argument_group("samples").add_argument
    add("--n_samples", type=int, default=200, metavar="N", help="per problem and temperature (default: %(default)s)")
    temperatures_help = "0 is greedy; the best counts, for each k (default: 0.1 0.8)"
    add("--temperatures", type=float, nargs="+", default=[0.1, 0.8], metavar="T", help=temperatures_help)
    add("--k", type=int, nargs="+", default=[1, 10, 100], help="of pass@k (default: 1 10 100)")
    top_p_help = "sample from the most probable tokens that hold this probability (default: %(default)s, as Codex)"
    add("--top_p", type=float, default=0.95, metavar="P", help=top_p_help)
    add("--seed", type=int, default=1, metavar="N", help="of the sampling (default: %(default)s)")
    add("--max_batch_size", type=int, default=16, metavar="N", help="samples drawn at once (default: %(default)s)")
    length_help = "most tokens of a prompt and its completion (default: %(default)s)"
    add("--max_seq_len", type=int, default=1024, metavar="N", help=length_help)
    add("--max_gen_len", type=int, default=512, metavar="N", help="most tokens to generate (default: %(default)s)")
    add("--decoding", choices=DECODINGS, default="self_speculative", help="how (default: %(default)s)")
    add("--n_heads_used", type=int, metavar="K", help="heads that speculate, next-token head included (default: all)")
    add = parser.add_argument_group("execution").add_argument
    add("--num_workers", type=int, default=os.cpu_count(), metavar="N", help="programs at once (default: the CPUs)")
    add("--timeout_s", type=float, default=Limits.timeout_s, metavar="S", help="per program (default: %(default)s)")
    add("--allow_weak_sandbox", action="store_true", help=f"make do with {Isolation.WEAK.value}")
    add = parser.add_argument_group("output").add_argument
    output_help = "samples.jsonl, results.jsonl and results.json; an unfinished evaluation there is continued"
    add("--output", required=True, type=Path, metavar="DIR", help=output_help)
    arguments = parser.parse_args(argv)
    arguments.temperatures, arguments.k = sorted(set(arguments.temperatures)), sorted(set(arguments.k))
    return arguments


if __name__ == "__main__":
    exit_on_user_error(main, program="pipeline.evaluate")
