"""Measure pass@k of an exported model on HumanEval or MBPP: draw completions, run them in a sandbox, and count.

Completions and their results are written to the output folder as they come. If the command is killed, run it again to
continue where it stopped; a finished evaluation can be read again with any --k up to --n_samples. Generated programs
run without network, in a file system that they cannot change, with limits on time, memory and processes. Where Linux
does not allow this, no program is run unless you pass --allow_weak_sandbox.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse
import itertools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from common.command_line import (
    UserError,
    a_path,
    command_parser,
    output_path,
    raise_if_any,
    real_number,
    say,
    whole_number,
)
from common.files import sha256_of_file, write_json
from common.tokenizers import Tokenizer
from common.wording import counted
from pipeline.inference.decoding.prompts import Prompt, encode_prompts, matching_tokenizer
from pipeline.inference.decoding.session import Decoding, Session, choose_heads, choose_precision
from pipeline.inference.evaluation.completion_log import CompletionId, CompletionLog, open_folder
from pipeline.inference.evaluation.execution import check_references, execute
from pipeline.inference.evaluation.pass_at_k import best, scores, table
from pipeline.inference.evaluation.problems import FORMATS, Problem, load_problems
from pipeline.inference.evaluation.sandbox import Isolation, Limits, ProgramResult, find_isolation, weaknesses
from pipeline.inference.options import (
    add_decoding_options,
    add_first_token_option,
    add_model_options,
    decoding_problems,
)
from pipeline.weights.formats.detect import EXPORTS, format_of
from pipeline.weights.formats.stored_model import first_token_in

_MOST_COMPLETIONS = 2_000_000
_EXAMPLES = """example, with the paper's settings:
  python -m pipeline.evaluate --ckpt_dir exports/7B_200B --problems HumanEval.jsonl.gz \\
      --output evaluations/7B_200B --max_batch_size 200"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: an argument, a folder or the problems are wrong, or this machine cannot run them safely.
    """
    arguments = _parse(argv)
    _check(arguments)
    problems = load_problems(arguments.problems, problem_format=arguments.format)
    _check_amount(problems, arguments)
    config = format_of(arguments.ckpt_dir, among=EXPORTS).read_config(arguments.ckpt_dir)
    arguments.first_token = arguments.first_token or first_token_in(arguments.ckpt_dir)
    decoding = Decoding(
        n_heads_used=choose_heads(arguments.n_heads_used, config, decoding=arguments.decoding),
        max_gen_len=arguments.max_gen_len,
        top_p=arguments.top_p,
        seed=arguments.seed,
        stops=problems[0].stops,  # a file has one format, so all have the same
    )
    tokenizer = matching_tokenizer(arguments.tokenizer_path, arguments.ckpt_dir, config)
    prompts = _prompts(problems, tokenizer, arguments)
    isolation = find_isolation(allow_weak=arguments.allow_weak_sandbox)
    say(f"isolation of generated programs: {isolation.value}", file=sys.stderr)
    for weakness in weaknesses():
        say(f"warning: {weakness}", file=sys.stderr)
    arguments.device, arguments.dtype = choose_precision(arguments.device, arguments.dtype)
    open_folder(arguments.output, _settings(arguments, tokenizer, decoding, isolation))

    completions_path, results_path = (arguments.output / name for name in ("samples.jsonl", "results.jsonl"))
    with (
        CompletionLog(completions_path, fields=("completion", "ended")) as completions,
        CompletionLog(results_path, fields=("outcome", "detail")) as results,
    ):
        dealt = set(itertools.product(prompts, arguments.temperatures, range(arguments.n_samples)))
        completions.refuse_others(dealt)
        results.refuse_others(dealt)
        if arguments.check_references and not completions.entries:
            limits = Limits(timeout_s=arguments.timeout_s)
            check_references(problems, isolation=isolation, limits=limits, n_workers=arguments.num_workers)
        _draw(completions, prompts, tokenizer, decoding, arguments)
        _execute(completions, results, problems, isolation=isolation, arguments=arguments)
        report = _report(completions, results, list(prompts), arguments)
    write_json(arguments.output / "results.json", {"isolation": isolation.value, **report})
    n_problems, n_samples = counted(len(problems), "problem"), counted(arguments.n_samples, "completion")
    header = f"{n_problems}, {n_samples} each per temperature, pass@k in %"
    say(f"{header}\n{table(report['pass_at_k'])}")


def _draw(
    completions: CompletionLog,
    prompts: dict[str, Prompt],
    tokenizer: Tokenizer,
    decoding: Decoding,
    arguments: argparse.Namespace,
) -> None:
    """Draw the missing completions; if there are none, the model is not loaded."""
    from pipeline.inference.evaluation.completions import deal_batches, draw_missing

    dealt = deal_batches(
        list(prompts), arguments.temperatures, n_samples=arguments.n_samples, batch_size=arguments.max_batch_size
    )
    batches = list(dealt)
    if all(completion_id in completions.entries for batch in batches for completion_id in batch):
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
    draw_missing(session, tokenizer, decoding, completions=completions, batches=batches, prompts=prompts)


def _execute(
    completions: CompletionLog,
    results: CompletionLog,
    problems: Sequence[Problem],
    *,
    isolation: Isolation,
    arguments: argparse.Namespace,
) -> None:
    """Execute the completions whose results are missing."""
    from tqdm import tqdm

    by_task = {problem.task_id: problem for problem in problems}
    limits = Limits(timeout_s=arguments.timeout_s)

    def executed(completion_id: CompletionId) -> ProgramResult:
        completion = completions.entries[completion_id]["completion"]
        return execute(by_task[completion_id.task_id], completion, isolation=isolation, limits=limits)

    missing = [completion_id for completion_id in completions.entries if completion_id not in results.entries]
    n_programs, n_done = len(completions.entries), len(results.entries)
    bar = tqdm(desc="executing", unit="program", total=n_programs, initial=n_done, disable=None)
    with bar, ThreadPoolExecutor(arguments.num_workers) as pool:
        futures = {pool.submit(executed, completion_id): completion_id for completion_id in missing}
        try:
            for future in as_completed(futures):
                result = future.result()
                results.add([(futures[future], {"outcome": result.outcome, "detail": result.detail})])
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _check_amount(problems: Sequence[Problem], arguments: argparse.Namespace) -> None:
    """Check that the completions can be listed in memory.

    Raises:
        UserError: there are too many.
    """
    n_completions = len(problems) * len(arguments.temperatures) * arguments.n_samples
    if n_completions > _MOST_COMPLETIONS:
        raise UserError(
            f"--n_samples {arguments.n_samples} for {counted(len(problems), 'problem')} and "
            f"{counted(len(arguments.temperatures), 'temperature')} is {n_completions:,} completions; "
            f"{_MOST_COMPLETIONS:,} is the most"
        )


def _report(
    completions: CompletionLog, results: CompletionLog, task_ids: Sequence[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the contents of `results.json`: pass@k at each temperature and at the best, and the counts behind it."""
    n_cut = Counter(which.temperature for which, fields in completions.entries.items() if fields["ended"] == "length")
    outcomes = {temperature: Counter[str]() for temperature in arguments.temperatures}
    n_passed = {temperature: dict.fromkeys(task_ids, 0) for temperature in arguments.temperatures}
    for which, fields in results.entries.items():
        outcomes[which.temperature][fields["outcome"]] += 1
        n_passed[which.temperature][which.task_id] += fields["outcome"] == "passed"
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
    """Return the problems' prompts as tokens, by task_id.

    Raises:
        UserError: a prompt is not text, or the longest one leaves no room for a whole completion.
    """
    encoded = encode_prompts([problem.prompt for problem in problems], tokenizer, first_token=arguments.first_token)
    prompts = {problem.task_id: prompt for problem, prompt in zip(problems, encoded, strict=True)}
    longest = max(prompts, key=lambda task_id: len(prompts[task_id].ids))
    n_tokens = len(prompts[longest].ids)
    if n_tokens + arguments.max_gen_len > arguments.max_seq_len:
        raise UserError(
            f"the longest prompt, {longest!r}, has {counted(n_tokens, 'token')}; together with --max_gen_len "
            f"{arguments.max_gen_len} that is more than --max_seq_len {arguments.max_seq_len}; raise --max_seq_len to "
            f"{n_tokens + arguments.max_gen_len}, or lower --max_gen_len"
        )
    return prompts


