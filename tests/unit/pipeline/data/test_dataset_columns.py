"""Training reads shards that have another column beside the tokens, and replaces their windows if damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shards.mds_writer import DOCUMENT_IDS, TOKENS, MDSWriter
from pipeline.data.sample_record import NOTHING

WIDTH, PER_SHARD, N_SHARDS = 7, 3, 2


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Two shards of three windows each; window w holds the tokens 10 w, 10 w + 1, ... and document ids of 60,000."""
    folder = tmp_path / "train"
    shards: list[dict[str, Any]] = []
    for part in range(N_SHARDS):
        writer = MDSWriter(
            folder / f"part-{part}", window_length=WIDTH, compression=None, columns=[DOCUMENT_IDS, TOKENS]
        )
        for window in range(part * PER_SHARD, (part + 1) * PER_SHARD):
            tokens = np.arange(10 * window, 10 * window + WIDTH, dtype=np.uint16)
            writer.add(np.concatenate([np.full(WIDTH, 60_000, dtype=np.uint16), tokens])[None])
        writer.finish()
        shards += json.loads((folder / f"part-{part}" / "index.json").read_text())["shards"]
        shards[-1]["raw_data"]["basename"] = f"part-{part}/{shards[-1]['raw_data']['basename']}"
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return folder


def test_document_ids_are_ignored_and_damage_is_found(split: Path) -> None:
    from pipeline.data.dataset import ShardFolder

    data = ShardFolder(split, batch_size=1)
    read = [data[i] for i in range(N_SHARDS * PER_SHARD)]
    expected = [[10 * window + t for t in range(WIDTH)] for window in range(N_SHARDS * PER_SHARD)]
    assert [window.tokens_W.tolist() for window in read] == expected
    assert {window.fault for window in read} == {""}

    for part in range(N_SHARDS):
        with (split / f"part-{part}" / "shard.00000.mds").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\xff")
        damaged = ShardFolder(split, batch_size=1)
        read = [damaged[i] for i in range(N_SHARDS * PER_SHARD)]
        if part == 0:
            assert [window.read_id for window in read] == [3, 4, 5, 3, 4, 5]
            assert [window.tokens_W.tolist() for window in read] == expected[3:] * 2
        else:
            assert {window.read_id for window in read} == {NOTHING}
            assert [window.tokens_W.tolist() for window in read] == [[0] * WIDTH] * 6
