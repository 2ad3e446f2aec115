"""Files of others are read by `common/small_files`, and names printed by `say`; the tables have all other calls."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGES = ("common", "data_prep", "pipeline")
_PARSERS = {"json.load", "json.loads", "yaml.load", "yaml.safe_load", "tomllib.load", "tomllib.loads", "np.load",
            "torch.load", "pickle.load", "pickle.loads"}  # fmt: skip
PRINTING = {
    "common/command_line.py": "say itself, and the version",
    "common/endings.py": "messages, which it escapes",
    "data_prep/check_shards.py": "the text of windows, in which window_text escapes and colors",
    "data_prep/deduplicate_corpus.py": "words of our own",
    "pipeline/convert.py": "words of our own",
    "data_prep/sources/standard_input.py": "words of our own",
    "data_prep/workers.py": "words of our own",
    "pipeline/check_run.py": "the run directory, for scripts",
    "pipeline/config/inputs.py": "the list of fields",
    "pipeline/generate.py": "completions, for programs",
    "pipeline/inference/decoding/interactive.py": "completions, as they come",
    "pipeline/inference/evaluation/sandbox_init.py": "JSON, for the process that started it",
    "pipeline/plan.py": "a plan, of numbers and of names from our own files",
}
"""The modules that print without `say`, and what they print."""
_READERS = {"read_text", "read_bytes", "safe_open"}

OURS = "a file of this project"
KERNEL = "a file of the kernel"
OWN_TEXT = "text that this process, or one that it started, has just made"
OWN_FILE = "a file that this process has just written"
S3 = "an object of S3, with its own limit"
OBJECT = "an object of S3 whose size was compared before"
ARRAY = "an array, from a file that small_files has opened; no pickles"
RECORDS = "a corpus: a record that is no JSON is dropped and counted, and its length is limited"
CORPUS = "a corpus: the listing gives regular files only, whose sizes are limited or which are read piece by piece"
VERIFIED = "a shard's file, whose size and hash were compared before"
REGULAR = "whether it is a regular file was looked up before; the format's own library reads it"
SMALL_FILES = "the one reader itself"
ALLOWED: dict[tuple[str, str], str] = {
    ("common/command_line.py", "tomllib.loads"): OURS,
    ("common/command_line.py", "PYPROJECT.read_text"): OURS,
    ("common/files.py", "json.loads"): OWN_TEXT,
    ("common/files.py", "partial.open"): OWN_FILE,
    ("common/files.py", "Path('/proc/sys/kernel/random/boot_id').read_text"): KERNEL,
    ("common/s3.py", "path.open"): "a file that has been compared with its index",
    ("common/s3.py", "path.read_bytes"): "a file that has been compared with its index",
    ("common/s3.py", "self.read_bytes"): OBJECT,
    ("common/shard_format.py", "path.read_bytes"): S3,
    ("common/small_files.py", "json.loads"): SMALL_FILES,
    ("common/small_files.py", "yaml.load"): SMALL_FILES,
    ("common/small_files.py", "open"): SMALL_FILES,
    ("data_prep/dedup/survey.py", "np.load"): ARRAY,
    ("data_prep/filters/changes.py", "np.load"): ARRAY,
    ("data_prep/shards/identity.py", "json.loads"): OWN_TEXT,
    ("data_prep/shards/identity.py", "path.read_bytes"): S3,
    ("data_prep/shards/part_writer.py", "path.open"): OWN_FILE,
    ("data_prep/shards/upload.py", "(remote / name).read_bytes"): OBJECT,
    ("data_prep/sources/formats/json_records.py", "json.loads"): RECORDS,
    ("data_prep/sources/formats/opening.py", "open"): CORPUS,
    ("data_prep/sources/formats/opening.py", "fsspec.open"): "a file of the Hub, as a stream",
    ("data_prep/sources/formats/opening.py", "fsspec.open(path, 'rb').open"): "a file of the Hub, as a stream",
    ("data_prep/sources/formats/whole_files.py", "open"): CORPUS,
    ("pipeline/data/verify.py", "path.open"): VERIFIED,
    ("pipeline/data/window_file.py", "open"): VERIFIED,
    ("pipeline/inference/evaluation/completion_log.py", "json.loads"): OWN_TEXT,
    ("pipeline/inference/evaluation/sandbox.py", "json.loads"): OWN_TEXT,
    ("pipeline/inference/evaluation/sandbox.py", "_PROGRAM.read_text"): OURS,
    ("pipeline/inference/evaluation/sandbox.py", "Path(f'/proc/{pid}/smaps_rollup').read_text"): KERNEL,
    ("pipeline/inference/evaluation/sandbox_init.py", "json.loads"): OWN_TEXT,
    ("pipeline/inference/evaluation/sandbox_init.py", "children.read_text"): KERNEL,
    ("pipeline/monitoring/profiling.py", "path.read_bytes"): OWN_FILE,
    ("pipeline/monitoring/profiling.py", "json.loads"): OWN_TEXT,
    ("pipeline/monitoring/reporting/page.py", "(Path(__file__).parent / 'page.css').read_text"): OURS,
    ("pipeline/runtime/history.py", "json.loads"): OWN_TEXT,
    ("pipeline/runtime/watchdog.py", "json.loads"): OWN_TEXT,
    ("pipeline/weights/checkpoint/manifest.py", "path.open"): REGULAR,
    ("pipeline/weights/formats/huggingface/folder.py", "safe_open"): REGULAR,
    ("pipeline/weights/formats/meta.py", "torch.load"): REGULAR,
}


def reading_calls(path: Path) -> Iterator[str]:
    """Yield the functions that a module calls to read a file or to parse a text that may come from one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = called.rpartition(".")[2]
            if called in _PARSERS or name in _READERS or (name == "open" and _reads(node)):
                yield called


def _reads(node: ast.Call) -> bool:
    """Return whether a call of a function `open` has a mode that only reads; without a mode, it does."""
    if ast.unparse(node.func).startswith(("os.", "format_of(")):  # formats of weights have a function `open`
        return False
    modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and str(arg.value).strip("rwaxb+t") == ""]
    return not modes or modes[0] in ("r", "rb", "rt")


def test_what_others_hand_over_is_read_in_one_way() -> None:
    found = {
        (str(path.relative_to(REPOSITORY)), called)
        for package in PACKAGES
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        for called in reading_calls(path)
    }
    assert found - ALLOWED.keys() == set(), "read it with common/small_files, or add the reason to the table"
    assert ALLOWED.keys() - found == set(), "no longer there"


def test_names_that_others_chose_are_printed_by_say() -> None:
    """It escapes what a terminal would obey."""
    found = {
        str(path.relative_to(REPOSITORY))
        for package in PACKAGES
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert found == PRINTING.keys()


def test_calls_that_read_are_found(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "json.loads(x)\np.read_text()\nopen(p)\np.open()\np.open('rb')\nnp.load(p)\n"
        "p.open('wb')\nopen(p, 'a')\nos.open(p, 0)\nformat.open_regular_file(p)\n"
    )
    found = Counter(reading_calls(tmp_path / "m.py"))
    assert found == {"json.loads": 1, "p.read_text": 1, "open": 1, "p.open": 2, "np.load": 1}
