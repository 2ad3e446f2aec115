"""A tiny recipe that whole runs on CPU ranks train."""

from pathlib import Path

import pytest
import yaml

STEPS, EVERY_STEPS = 80, 20


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, byte_shards: Path) -> Path:
    """A recipe of 80 steps, with a checkpoint and a validation every 20 steps."""
    folder = tmp_path_factory.mktemp("train")
    path = folder / "tiny.yaml"
    values = {
        "run": {"dir": str(folder / "runs"), "name": "tiny"},
        "model": {"dim": 32, "n_layers": 6, "n_heads": 4, "vocab_size": 258, "n_future_tokens": 4, "multiple_of": 16},
        "data": {"shards": str(byte_shards), "seq_len": 32, "num_workers": 1, "num_canonical_nodes": 2},
        "train": {"total_tokens": STEPS * 256, "batch_tokens": 256, "micro_batch_size": 2,
                  "eval_every_steps": EVERY_STEPS, "eval_tokens": 1024},
        "optim": {"lr": 1e-2, "warmup_steps": 2},
        "checkpoint": {"every_steps": EVERY_STEPS, "keep": 2},
        "log": {"every_steps": 1},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path