def _settings(
    arguments: argparse.Namespace, tokenizer: Tokenizer, decoding: Decoding, isolation: Isolation
) -> dict[str, Any]:
    """Return everything that decides which completions are drawn and whether they pass."""
    names = ("format", "n_samples", "temperatures", "top_p", "seed", "first_token", "decoding", "max_batch_size",
             "max_seq_len", "max_gen_len", "dtype", "timeout_s")  # fmt: skip
    patterns = format_of(arguments.ckpt_dir, among=EXPORTS).files
    files = sorted({path for pattern in patterns for path in arguments.ckpt_dir.glob(pattern)})
    stats = {path.name: path.stat() for path in files}
    return {
        "ckpt_dir": str(arguments.ckpt_dir.resolve()),
        # sizes and times instead of hashes, which would take as long as reading the weights; a new export has new times
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
    """Check what can be checked from the arguments alone.

    Raises:
        UserError: lists every problem.
    """
    problems = decoding_problems(arguments)
    for k in arguments.k:
        if k > arguments.n_samples:
            problems.append(f"--k {k} cannot be estimated from --n_samples {arguments.n_samples}; draw at least {k}")
    raise_if_any(problems, heading="bad arguments")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("pipeline.evaluate", description=__doc__, epilog=_EXAMPLES)
    add_model_options(parser.add_argument_group("model").add_argument)
    add = parser.add_argument_group("problems").add_argument
    problems_help = (
        "HumanEval, HumanEval+, MBPP (whose test split is task_id 11 to 510) or MBPP+: .jsonl or .json, or .gz"
    )
    add("--problems", required=True, type=a_path, metavar="FILE", help=problems_help)
    add("--format", choices=FORMATS, help="format of the problems (default: recognised by their keys)")
    references_help = "first run the problems' own solutions, and end if one does not pass (default: yes)"
    add("--check_references", action=argparse.BooleanOptionalAction, default=True, help=references_help)
    add_first_token_option(add)
    add = parser.add_argument_group("completions").add_argument
    samples_help = "completions per problem and temperature (default: %(default)s)"
    count = whole_number(at_least=1, at_most=100_000)
    add("--n_samples", type=count, default=200, metavar="N", help=samples_help)
    temperatures_help = "sampling temperatures; 0 is greedy; for each k the best one counts (default: 0.1 0.8)"
    temperature = real_number(at_least=0, at_most=1000)
    add("--temperatures", type=temperature, nargs="+", default=[0.1, 0.8], metavar="T", help=temperatures_help)
    add("--k", type=count, nargs="+", default=[1, 10, 100], help="the k of pass@k (default: 1 10 100)")
    codex_top_p = 0.95  # as Codex's evaluation has it
    add_decoding_options(add, max_seq_len=1024, max_batch_size=16, max_gen_len=512, top_p=codex_top_p)
    add = parser.add_argument_group("execution").add_argument
    workers_help = "programs run at once (default: the number of CPUs)"
    workers = whole_number(at_least=1, at_most=1024)
    add("--num_workers", type=workers, default=os.cpu_count(), metavar="N", help=workers_help)
    timeout_help = "seconds that each program may run (default: %(default)s)"
    seconds = real_number(above=0, at_most=86_400)
    add("--timeout_s", type=seconds, default=Limits.timeout_s, metavar="S", help=timeout_help)
    weak_help = f"if full isolation is not possible, run the programs with {Isolation.WEAK.value}"
    add("--allow_weak_sandbox", action="store_true", help=weak_help)
    add = parser.add_argument_group("output").add_argument
    output_help = "folder of samples.jsonl, results.jsonl and results.json; an unfinished evaluation there is continued"
    add("--output", required=True, type=output_path, metavar="DIR", help=output_help)
    arguments = parser.parse_args(argv)
    arguments.temperatures, arguments.k = sorted(set(arguments.temperatures)), sorted(set(arguments.k))
    return arguments


if __name__ == "__main__":
    exit_on_user_error(main, program="pipeline.evaluate")
