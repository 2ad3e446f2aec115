"""Tests of the folders that an export may replace, and of their contents when it is killed at any moment."""

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.command_line import UserError
from common.files import remove_leftovers
from pipeline import convert
from pipeline.weights.formats.detect import format_of
from pipeline.weights.formats.publish import checked_output
from pipeline.weights.formats.record import read_record, write_record
from pipeline.weights.formats.stored_model import load_model
from tests.helpers.exports import exported, write_checkpoint
from tests.helpers.references import tiny_model


def converted(source: Path, output: Path, *, to: str = "meta") -> Path:
    convert.main(["--input", str(source), "--to", to, "--output", str(output)])
    return output


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(output: Path, source: Path) -> str:
    with pytest.raises(UserError) as error:
        convert.main(["--input", str(source), "--to", "meta", "--output", str(output)])
    return str(error.value)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with one checkpoint, which is also a whole model of its own."""
    write_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000010", tiny_model())
    (tmp_path / "run" / "config.yaml").write_text("{}")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("run/checkpoints/step_00000010", "lies among the checkpoints of the run"),
        ("run/checkpoints", "lies among the checkpoints of the run"),
        ("run/checkpoints/step_00000020", "lies among the checkpoints of the run"),
        ("run/checkpoints/step_00000010/export", "lies in the checkpoint"),
        ("run", "is the input itself"),
        (".", "holds the input"),
        ("linked", "lies among the checkpoints of the run"),
        ("loop", "cannot be used"),
        ("copy/export", "lies in the checkpoint"),
        ("copy", "holds 'manifest.json', and no export of pipeline.convert"),
        ("written", "holds 'README.md', and no export of pipeline.convert"),
        ("fifo", "is a file; give a folder"),
    ],
)
def test_nothing_but_an_export_is_replaced(output: str, message: str, run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir / "checkpoints" / "step_00000010", tmp_path / "copy")
    (tmp_path / "written").mkdir()
    (tmp_path / "written" / "README.md").write_text("by hand")
    (tmp_path / "linked").symlink_to(run_dir / "checkpoints" / "step_00000010")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    before = contents(tmp_path)
    told = refusal(tmp_path / output, run_dir)
    assert told.startswith(f"--output {tmp_path / output} ")
    assert message in told
    assert contents(tmp_path) == before


def test_an_export_is_not_replaced_by_itself(tmp_path: Path) -> None:
    export = converted(exported(tmp_path / "start", tiny_model()), tmp_path / "out")
    before = contents(export)
    assert "is the input itself" in refusal(export, export)
    assert contents(export) == before


@pytest.mark.parametrize("to", ["meta", "hf", "deepspeed"])
def test_an_export_that_a_person_changed_is_not_replaced(to: str, tmp_path: Path) -> None:
    start = exported(tmp_path / "start", tiny_model())
    export = converted(start, tmp_path / "out", to=to)
    changed = {
        "notes.txt": b"mine",
        "deep/notes.txt": b"mine",
        "params.json" if to == "meta" else "config.json" if to == "hf" else "training_state.json": b"{}",
    }
    for name, text in changed.items():
        before = contents(export).get(name)
        (export / name).parent.mkdir(exist_ok=True)
        (export / name).write_bytes(text)
        assert f"holds an export in which {name!r} was added or changed" in refusal(export, start)
        assert (export / name).read_bytes() == text
        (export / name).unlink() if before is None else (export / name).write_bytes(before)
    assert converted(start, export) == export


def test_a_record_that_was_not_written_here_protects_its_folder(tmp_path: Path) -> None:
    start, out = exported(tmp_path / "start", tiny_model()), tmp_path / "out"
    out.mkdir()
    for text in ("{}", "[", '{"format_version": 1, "first_token": "eos", "seq_len": 0, "files": {}}'):
        (out / "export.json").write_text(text)
        assert "export.json" in refusal(out, start)
    (out / "export.json").unlink()
    os.mkfifo(out / "export.json")
    assert "a FIFO, not a file" in refusal(out, start)


def end_of(source: Path, output: Path, *, dies_before: int) -> int:
    """Convert in a forked process that kills itself before its nth change of a folder; return how it ended."""
    process = os.fork()
    if process == 0:
        calls = itertools.count()

        def dying(change: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(calls) == dies_before:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*arguments, **options)

            return call

        try:
            Path.replace, Path.mkdir = dying(Path.replace), dying(Path.mkdir)  # type: ignore[method-assign]
            shutil.rmtree = dying(shutil.rmtree)  # type: ignore[assignment]
            remove_leftovers.cache_clear()
            converted(source, output)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def which(folder: Path) -> int:
    """Return the seed of the model in a folder, 1 or 2, whose weights must all be there."""
    weights = load_model(format_of(folder).open(folder)).state_dict()
    models = {seed: tiny_model(seed=seed).state_dict() for seed in (1, 2)}
    (seed,) = (seed for seed, model in models.items() if all(torch.equal(weights[name], model[name]) for name in model))
    return seed


@pytest.mark.parametrize("has_earlier", [True, False])
def test_killed_at_any_moment_the_old_or_the_new_export_is_whole(has_earlier: bool, tmp_path: Path) -> None:
    """Before each file and folder that it makes, renames or deletes; and the next conversion leaves nothing behind."""
    (tmp_path / "exports").mkdir()
    old, new = (exported(tmp_path / name, tiny_model(seed=seed)) for seed, name in ((1, "old"), (2, "new")))
    output, killed, moments = tmp_path / "exports" / "out", True, set()
    for moment in range(100):
        if not killed:
            break
        shutil.rmtree(tmp_path / "exports")
        (tmp_path / "exports").mkdir()
        if has_earlier:
            converted(old, output)
        end = end_of(new, output, dies_before=moment)
        assert end in (0, -signal.SIGKILL)
        killed = end != 0
        found = checked_output(output, source=new)
        record = read_record(found) if found.exists() else None
        assert record is not None or not has_earlier
        if record is not None:
            moments.add(which(found))
        remove_leftovers.cache_clear()  # as in a new process
        converted(new, output)
        assert os.listdir(tmp_path / "exports") == ["out"]
    assert not killed
    assert moments == ({1, 2} if has_earlier else {2})


def test_an_export_that_was_moved_aside_is_named_to_its_readers(tmp_path: Path) -> None:
    (tmp_path / ".out.former").mkdir()
    with pytest.raises(UserError, match=r"out does not exist; a conversion that was killed has left it as .*former"):
        format_of(tmp_path / "out")


def test_a_record_without_a_length_is_read(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text('{"format_version": 1, "first_token": "eos", "files": {}}')
    record = read_record(tmp_path)
    assert record is not None
    assert record.seq_len is None


def test_a_record_names_every_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("/")
    write_record(tmp_path, first_token="none", seq_len=7)
    record = read_record(tmp_path)
    assert record is not None
    assert (record.first_token, record.seq_len) == ("none", 7)
    assert record.files == {"deep/file": 4, "link": 1}
