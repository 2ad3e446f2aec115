"""The time from the command to the first training step on the CPU, and the time in which commands answer.

    python -m benchmarks.startup [--ranks 2] [--json FILE]

- The start of a run, in the order of `pipeline.train`; rank 0 times each part. The model is tiny, so the times are
  those that every run pays. Then the real command under the `deepspeed` launcher, up to its first line of
  metrics.jsonl.
- `--help` and a user's mistake for every command. Each should be answered within 1.5 s, without the heavy libraries.
"""

from common.endings import exit_on_user_error

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from benchmarks.parts.harness import REPOSITORY, benchmark_parser, markdown, run_benchmark
from benchmarks.parts.ranks import ENVIRONMENT, on_ranks
from benchmarks.parts.rounds import in_turns, spread
from common.command_line import USER_ERROR_EXIT_CODE

HEAVY = {"torch", "streaming", "deepspeed", "transformers", "matplotlib", "datasets"}
DEMO = ["--config", "pipeline/recipes/demo.yaml", "--deepspeed_config", "ds_configs/zero1_fp32.json"]
NOWHERE = "nowhere/at/all"
# A mistake for each command: a missing path, or an impossible number.
MISTAKES: dict[str, list[str]] = {
    "pipeline.train": [*DEMO, "optim.lr=-1"],
    "pipeline.plan": [*DEMO, "--num_nodes", "7", "--gpus_per_node", "8", "--gpu", "h100"],
    "pipeline.convert": ["--input", NOWHERE, "--to", "meta", "--output", NOWHERE],
    "pipeline.generate": ["--ckpt_dir", NOWHERE, "--tokenizer_path", NOWHERE],
    "pipeline.evaluate": ["--ckpt_dir", NOWHERE, "--problems", NOWHERE, "--output", NOWHERE],
    "pipeline.report": [NOWHERE, "--output", f"{NOWHERE}.html"],
    "pipeline.audit": [NOWHERE],
    "pipeline.check_run": [*DEMO, "--nodes", "1", "--ranks_per_node", "1", "optim.lr=-1"],
    "pipeline.requeue": [NOWHERE, "--exit_code", "1", "--job", "1"],
    "data_prep.train_tokenizer": ["--input", NOWHERE, "--output", f"{NOWHERE}.model", "--vocab_size", "300"],
    "data_prep.write_shards": ["--input", NOWHERE, "--tokenizer", "bytes", "--out", NOWHERE],
    "data_prep.deduplicate_corpus": ["--input", NOWHERE, "--out", NOWHERE],
    "data_prep.merge_shards": [NOWHERE],
    "data_prep.upload_shards": [NOWHERE, "s3://bucket/prefix"],
    "data_prep.check_shards": [NOWHERE],
    "data_prep.stats": [NOWHERE],
    "data_prep.report": [NOWHERE],
}


def prepare(folder: Path) -> Path:
    """Write byte shards of a small package and a recipe of two steps; return the recipe's path."""
    source, shards = Path(sysconfig.get_path("stdlib")) / "json", folder / "shards"
    command = [sys.executable, "-m", "data_prep.write_shards", "--input", str(source), "--tokenizer", "bytes"]
    command += ["--out", str(shards), "--seq_len", "32", "--val_fraction", "0.2", "--num_workers", "1"]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    recipe = folder / "tiny.yaml"
    values = {
        "run": {"dir": str(folder), "name": "tiny"},
        "model": {"dim": 32, "n_layers": 5, "n_heads": 4, "vocab_size": 258, "n_future_tokens": 4},
        "data": {"shards": str(shards), "seq_len": 32},
        "train": {"total_tokens": 1024, "batch_tokens": 512, "micro_batch_size": 8, "eval_every_steps": 0},
        "optim": {"warmup_steps": 1},
        "log": {"every_steps": 1},
    }
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    return recipe


def start_on_rank(task: dict[str, Any]) -> dict[str, float]:
    """Start a run as `pipeline.train` does, up to the second step; return the seconds of each part."""
    parts = {"launcher, interpreter": time.time() - task["launched_s"]}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        start_s = time.perf_counter()
        result = action()
        parts[name] = time.perf_counter() - start_s
        return result

    from pipeline.config.inputs import load_inputs
    from pipeline.runtime.world import world_from_environment

    world, zero1 = world_from_environment(), REPOSITORY / "ds_configs" / "zero1_fp32.json"
    inputs = timed(
        "recipe, JSON and shards checked",
        lambda: load_inputs(Path(task["recipe"]), zero1, overrides=[], world_size=world.world_size),
    )
    for name in ("torch", "deepspeed", "common.mds", "pipeline.training.loop"):
        timed(f"import {name.replace('common.mds', 'streaming')}", partial(import_module, name))
    from pipeline.data.batches import TrainingData
    from pipeline.training.build import build_engine
    from pipeline.training.process_group import process_group

    group = process_group(world)
    device = timed("process group", group.__enter__)
    engine = timed("model and engine", lambda: build_engine(inputs.config, inputs.deepspeed_config, device=device))
    config = inputs.config
    data = timed(
        "shards opened",
        lambda: TrainingData(
            config.data,
            train=config.train,
            n_future_tokens=config.model.n_future_tokens,
            vocab_size=config.model.vocab_size,
        ),
    )
    first = timed("first batch (epoch's order, workers)", lambda: next(data))
    timed("first step", lambda: engine.train_step(iter([first]), learning_rate=1e-4))
    second = next(data)
    timed("(second step)", lambda: engine.train_step(iter([second]), learning_rate=1e-4))
    group.__exit__(None, None, None)
    return parts


