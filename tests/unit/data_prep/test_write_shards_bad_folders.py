"""Full disks, missing permissions, damaged folders and Ctrl-C: one message, and the same command continues."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.command_line import UserError
from common.shard_format import METADATA
from data_prep import check_shards, merge_shards, report, stats, train_tokenizer, write_shards
from tests.conftest import REPOSITORY
from tests.helpers.shard_writing import byte_arguments, copy_packages, files_of, held_in_part, held_run, written_files

WITHOUT_PRIVILEGE = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")  # so that permissions bind root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python sources of 500 kB."""
    return copy_packages(tmp_path_factory.mktemp("corpus"), "email", "json")


@pytest.fixture(scope="module")
def reference(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one undisturbed run."""
    out = tmp_path_factory.mktemp("reference") / "out"
    return written_files(byte_arguments(corpus, out), out)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that resizes a file system made for the test to a number of kB, and returns its path."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")

    def sized(n_kilobytes: int) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={n_kilobytes}k", str(folder)], check=True)
        return folder

    yield sized
    subprocess.run(["umount", str(folder)], check=True)


def test_a_run_continues_after_a_full_disk(
    corpus: Path, tmp_path: Path, reference: dict[str, bytes], disk: Callable[[int], Path]
) -> None:
    out = disk(64) / "out"
    (out.parent / "filling").write_bytes(bytes(60 << 10))
    for n_kilobytes in (64, 800):  # too small for the plan, then for all shards
        disk(n_kilobytes)
        with pytest.raises(
            UserError, match=r"cannot write.*: No space left on device; make room, then run the same comm"
        ):
            write_shards.main(byte_arguments(corpus, out))
        assert not (out / METADATA).exists()
    assert list(out.glob("work/part-*[0-9].json"))
    model = out.parent / "tokenizer.model"
    words = ["--input", str(corpus / "json"), "--output", str(model), "--vocab_size", "400", "--num_threads", "1"]
    (out.parent / "more").write_bytes(bytes(_free(out.parent)))
    with pytest.raises(UserError, match=r"cannot write --output .*tokenizer\.model: No space left on device"):
        train_tokenizer.main(words)
    assert not model.exists()
    disk(8000)
    write_shards.main(byte_arguments(corpus, out))
    assert files_of(out) == reference


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_bsize


def test_missing_permissions_are_reported(corpus: Path, tmp_path: Path) -> None:
    if subprocess.run([*WITHOUT_PRIVILEGE, "true"], check=False, capture_output=True).returncode and os.geteuid() == 0:
        pytest.skip("root ignores permissions here")
    prefix = WITHOUT_PRIVILEGE if os.geteuid() == 0 else ()
    closed, hidden = tmp_path / "closed", tmp_path / "hidden"
    closed.mkdir()
    hidden.mkdir()
    (hidden / "a.py").write_text("x = 1")
    closed.chmod(0o555)
    hidden.chmod(0o000)
    new = tmp_path / "out"
    for given, into, message in (
        (corpus, closed / "out", f"cannot write to --out {closed}/out: Permission denied"),
        (hidden, new, f"input '{hidden}' holds nothing that can be read ({hidden}: Permission denied)"),
        (hidden / "a.py", new, f"input '{hidden}/a.py' cannot be read: Permission denied"),
    ):
        command = [*prefix, sys.executable, "-m", "data_prep.write_shards", *byte_arguments(given, into)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (2, f"data_prep.write_shards: error: {message}\n")
    assert not new.exists()


def test_a_file_in_place_of_a_folder_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    for command in (check_shards.main, stats.main, merge_shards.main, report.main):
        with pytest.raises(UserError, match=r"file/.*\.json cannot be read.*Not a directory"):
            command([str(path)])


def test_ctrl_c_prints_a_line_and_the_same_command_continues(
    corpus: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    run = held_run(
        byte_arguments(corpus, out), held_in_part(1, file=tmp_path / "held"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    os.killpg(run.pid, signal.SIGINT)  # as a terminal sends it
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 130
    assert errors.endswith("\ninterrupted; run the same command to continue\n")  # after the progress bar
    assert "Traceback" not in errors
    write_shards.main(byte_arguments(corpus, out))
    assert files_of(out) == reference


@pytest.fixture(scope="module")
def unmerged(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all parts are written, but not merged."""
    out = tmp_path_factory.mktemp("unmerged") / "out"
    for more in (["--survey_only"], []):
        for number in (1, 2):
            write_shards.main([*byte_arguments(corpus, out), "--part", f"{number}/2", *more])
    return out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("work/plan.json", b"{", r"work/plan\.json is damaged"),
        ("work/plan.json", b"[]", r"work/plan\.json is damaged"),
        (
            "work/part-00001.json",
            b"{",
            r"parts? (is|are) missing in .* \(part-00001\): .*; run the same command with --part",
        ),
        ("work/part-00001.json", b"[]", r"parts? (is|are) missing in .* \(part-00001\): .*; run the same"),
        (
            "train/part-00001/index.json",
            None,
            r"part-00001/index\.json is missing; delete .*work/part-00001\.json, and run",
        ),
        ("train/part-00001/index.json", b"{", r"part-00001/index\.json is not an index of shards: .*; delete "),
    ],
)
def test_a_damaged_folder_is_not_merged(
    name: str, content: bytes | None, message: str, unmerged: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(unmerged, out)
    if content is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        merge_shards.main([str(out)])
    assert not (out / METADATA).exists()


@pytest.mark.parametrize("name", ["part-00001.survey.npz", "part-00001.decision.npy"])
def test_damaged_surveys_and_decisions_are_named_and_can_be_replaced(
    name: str, corpus: Path, unmerged: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(unmerged, out)
    for lost in (*out.glob("work/part-*[0-9].json"), *([] if "decision" in name else out.glob("work/*.decision.npy"))):
        lost.unlink()
    path = out / "work" / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{name} is damaged: .*; delete it, and run the same command again"):
        write_shards.main(byte_arguments(corpus, out))
    path.unlink()
    write_shards.main(byte_arguments(corpus, out))
    assert files_of(out) == reference
