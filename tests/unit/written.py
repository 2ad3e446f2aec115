"""What the tests of write_shards share: a small corpus, its arguments, and what was written."""

import shutil
import sysconfig
from pathlib import Path
from typing import Any

STDLIB = Path(sysconfig.get_path("stdlib"))
SEQ_LEN, LOOKAHEAD = 64, 8


def make_corpus(folder: Path) -> Path:
    """Make a folder of Python sources of about 400 kB, with a duplicate, an empty file and a binary one."""
    shutil.copytree(STDLIB / "json", folder / "json", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(STDLIB / "email", folder / "email", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(folder / "json" / "decoder.py", folder / "zz_copy.py")
    (folder / "empty.py").touch()
    (folder / "binary.py").write_bytes(b"\0\1")
    return folder


def files_of(root: Path) -> dict[str, bytes]:
    """Return each file below a folder, by its path in it."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def arguments_for(corpus: Path, model: Path, out: Path, **changes: Any) -> list[str]:
    """Return write_shards' arguments for several parts of `corpus`."""
    options = {
        "input": corpus,
        "tokenizer": model,
        "out": out,
        "seq_len": SEQ_LEN,
        "lookahead": LOOKAHEAD,
        "val_fraction": 0.2,
        "part_bytes": 100_000,
        "num_workers": 1,
    } | changes
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def byte_arguments(corpus: Path, out: Path, **changes: Any) -> list[str]:
    """Return write_shards' arguments for several parts of bytes, without equal documents."""
    options = {"input": corpus, "tokenizer": "bytes", "out": out, "seq_len": SEQ_LEN, "val_fraction": 0.2,
               "part_bytes": 60_000, "num_workers": 1, "dedup": "exact"} | changes  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]