def real_start_s(recipe: Path, *, ranks: int, run: str) -> float:
    """Return the seconds from the `deepspeed` command to the first line of metrics.jsonl."""
    metrics = recipe.parent / run / "metrics.jsonl"
    command = ["deepspeed", "--num_gpus", str(ranks), "--master_port", str(29_600 + os.getpid() % 1000)]
    command += ["--module", "pipeline.train", "--config", str(recipe)]
    command += ["--deepspeed_config", "ds_configs/zero1_fp32.json", f"run.name={run}"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **ENVIRONMENT, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": path}
    start_s = time.perf_counter()
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not metrics.exists():
            time.sleep(0.02)
        took_s = time.perf_counter() - start_s
    if process.returncode or not metrics.exists():
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return took_s


def answer_s(command: str, arguments: Sequence[str], *, exit_code: int) -> float:
    """Return the seconds until a command ended with this exit code.

    Raises:
        RuntimeError: it ended with another one.
    """
    start_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", command, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    took_s = time.perf_counter() - start_s
    if done.returncode != exit_code:
        raise RuntimeError(f"{command} {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return took_s


def heavy_imports(command: str, arguments: Sequence[str]) -> list[str]:
    """Return the heavy libraries that the command imports before it answers."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", command, *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    imported = re.findall(r"^import time:.*\| +(\S+)$", done.stderr, flags=re.MULTILINE)
    return sorted(HEAVY.intersection(imported))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure starts and answers, print both tables, and return the figures."""
    starts, real_s = measure_starts(ranks=arguments.ranks, repeats=arguments.repeats)
    rows = [["part of a start", "s"]]
    rows += [[part, str(spread([start[part] for start in starts]))] for part in starts[0]]
    print(f"{arguments.ranks} ranks, {len(starts)} starts\n\n{markdown(rows)}\n")
    print(
        f"The real command under the deepspeed launcher, up to its first logged step: {spread(real_s)} s\n", flush=True
    )
    answers = measure_answers(repeats=arguments.repeats)
    rows = [["command", "--help, s", "a mistake, s", "heavy imports"]]
    for name, of in answers.items():
        rows.append([name, str(spread(of["help_s"])), str(spread(of["mistake_s"])), ", ".join(of["heavy"]) or "none"])
    print(markdown(rows))
    return {"starts": starts, "real_start_s": real_s, "commands": answers}


def measure_starts(*, ranks: int, repeats: int) -> tuple[list[dict[str, float]], list[float]]:
    """Return the seconds of each part of a start, and the seconds of the real command, for each repetition."""
    starts, real_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        recipe = prepare(Path(folder))
        for index in range(1 + repeats):
            task = {"recipe": str(recipe), "launched_s": time.time()}
            start = on_ranks(start_on_rank, task, ranks=ranks, DS_ACCELERATOR="cpu")
            real = real_start_s(recipe, ranks=ranks, run=f"run_{index}")
            if index:  # the first start warms the disk cache
                starts.append(start)
                real_s.append(real)
    return starts, real_s


def measure_answers(*, repeats: int) -> dict[str, dict[str, Any]]:
    """Return for each command the seconds until it answered, in each round, and the heavy libraries it imported."""
    commands = {name: partial(answer_s, name, ["--help"], exit_code=0) for name in MISTAKES}
    for name, mistake in MISTAKES.items():
        commands[f"{name} (mistake)"] = partial(answer_s, name, mistake, exit_code=USER_ERROR_EXIT_CODE)
    seconds = in_turns(commands, warm_up=1, repeats=repeats, label="commands")
    return {
        name: {
            "help_s": seconds[name],
            "mistake_s": seconds[f"{name} (mistake)"],
            "heavy": sorted({*heavy_imports(name, ["--help"]), *heavy_imports(name, mistake)}),
        }
        for name, mistake in MISTAKES.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = benchmark_parser("benchmarks.startup", description=__doc__, ranks=2, repeats=2, rounds="starts")
    run_benchmark(parser, measure, argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.startup")
