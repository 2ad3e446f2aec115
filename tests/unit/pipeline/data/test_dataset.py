"""Every kind of damage to a real shard is reported, replaced by the right windows, and never raised in a loader."""

import bz2
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import zstandard

from common.command_line import UserError
from pipeline.data.batches import Batch, TrainingData
from pipeline.data.consumed import Consumed
from pipeline.data.sample_record import NOTHING
from tests.conftest import REPOSITORY
from tests.helpers.batches import config_for, training_data, validation_data, write_split

LENGTH = 7
SIZES = (10, 10, 4, 12)  # windows of each shard; the number of a window is its place over all of them
N_WINDOWS, FIRST = sum(SIZES), (0, 10, 20, 24)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_split(tmp_path / "train", sizes=SIZES, length=LENGTH)
    return tmp_path


def raw_file(root: Path, shard: int) -> Path:
    return root / "train" / f"part-{shard}" / "shard.00000.mds"


def zip_file(root: Path, shard: int) -> Path:
    return raw_file(root, shard).with_suffix(".mds.zstd")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    """Flip one bit of the last window, which leaves everything readable."""
    stored = bytearray(path.read_bytes())
    stored[-1] ^= 0x10
    path.write_bytes(stored)


def make_a_folder(path: Path) -> None:
    """Make the file unreadable even for root."""
    path.unlink()
    path.mkdir()


def forbid(path: Path) -> None:
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")


DAMAGE: dict[Callable[[Path], None], str] = {
    Path.unlink: "is missing, its index says {bytes} bytes",
    truncate: "has {half} bytes, its index says {bytes}",
    flip_a_bit: "has the xxh64 hash {found}, its index says {xxh64}",
    make_a_folder: "",
    forbid: "cannot be read: Permission denied",
}


def place_of(window: int, *, intact: set[int]) -> int:
    """Return the window that should be read: in the next intact shard, at the same offset modulo its size."""
    shard = max(s for s in range(4) if FIRST[s] <= window)
    reader = next(s % 4 for s in range(shard, shard + 4) if s % 4 in intact)
    return window if reader == shard else FIRST[reader] + (window - FIRST[shard]) % SIZES[reader]


