"""Records of samples that are written by hand, and the runs that they belong to."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.batches import config_for

Steps = dict[int, list[list[Any]]]  # lists of [epoch, samples] by step


def recorded_run(run_dir: Path, *ranks: Steps, per_step: int = 4, num_canonical_nodes: int = 1) -> Path:
    """Write a run's config.yaml and each rank's record."""
    (run_dir / "samples").mkdir(parents=True)
    config = config_for(Path("shards"), windows_per_step=per_step, num_canonical_nodes=num_canonical_nodes)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
    for rank, steps in enumerate(ranks):
        lines = [json.dumps({"step": step, "samples": samples}) + "\n" for step, samples in steps.items()]
        (run_dir / "samples" / f"rank_{rank:05d}.jsonl").write_text("".join(lines))
    return run_dir


GOOD: Steps = {1: [[0, [3, 1, 0, 2]]], 2: [[0, [7, 4, 6, 5]]], 3: [[1, [2, 6, 7, 1]]]}
