"""Writes folders of runs for reports, and checks the pages about them."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from pipeline import report
from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, OptimConfig, RunConfig, TrainConfig
from pipeline.runtime import history

STEP_TOKENS = 512
VOID = {"meta"}
Write = Callable[..., Path]


def metrics_line(step: int, *, n_heads: int = 2, **changes: float | None) -> dict[str, Any]:
    """Return a line of metrics.jsonl, with `changes` to its scalars."""
    losses = {f"loss/head_{head}": 1 + head / 10 + 5 / step for head in range(1, n_heads + 1)}
    return {
        "step": step, "tokens": step * STEP_TOKENS, "loss/total": sum(losses.values()), **losses, "optim/lr": 1e-3,
        "optim/grad_norm": 1 + 1 / step, "throughput/tokens_per_s": 1000.0 + step, "memory/peak_GiB": 0.5,
        "data/wait_s": 0.01, "progress/tokens": float(step * STEP_TOKENS), "faults/skipped_steps": 0.0, **changes,
    }  # fmt: skip


def write_run_folder(
    directory: Path, name: str = "try", *, steps: int = 40, n_heads: int = 2, total_steps: int = 40, dim: int = 16,
    changes: dict[int, dict[str, float | None]] | None = None,
) -> Path:  # fmt: skip
    """Write and return `directory`/`name`, the folder of a run that has taken `steps` of `total_steps`.

    `changes` replaces scalars of some steps.
    """
    config = Config(
        run=RunConfig(dir=str(directory), name="try"),
        model=ModelConfig(dim=dim, n_layers=6, n_heads=2, n_future_tokens=n_heads),
        data=DataConfig(seq_len=32, shards="shards"),
        optim=OptimConfig(warmup_steps=4),
        train=TrainConfig(total_tokens=total_steps * STEP_TOKENS, batch_tokens=STEP_TOKENS),
    )
    folder = directory / name
    (folder / "checkpoints" / "step_00000020").mkdir(parents=True)
    (folder / "checkpoints" / "step_00000030").mkdir()  # not complete without a manifest
    (folder / "checkpoints" / "step_00000020" / "manifest.json").write_text("{}")
    (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
    (folder / "ds_config.json").write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    (folder / "environment.json").write_text(json.dumps({"device": "cpu", "packages": {"torch": "2.13.0"}}))
    lines = [metrics_line(step, n_heads=n_heads, **(changes or {}).get(step, {})) for step in range(1, steps + 1)]
    lines.append({"step": steps, **{f"val/loss_head_{head}": 2.5 + head for head in range(1, n_heads + 1)}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    history.record(folder, "launch", step=0, ranks=2, device="cpu")
    history.record(folder, "end", exit_code=0)
    return folder


class Checker(HTMLParser):
    """Parses a page, whose elements must be closed in order and which may load nothing from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open
        assert "script" not in {name for name, _ in self.tags}
        assert not {"src", "href", "onload", "onerror"} & {key for _, given in self.tags for key in given}
        assert not re.search(r"url\(|@import|https?://", page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def paged(*runs: Path, output: Path) -> tuple[Checker, str]:
    """Write the report about runs; return the parsed page and its text."""
    report.main([*map(str, runs), "--output", str(output)])
    page = output.read_text(encoding="utf-8")
    checker = Checker(page)
    return checker, " ".join(checker.text)
