"""Readers of problems, of prompts, and of what an evaluation has left in its folder."""

import gzip
import json
from collections.abc import Callable

from tests.fuzz import mutations
from tests.fuzz.reader import Folder, Reader
from tests.helpers.own_problems import HUMANEVAL, MBPP, SANITIZED_MBPP, write_jsonl

_SETTINGS = {"ckpt_dir": "/x", "seed": 1, "temperatures": [0.2, 0.8], "files": {"params.json": "3 bytes"}}
_SAMPLES = [
    {"task_id": "Own/0", "temperature": 0.2, "number": n, "completion": "    return 1\n", "ended": "eos"}
    for n in (0, 1)
]


def _problems(folder: Folder) -> None:
    """Write problems in each format."""
    write_jsonl(folder / "humaneval.jsonl", HUMANEVAL)
    write_jsonl(folder / "mbpp.jsonl", MBPP)
    (folder / "sanitized.json").write_text(json.dumps(SANITIZED_MBPP))
    (folder / "humaneval.jsonl.gz").write_bytes(gzip.compress((folder / "humaneval.jsonl").read_bytes()))


def _load_problems(name: str) -> Callable[[Folder], None]:
    def read(folder: Folder) -> None:
        from pipeline.inference.evaluation.problems import load_problems

        load_problems(folder / name)

    return read


def _evaluation(folder: Folder) -> None:
    """Write the folder of an evaluation."""
    (folder / "settings.json").write_text(json.dumps(_SETTINGS))
    write_jsonl(folder / "samples.jsonl", _SAMPLES)


def _open_folder(folder: Folder) -> None:
    from pipeline.inference.evaluation.completion_log import open_folder

    open_folder(folder, _SETTINGS)


def _read_log(folder: Folder) -> None:
    from pipeline.inference.evaluation.completion_log import CompletionLog

    with CompletionLog(folder / "samples.jsonl", fields=("completion", "ended")) as log:
        log.refuse_others({("Own/0", 0.2, 0), ("Own/0", 0.2, 1)})


def _prompts(folder: Folder) -> None:
    """Write prompts in both formats."""
    (folder / "prompts.txt").write_text("def f(x):\nimport os\n")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": "def f(x):\n"}, {"prompt": "import os\n"}])


def _read_prompts(name: str) -> Callable[[Folder], None]:
    def read(folder: Folder) -> None:
        from common.tokenizers import load_tokenizer
        from pipeline.inference.decoding.prompts import encode_prompts, read_prompts

        encode_prompts(read_prompts(folder / name), load_tokenizer("bytes"), first_token=None)

    return read


def _of(file: str, *, changes: mutations.Changes = mutations.json_lines) -> Reader:
    return Reader(file=file, make=_problems, read=_load_problems(file), changes=changes)


READERS: dict[str, Reader] = {
    "problems, HumanEval": _of("humaneval.jsonl"),
    "problems, HumanEval, .gz": _of(
        "humaneval.jsonl.gz",
        changes=mutations.packed(mutations.json_lines, unpack=gzip.decompress, pack=gzip.compress),
    ),
    "problems, MBPP": _of("mbpp.jsonl"),
    "problems, sanitized MBPP": _of("sanitized.json", changes=mutations.json_file),
    "settings.json": Reader(file="settings.json", make=_evaluation, read=_open_folder),
    "samples.jsonl": Reader(
        file="samples.jsonl", make=_evaluation, read=_read_log, changes=mutations.json_lines, most_bytes=256 << 20
    ),
    "prompts": Reader(
        file="prompts.txt", make=_prompts, read=_read_prompts("prompts.txt"), changes=mutations.binary
    ),
    "prompts, .jsonl": Reader(
        file="prompts.jsonl", make=_prompts, read=_read_prompts("prompts.jsonl"), changes=mutations.json_lines
    ),
}  # fmt: skip
