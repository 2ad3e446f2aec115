"""Measures how fast text becomes shards and how much memory that takes, with real code, on this machine.

    ways      tokens and bytes per second of one core: our way with each engine, LLM Foundry's, Megatron-LM's and
              datatrove's ways, and the floor
    workers   seconds of the real command with one worker and with two
    stages    the CPU time of each stage of a worker
    memory    peak of the real command on corpora of several sizes: plain, near duplicates, shuffled, Parquet
    formats   shard size, compression, hashes: bytes on disk, and speed

Ways take turns, and figures are medians over the rounds. The slow ways use a subset of the corpus.
"""

from common.endings import exit_on_user_error

import argparse
import importlib.metadata
import os
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.data_prep import formats
from benchmarks.data_prep.commands import MEMORY_WAYS, command, peak_memory, seconds_of
from benchmarks.data_prep.corpus import MB, Corpus, copy_corpus, train_tokenizer, write_jsonl
from benchmarks.data_prep.stages import stages
from benchmarks.data_prep.ways import SHAPE, Pass, datatrove, floor, foundry, megatron, ours
from benchmarks.parts.harness import DEFAULT, LiveTable, benchmark_parser, run_benchmark
from common.command_line import real_number
from common.tokenizers import BYTES

PARTS = ("ways", "workers", "stages", "memory", "formats")
_PACKAGES = ("gigatoken", "sentencepiece", "tokenizers", "mosaicml-streaming", "numpy", "zstandard", "pyarrow")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts that were asked for, print their tables, and return the figures."""
    arguments.parts = arguments.parts or list(PARTS)
    results: dict[str, Any] = {
        "machine": f"{len(os.sched_getaffinity(0))} CPUs, {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "rounds": arguments.repeats,
    }
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        scratch = Path(folder)
        if set(arguments.parts) - {"memory"}:
            _measure_speed(scratch, arguments, results)
        if "memory" in arguments.parts:
            _measure_memory(scratch, arguments, results)
    return results


def _measure_speed(scratch: Path, arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    whole = copy_corpus(scratch / "whole", n_bytes=int(arguments.corpus_mb * MB))
    subset = copy_corpus(scratch / "subset", n_bytes=int(min(arguments.slow_corpus_mb, arguments.corpus_mb) * MB))
    results["corpus"], results["subset"] = str(whole), str(subset)
    print(f"{whole}; the slow ways: {subset}; medians of {arguments.repeats} rounds", flush=True)
    model, out = scratch / "tokenizer.model", scratch / "out"
    train_tokenizer(subset, model)
    if "ways" in arguments.parts:
        results["ways"] = _ways(whole, subset, out, model=model, rounds=arguments.repeats)
    if "workers" in arguments.parts:
        results["wall_s_by_workers"] = _workers(whole, out, model=model, rounds=arguments.repeats)
    if "stages" in arguments.parts:
        results["cpu_s_of_stages"] = _stages(whole, out, model=model)
    if "formats" in arguments.parts:
        results["formats"] = _formats(whole, out, model=model)
    shutil.rmtree(whole.folder)


def _ways(whole: Corpus, subset: Corpus, out: Path, *, model: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    jsonl = subset.folder.with_suffix(".jsonl")
    write_jsonl(subset, jsonl)
    ways: dict[str, Callable[[Path], Pass]] = {
        "floor": lambda out: floor(whole, out),
        "bytes": lambda out: ours(whole, out, tokenizer=BYTES, engine="sentencepiece"),
        "gigatoken": lambda out: ours(whole, out, tokenizer=str(model), engine="gigatoken"),
        "gigatoken, on the subset": lambda out: ours(subset, out, tokenizer=str(model), engine="gigatoken"),
        "sentencepiece, on the subset": lambda out: ours(subset, out, tokenizer=str(model), engine="sentencepiece"),
        "megatron, on the subset": lambda out: megatron(jsonl, out, model=model),
        "foundry, on the subset": lambda out: foundry(subset, out, model=model),
        "datatrove, on the subset": lambda out: datatrove(jsonl, out, model=model),
    }
    passes: dict[str, list[Pass]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            passes[name].append(way(out))
            shutil.rmtree(out)
    best = {name: _median(of) for name, of in passes.items()}
    base = best["sentencepiece, on the subset"].mb_per_s
    print()
    table = LiveTable("way", "MB/s per core", "million tokens/s per core", "over sentencepiece")
    for name, of in best.items():
        table.add(name, f"{of.mb_per_s:.1f}", f"{of.tokens_per_s / 1e6:.2f}", f"{of.mb_per_s / base:.1f}")
    return {name: [asdict(measured) for measured in of] for name, of in passes.items()}


def _median(passes: Sequence[Pass]) -> Pass:
    """Return the pass with the median CPU time; of an even number of passes, the lower median."""
    return sorted(passes, key=lambda measured: measured.cpu_s)[(len(passes) - 1) // 2]


def _workers(whole: Corpus, out: Path, *, model: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    jsonl = whole.folder.with_suffix(".jsonl")
    write_jsonl(whole, jsonl)
    commands = {
        f"{engine}, {form}": (source, tokenizer)
        for form, source in (("jsonl", jsonl), ("files", whole.folder))
        for engine, tokenizer in (("gigatoken", str(model)), ("bytes", BYTES))
    }
    seconds: dict[str, dict[str, list[float]]] = {}
    print()
    table = LiveTable("the command", "1 worker, s", "2 workers, s", "times as fast")
    for name, (source, tokenizer) in commands.items():
        seconds[name] = {"1": [], "2": []}
        for _ in range(rounds):
            for n_workers, of in seconds[name].items():
                of.append(seconds_of(command(source, out, tokenizer=tokenizer, n_workers=int(n_workers))))
                shutil.rmtree(out)
        one, two = (statistics.median(of) for of in seconds[name].values())
        table.add(name, f"{one:.1f}", f"{two:.1f}", f"{one / two:.2f}")
    jsonl.unlink()
    return seconds


def _stages(whole: Corpus, out: Path, *, model: Path) -> dict[str, dict[str, float]]:
    times = {"gigatoken": stages(whole, out, tokenizer=str(model), engine="gigatoken")}
    shutil.rmtree(out)
    times["bytes"] = stages(whole, out, tokenizer=BYTES, engine="sentencepiece")
    shutil.rmtree(out)
    print()
    table = LiveTable("percent of CPU time", *times["gigatoken"])
    for name, seconds in times.items():
        total = sum(seconds.values())
        table.add(name, *(f"{100 * of / total:.1f}" for of in seconds.values()))
    return times


def _formats(whole: Corpus, out: Path, *, model: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    print()
    table = LiveTable("tokens", "shards", "files", "bytes on disk / bytes", "write MB/s per core", "read MB/s")
    for name, tokenizer in (("ids", str(model)), ("bytes", BYTES)):
        ours(whole, out, tokenizer=tokenizer, engine="sentencepiece" if tokenizer == BYTES else "gigatoken")
        windows = formats.windows_of_shards(out, length=SHAPE.length)
        shutil.rmtree(out)
        found[name] = []
        for format_ in formats.FORMATS:
            of = formats.measure(format_, windows, out)
            shutil.rmtree(out)
            found[name].append(of)
            speed = (f"{of['write_mb_per_s']:.0f}", f"{of['read_mb_per_s']:.0f}")
            table.add(name, str(format_), str(of["files"]), f"{of['of_size']:.1%}", *speed)
    return found


def _measure_memory(scratch: Path, arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    results["peak_bytes"] = {}
    print()
    table = LiveTable("peak memory, one worker", "corpus", "one process, MB", "all processes, MB")
    model = scratch / "memory.model"
    for megabytes in sorted(arguments.memory_mb):
        corpus = copy_corpus(scratch / f"corpus-{megabytes:g}", n_bytes=int(megabytes * MB))
        if not model.exists():
            train_tokenizer(corpus, model)
        for way in MEMORY_WAYS:
            peaks = peak_memory(way, corpus, scratch / "out", model=model)
            shutil.rmtree(scratch / "out")
            results["peak_bytes"].setdefault(str(corpus), {})[way] = peaks
            used = (f"{peaks[scope] / MB:.0f}" for scope in ("one_process", "all_processes"))
            table.add(way, str(corpus), *used)
        shutil.rmtree(corpus.folder)


def _problems(arguments: argparse.Namespace) -> list[str]:
    problems = []
    if unknown := sorted(set(arguments.parts) - set(PARTS)):
        problems.append(f"{' '.join(unknown)}: no such part; give any of {', '.join(PARTS)}")
    if min(arguments.corpus_mb, arguments.slow_corpus_mb, *arguments.memory_mb) <= 0:
        problems.append("sizes of corpora must be above 0")
    return problems


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = benchmark_parser("benchmarks.data_prep", description=__doc__, repeats=3)
    add = parser.add_argument
    megabytes = real_number(above=0, at_most=1_000_000)
    add("parts", nargs="*", metavar="PART", help=f"what to measure, any of {', '.join(PARTS)} (default: all)")
    add("--corpus_mb", type=megabytes, default=200, metavar="N", help=f"size of the corpus {DEFAULT}")
    slow_help = f"size of the subset for the slow ways {DEFAULT}"
    add("--slow_corpus_mb", type=megabytes, default=40, metavar="N", help=slow_help)
    memory_help = "sizes of the corpora for measuring memory (default: 50 1000)"
    add("--memory_mb", type=megabytes, nargs="+", default=[50, 1000], metavar="N", help=memory_help)
    add("--scratch", type=Path, metavar="DIR", help="folder for corpus and shards (default: the system's)")
    run_benchmark(parser, measure, argv, check=_problems)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.data_prep")
