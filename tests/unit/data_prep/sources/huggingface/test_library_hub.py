"""Data sets of the Hub, read by the real client from a server of our own."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY
from tests.helpers.hub_server import COMMIT, NAME, hub_of
from tests.helpers.records import jsonl

READ = """
import json, sys
from common.command_line import UserError
from data_prep.sources.documents import ReadOptions
from data_prep.sources.listing import list_source
from data_prep.sources.readers import read_piece

try:
    source = list_source(sys.argv[1])
except UserError as error:
    print(json.dumps({"error": str(error)}))
    raise SystemExit
records = [record for piece in source.pieces for record in read_piece(piece, ReadOptions(fields=()))]
texts = [getattr(record, "text", f"<{getattr(record, 'reason', '')}>") for record in records]
pieces = [[piece.format, piece.path, piece.size] for piece in source.pieces]
print(json.dumps({"texts": texts, "pieces": pieces, "left_out": source.left_out, "first": records[0].source}))
"""


def _read(folder: Path, cache: Path, path: str = f"hf:{NAME}") -> dict[str, object]:
    with hub_of(folder) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-c", READ, path], cwd=REPOSITORY, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "stack"
    folder.mkdir()
    return folder


def test_files_of_the_hub_are_read_one_by_one(folder: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), folder / "train-1.parquet", row_group_size=2)
    pq.write_table(pa.table({"text": ["d"], "stars": [5]}), folder / "train-2.parquet")
    (folder / "train-3.jsonl").write_bytes(
        jsonl({"text": "e", "path": "x"}) + b'{"text": "f", "path": "\\ud800"}\n{"te'
    )
    (folder / "train-4.json.gz").write_bytes(gzip.compress(jsonl({"text": "g"}, {"text": "h"})))
    (folder / "train-5.png").write_bytes(b"a picture")
    read = _read(folder, tmp_path / "cache")
    assert sorted(read["texts"]) == ["<bad_json>", *"abcdefgh"]  # type: ignore[call-overload]
    sizes = {f"hf://datasets/{NAME}@{COMMIT}/{path.name}": path.stat().st_size for path in folder.iterdir()}
    pieces = {path: size for _, path, size in read["pieces"]}  # type: ignore[attr-defined]
    assert pieces == {path: size for path, size in sizes.items() if not path.endswith(".png")}
    assert read["left_out"] == "1 .png"
    assert read["first"] == f"hf://datasets/{NAME}@{COMMIT}/train-1.parquet:row 0"


def test_a_card_of_the_hub_names_no_files_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_bytes(jsonl({"text": "the secret"}))
    (folder / "train.jsonl").write_bytes(jsonl({"text": "inside"}))
    config = {"config_name": "default", "data_files": str(tmp_path / "secret.jsonl")}
    (folder / "README.md").write_text(f"---\nconfigs:\n- {json.dumps(config)}\n---\n")
    read = _read(folder, tmp_path / "cache")
    assert "Data files don't belong to some/stack" in str(read["error"])  # the library's own check