def epochs_of(data: TrainingData, n_epochs: int = 1) -> list[Batch]:
    return list(islice(data, n_epochs * N_WINDOWS // 4))


def assert_replaced(batches: list[Batch], *, intact: set[int]) -> None:
    """Check that the tokens and numbers of every batch follow the rule."""
    for batch in batches:
        assert (batch.tokens_BT[:, 0] // 10).tolist() == list(batch.read_ids_B)
        assert (batch.tokens_BT % 10).tolist() == [[0, 1, 2, 3]] * 4
        assert list(batch.read_ids_B) == [place_of(window, intact=intact) for window in batch.ids_B]


def ids_of(batches: list[Batch]) -> list[int]:
    return list(chain.from_iterable(batch.ids_B for batch in batches))


def test_intact_shards_are_read_as_they_are(root: Path) -> None:
    data = training_data(config_for(root))
    batches = epochs_of(data, 2)
    assert_replaced(batches, intact={0, 1, 2, 3})
    assert sorted(ids_of(batches)) == sorted([*range(N_WINDOWS)] * 2)
    consumed = data.take_consumed()
    assert (consumed.faults, consumed.skipped_windows) == ([], 0)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_shard_is_reported_and_replaced(root: Path, damage: Callable[[Path], None], num_workers: int) -> None:
    import xxhash

    undamaged = ids_of(epochs_of(training_data(config_for(root)), 3))
    path = raw_file(root, 1)
    original = path.read_bytes()
    damage(path)
    data = training_data(config_for(root, num_workers=num_workers))
    batches = epochs_of(data, 3)
    assert ids_of(batches) == undamaged, "damage must not change the order of samples"
    assert_replaced(batches, intact={0, 2, 3})
    consumed = data.take_consumed()
    (fault,) = consumed.faults
    found = xxhash.xxh64_hexdigest(path.read_bytes()) if path.is_file() and os.access(path, os.R_OK) else ""
    expected = DAMAGE[damage].format(
        bytes=len(original), half=len(original) // 2, found=found, xxh64=xxhash.xxh64_hexdigest(original)
    )
    assert fault.startswith(f"{path} {expected}")
    assert "\n" not in fault
    assert consumed.skipped_windows == 3 * SIZES[1]
    assert data.take_consumed() == Consumed(), "a fault is reported once"


def test_replacement_wraps_around_and_skips_damaged_shards(root: Path) -> None:
    for shard in (2, 3):
        raw_file(root, shard).unlink()
    data = training_data(config_for(root))
    assert_replaced(epochs_of(data), intact={0, 1})
    assert len(data.take_consumed().faults) == 2


def test_a_resumed_run_reads_the_same_replacements(root: Path) -> None:
    flip_a_bit(raw_file(root, 3))
    data = training_data(config_for(root))
    first = epochs_of(data)[:5]
    data = training_data(config_for(root))
    list(islice(data, 2))
    later = training_data(config_for(root))
    later.load_state_dict(json.loads(json.dumps(data.state_dict())))
    assert [batch.read_ids_B for batch in islice(later, 3)] == [batch.read_ids_B for batch in first[2:]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_without_an_intact_shard_nothing_is_left(root: Path, num_workers: int) -> None:
    for shard in range(4):
        raw_file(root, shard).unlink()
    data = training_data(config_for(root, num_workers=num_workers))
    assert not data.take_consumed().nothing_left
    batch = next(data)
    consumed = data.take_consumed()
    assert consumed.nothing_left
    assert set(batch.read_ids_B) == {NOTHING}
    assert batch.tokens_BT.eq(0).all()
    assert re.match(r"no shard in .*train is intact \(4 shards tried\); .*mds is missing", consumed.faults[0])
    next(data)
    again = data.take_consumed()
    assert again.nothing_left
    assert again.faults, "known faults are reported again, because they end the run"


@pytest.mark.parametrize("damage", [Path.unlink, truncate], ids=lambda damage: damage.__name__)
def test_damage_during_a_run(root: Path, damage: Callable[[Path], None]) -> None:
    data = training_data(config_for(root))
    assert_replaced(epochs_of(data), intact={0, 1, 2, 3})
    damage(raw_file(root, 3))
    batches = epochs_of(data)
    assert [fault.startswith(str(raw_file(root, 3))) for fault in data.take_consumed().faults] == [True]
    replaced = [asked for batch in batches for asked, read in zip(batch.ids_B, batch.read_ids_B, strict=True)
                if asked != read]  # fmt: skip
    assert replaced
    assert min(replaced) >= FIRST[3]
    assert all(((batch.tokens_BT[:, 0] // 10).numpy() == batch.read_ids_B).all() for batch in batches)


@pytest.mark.parametrize("hashes", [(), ("sha256", "xxh3_64"), ("md5",)])
def test_hashes_written_by_other_tools(
    tmp_path: Path, hashes: tuple[str, ...], pipeline_log: pytest.LogCaptureFixture
) -> None:
    write_split(tmp_path / "train", sizes=SIZES, length=LENGTH, hashes=hashes)
    truncate(raw_file(tmp_path, 0))
    flip_a_bit(raw_file(tmp_path, 1))
    data = training_data(config_for(tmp_path))
    batches = epochs_of(data, 2)
    warnings = [record.getMessage() for record in pipeline_log.records]
    if hashes:
        assert warnings == []
        assert_replaced(batches, intact={2, 3})
    else:
        assert len(warnings) == 1, "once"
        assert "index.json has no known hash for 4 of 4 files (part-0/shard.00000.mds, ...)" in warnings[0]
        assert len(data.take_consumed().faults) == 1
        assert all(batch.read_ids_B[row] == window for batch in batches for row, window in enumerate(batch.ids_B)
                   if window >= FIRST[1])  # fmt: skip


def test_nonsense_without_a_hash_is_reported(tmp_path: Path) -> None:
    write_split(tmp_path / "train", sizes=SIZES, length=LENGTH, hashes=())
    path = raw_file(tmp_path, 2)
    path.write_bytes(b"\xff" * path.stat().st_size)
    data = training_data(config_for(tmp_path))
    assert_replaced(epochs_of(data), intact={0, 1, 3})
    assert data.take_consumed().faults == [f"{path} does not hold 4 windows of {2 * LENGTH} bytes"]


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    write_split(tmp_path / "train", sizes=SIZES, length=LENGTH, compression="zstd")
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, flip_a_bit, make_a_folder], ids=lambda d: d.__name__)
def test_a_damaged_compressed_shard(compressed: Path, damage: Callable[[Path], None], num_workers: int) -> None:
    damage(zip_file(compressed, 1))
    data = training_data(config_for(compressed, num_workers=num_workers))
    assert_replaced(epochs_of(data), intact={0, 2, 3})
    (fault,) = data.take_consumed().faults
    assert fault.startswith(str(zip_file(compressed, 1)))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit], ids=lambda d: d.__name__)
def test_a_damaged_decompressed_shard_is_made_again(compressed: Path, damage: Callable[[Path], None]) -> None:
    epochs_of(training_data(config_for(compressed)))
    original = raw_file(compressed, 2).read_bytes()
    damage(raw_file(compressed, 2))
    data = training_data(config_for(compressed))
    assert_replaced(epochs_of(data), intact={0, 1, 2, 3})
    assert data.take_consumed().faults == []
    assert raw_file(compressed, 2).read_bytes() == original
    assert sorted(path.name for path in raw_file(compressed, 2).parent.iterdir()) == [
        "index.json", "shard.00000.mds", "shard.00000.mds.zstd"
    ]  # fmt: skip


def test_a_decompressed_shard_does_not_need_its_compressed_form(compressed: Path) -> None:
    epochs_of(training_data(config_for(compressed)))
    zip_file(compressed, 0).unlink()
    data = training_data(config_for(compressed))
    assert_replaced(epochs_of(data), intact={0, 1, 2, 3})
    assert raw_file(compressed, 0).is_file()


@pytest.mark.parametrize("content", [b"no archive", None])
def test_a_compressed_shard_without_hashes(tmp_path: Path, content: bytes | None) -> None:
    write_split(tmp_path / "train", sizes=SIZES, length=LENGTH, compression="zstd", hashes=())
    path, index = zip_file(tmp_path, 1), tmp_path / "train" / "index.json"
    if content is None:  # a valid archive with other content
        path.write_bytes(zip_file(tmp_path, 2).read_bytes())
    else:
        path.write_bytes(content)
    index.write_text(_with(index, 1, "zip_data", "bytes", path.stat().st_size))
    data = training_data(config_for(tmp_path))
    assert_replaced(epochs_of(data), intact={0, 2, 3})
    (fault,) = data.take_consumed().faults
    assert fault.startswith(f"{path}{' cannot be decompressed' if content else ', decompressed, has'}")


BOMB = """
import resource, sys
from pathlib import Path
from itertools import islice
from tests.helpers.batches import config_for, training_data
data = training_data(config_for(Path(sys.argv[1])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
list(islice(data, 9))
print(*data.take_consumed().faults, sep="\\n")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("compression", ["zstd", "gz", "bz2"])
def test_an_archive_of_more_than_its_index_says_takes_little_memory(tmp_path: Path, compression: str) -> None:
    write_split(tmp_path / "train", sizes=SIZES, length=LENGTH, compression=compression, hashes=())
    path, index = raw_file(tmp_path, 1).with_suffix(f".mds.{compression}"), tmp_path / "train" / "index.json"
    compress: dict[str, Callable[[bytes], bytes]] = {
        "zstd": zstandard.ZstdCompressor().compress, "gz": lambda data: gzip.compress(data, 1), "bz2": bz2.compress
    }  # fmt: skip
    path.write_bytes(compress[compression](bytes(1 << 30)))
    index.write_text(_with(index, 1, "zip_data", "bytes", path.stat().st_size))
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    fault, more_mib = done.stdout.splitlines()
    assert fault.startswith(f"{path}, decompressed, has ")
    assert int(more_mib) < 100


def test_ids_beyond_the_vocabulary_are_damage_although_the_hash_fits(root: Path) -> None:
    config = config_for(root)
    largest_but_of_shard_3 = 10 * FIRST[3] + LENGTH
    config = replace(config, model=replace(config.model, vocab_size=largest_but_of_shard_3))
    data = training_data(config)
    assert_replaced(epochs_of(data), intact={0, 1, 2})
    largest = 10 * (N_WINDOWS - 1) + LENGTH - 1
    assert data.take_consumed().faults == [
        f"{raw_file(root, 3)} holds the id {largest}, but there are only {largest_but_of_shard_3} ids"
    ]


def test_windows_must_be_long_enough_for_the_model(root: Path) -> None:
    with pytest.raises(UserError, match=r"index\.json has windows of 7 tokens, but a run needs one length, 8 or more"):
        training_data(config_for(root, seq_len=6))


def _with(index: Path, shard: int, section: str, field: str, value: Any) -> str:
    content = json.loads(index.read_text())
    content["shards"][shard][section][field] = value
    return json.dumps(content)


def test_validation_reports_and_replaces_too(root: Path) -> None:
    (root / "train").rename(root / "val")
    path = root / "val" / "part-0" / "shard.00000.mds"
    truncate(path)
    validation = validation_data(config_for(root), n_windows=N_WINDOWS)
    batches = list(validation)
    assert ids_of(batches) == list(range(N_WINDOWS))
    assert_replaced(batches, intact={1, 2, 3})
    assert [fault.startswith(f"{path} has ") for fault in validation.take_consumed().faults] == [True]
    list(validation)
    assert validation.take_consumed().faults == []


@pytest.mark.parametrize("name", ["../elsewhere/shard.mds", "/etc/passwd", "part-0/../../shard.mds", "", 5])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_index_cannot_name_files_elsewhere(root: Path, split: str, name: object) -> None:
    if split == "val":
        shutil.copytree(root / "train", root / "val")
    index = root / split / "index.json"
    index.write_text(_with(index, 2, "raw_data", "basename", name))
    with pytest.raises(UserError, match=r"index\.json names the file .* not a path inside"):
        training_data(config_for(root)) if split == "train" else validation_data(config_for(root), n_windows=8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("{", "is not an index of shards"),
        ("[]", "is not an index of shards"),
        ('{"version": 2, "shards": [{"samples": 3, "raw_data": {}}]}', "is not an index of shards"),
        ('{"version": 2, "shards": []}', "names no samples"),
    ],
)
def test_a_damaged_index_is_reported(root: Path, content: str | None, message: str) -> None:
    index = root / "train" / "index.json"
    index.unlink() if content is None else index.write_text(content)
    with pytest.raises(UserError, match=f"index.json {message}"):
        training_data(config_for(root))


def test_an_epoch_that_ends_early_is_an_error(root: Path) -> None:
    data = training_data(config_for(root))
    next(data)
    data._loader.dataset._event.set()  # as streaming does when one of its threads dies
    with pytest.raises(RuntimeError, match=r"ended an epoch after \d+ of 36 windows"):
        epochs_of(data)


def test_consumed_samples_are_grouped_by_epoch(root: Path) -> None:
    raw_file(root, 1).unlink()
    data = training_data(config_for(root, micro_batch_size=6, windows_per_step=12))
    assert data.take_consumed().samples == []
    batches = list(islice(data, 7))  # six are an epoch
    (first, of_first), (second, of_second) = data.take_consumed().samples
    assert (first, second) == (0, 1)
    for recorded, of_epoch in ((of_first, batches[:6]), (of_second, batches[6:])):
        assert [sample if isinstance(sample, int) else sample[0] for sample in recorded] == ids_of(of_epoch)
        assert [sample for sample in recorded if not isinstance(sample, int)] == [
            (window, place_of(window, intact={0, 2, 3})) for window in ids_of(of_epoch) if 10 <= window < 20
        ]
    assert data.take_consumed().samples == []


COUNTING = """
import builtins, io, sys
from itertools import islice
from pathlib import Path
from pipeline.runtime.world import world_from_environment
from tests.helpers.batches import config_for, training_data
world_from_environment()
data = training_data(config_for(Path(sys.argv[1]), num_workers=1))
sys.addaudithook(lambda event, args: event == "open" and args[2] & 0o3 == 0 and str(args[0]).endswith(".mds")
                 and print(args[0], flush=True))
list(islice(data, 27))
"""


def test_a_shard_is_verified_once_in_a_run(root: Path) -> None:
    """Each read opens the file once, and verification twice more, although each of three epochs has new workers."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, str(root)], cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    opened_files = done.stdout.splitlines()
    for shard, size in enumerate(SIZES):
        assert opened_files.count(str(raw_file(root, shard))) == 3 * size + 2
