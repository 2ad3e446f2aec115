"""The import of streaming, with a working and a broken torchvision, and transformers imported before and after."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

_PRINT = "import sys; print(sorted(name for name in sys.modules if name.partition('.')[0] == 'torchvision'))"


def _run(code: str, first_on_path: Path) -> str:
    """Run `code` in a fresh interpreter with a folder before everything else on its path; return its last line."""
    prelude = f"import sys; sys.path[:0] = [{str(first_on_path)!r}, {str(REPOSITORY)!r}]\n"
    done = subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def _fake_torchvision(folder: Path, *, body: str) -> None:
    (folder / "torchvision" / "transforms").mkdir(parents=True)
    (folder / "torchvision" / "__init__.py").write_text(f"import torchvision.half_way\n{body}\n")
    (folder / "torchvision" / "half_way.py").touch()
    (folder / "torchvision" / "datasets.py").write_text("VisionDataset = type('VisionDataset', (), {})")
    (folder / "torchvision" / "transforms" / "__init__.py").touch()
    (folder / "torchvision" / "transforms" / "functional.py").write_text("to_tensor = None")


def test_streaming_can_be_imported_beside_a_broken_torchvision(tmp_path: Path) -> None:
    _fake_torchvision(tmp_path, body="raise RuntimeError('operator torchvision::nms does not exist')")
    code = f"from common.mds import streaming; assert streaming.MDSWriter and streaming.StreamingDataset; {_PRINT}"
    assert _run(code, tmp_path) == "[]"


def test_a_torchvision_that_was_imported_before_is_left_alone(tmp_path: Path) -> None:
    _fake_torchvision(tmp_path, body="WORKS = True")
    code = (
        "import torchvision.datasets; from common.mds import streaming; import streaming.vision.base as base\n"
        "assert torchvision.WORKS and base.VisionDataset is torchvision.datasets.VisionDataset\n"
        f"{_PRINT}"
    )
    assert "torchvision.half_way" in _run(code, tmp_path)


def test_later_imports_find_the_real_transformers(tmp_path: Path) -> None:
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("REAL = True")
    (tmp_path / "transformers" / "models.py").touch()
    code = (
        "from common.mds import streaming; assert 'transformers' not in sys.modules\n"
        "assert not isinstance([], (streaming.base.dataloader.BatchEncoding, streaming.base.dataloader.BatchFeature))\n"
        "import transformers.models; print(transformers.REAL, transformers.models.__file__)"
    )
    assert _run(code, tmp_path) == f"True {tmp_path / 'transformers' / 'models.py'}"


def test_stand_ins_can_be_looked_up_and_are_removed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from common.mds import stand_ins

    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "transformers")]:
        monkeypatch.delitem(sys.modules, name)
    with stand_ins():
        assert importlib.util.find_spec("torchvision") is not None  # raises ValueError for a module without __spec__
        assert importlib.util.find_spec("transformers") is not None
    assert "torchvision" not in sys.modules
    assert "transformers" not in sys.modules


def test_commands_do_not_import_torch_before_they_need_it() -> None:
    code = (
        "import sys; import data_prep.write_shards, data_prep.check_shards, data_prep.train_tokenizer\n"
        "print([name for name in ('torch', 'streaming', 'transformers') if name in sys.modules])"
    )
    assert _run(code, REPOSITORY) == "[]"
