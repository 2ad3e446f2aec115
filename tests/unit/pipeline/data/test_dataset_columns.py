"""Training reads shards that have a column more than tokens, and replaces their windows when they are damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shards.mds_writer import DOCUMENT_IDS, TOKENS, MDSWriter

WIDTH, PER_SHARD, N_SHARDS = 7, 3, 2


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards of three windows each; window w holds tokens 10 w, 10 w + 1, ... and ids that are other numbers."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
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


def test_document_ids_are_read_past_and_damage_is_found(split: Path) -> None:
    from pipeline.data.batches import NOTHING, _collate
    from pipeline.data.dataset import ShardFolder

    data = ShardFolder(split, batch_size=1)
    batch = _collate([data[i] for i in range(N_SHARDS * PER_SHARD)])
    expected = [[10 * window + t for t in range(WIDTH)] for window in range(N_SHARDS * PER_SHARD)]
    assert batch["windows_BW"].tolist() == expected
    assert batch["faults"] == []

    for part in range(N_SHARDS):
        with (split / f"part-{part}" / "shard.00000.mds").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\xff")
        damaged = ShardFolder(split, batch_size=1)
        read = [damaged[i] for i in range(N_SHARDS * PER_SHARD)]
        if part == 0:
            assert [sample["read_id"] for sample in read] == [3, 4, 5, 3, 4, 5]
            assert [sample["tokens"].tolist() for sample in read] == expected[3:] * 2
        else:
            assert {sample["read_id"] for sample in read} == {NOTHING}
            assert _collate(read)["windows_BW"].tolist() == [[0] * WIDTH] * 6
