"""What an evaluation is made of: batches and their seeds, the log of samples, and the folder that holds it."""

import itertools
import json
import resource
from pathlib import Path

import pytest

from common.command_line import UserError
from pipeline.inference.evaluation.completions import batch_seed, deal_batches
from pipeline.inference.evaluation.sample_log import SampleId, SampleLog, open_folder


def test_every_sample_is_in_one_batch_of_one_temperature() -> None:
    batches = list(deal_batches(["a", "b", "c"], [0.1, 0.8], n_samples=5, batch_size=4))
    samples = [sample for batch in batches for sample in batch]
    assert sorted(samples) == sorted(itertools.starmap(SampleId, itertools.product("abc", (0.1, 0.8), range(5))))
    assert all(len(batch) <= 4 and len({sample.temperature for sample in batch}) == 1 for batch in batches)
    assert any(len({sample.task_id for sample in batch}) > 1 for batch in batches)


def test_every_batch_has_a_seed_of_its_own() -> None:
    batches = list(deal_batches(["a", "b"], [0.1, 0.8], n_samples=50, batch_size=1))
    seeds = [batch_seed(seed, batch) for seed in (1, 2) for batch in batches]
    assert len(set(seeds)) == len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


SAMPLE = SampleId("a/0", 0.1, 0)


def test_the_log_returns_what_was_added(tmp_path: Path) -> None:
    with SampleLog(tmp_path / "log.jsonl") as log:
        assert log.entries == {}
        log.add([(SAMPLE, {"completion": "é\n\u2028\0"}), (SAMPLE._replace(number=1), {"completion": ""})])
        assert len(log.entries) == 2
    with SampleLog(tmp_path / "log.jsonl") as log:
        assert log.entries == {SAMPLE: {"completion": "é\n\u2028\0"}, SAMPLE._replace(number=1): {"completion": ""}}


@pytest.mark.parametrize(
    "torn", ['{"task_id": "a/0", "tempe', '{"task_id": "a/0", "temperature": 0.1, "number": 1}', "{"]
)
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "log.jsonl"
    with SampleLog(path) as log:
        log.add([(SAMPLE, {"outcome": "passed"})])
    with path.open("a") as file:
        file.write(torn)
    with SampleLog(path) as log:
        assert list(log.entries) == [SAMPLE]
        log.add([(SAMPLE._replace(number=1), {"outcome": "failed"})])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["outcome"] for row in rows] == ["passed", "failed"]


@pytest.mark.parametrize("line", ["{}", "[]", "text", '{"task_id": "a"}'])
def test_a_line_of_something_else_is_told(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"log.jsonl: line 1 is not one that an evaluation writes"):
        SampleLog(tmp_path / "log.jsonl")


def test_only_one_at_a_time_writes(tmp_path: Path) -> None:
    with SampleLog(tmp_path / "log.jsonl"), pytest.raises(UserError, match="is being written by another evaluation"):
        SampleLog(tmp_path / "log.jsonl")
    with SampleLog(tmp_path / "log.jsonl"):
        pass


def test_a_disk_that_takes_no_more_is_told_and_what_it_took_is_whole(tmp_path: Path) -> None:
    path, unlimited = tmp_path / "log.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    with SampleLog(path) as log:
        log.add([(SAMPLE, {"outcome": "passed"})])
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, unlimited[1]))
    try:
        with SampleLog(path) as log, pytest.raises(UserError, match=r"log.jsonl cannot be written \(File too large\)"):
            log.add([(SAMPLE._replace(number=1), {"outcome": "failed"})])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert path.stat().st_size == size + 9
    with SampleLog(path) as log:
        assert list(log.entries) == [SAMPLE]
    assert path.stat().st_size == size


def test_a_folder_keeps_its_settings(tmp_path: Path) -> None:
    settings = {"seed": 1, "temperatures": (0.1, 0.8), "first_token": None}
    open_folder(tmp_path / "new" / "out", settings)
    open_folder(tmp_path / "new" / "out", settings)
    with pytest.raises(UserError, match=r"other settings; give another folder: seed was 1, and is now 2$"):
        open_folder(tmp_path / "new" / "out", {**settings, "seed": 2})
    (tmp_path / "new" / "out" / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings.json cannot be read as JSON"):
        open_folder(tmp_path / "new" / "out", settings)
