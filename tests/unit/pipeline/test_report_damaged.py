"""The page about runs whose files are damaged, missing, from another version, or contain markup."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.run_folders import Write, paged, write_run_folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(write_run_folder, tmp_path)


def cut(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 41, "loss/to')


def other_version(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text() + "quantum: {qubits: 7}\n")


def garbage(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file() and path.name != "metrics.jsonl":
            path.write_bytes(b"\xff\xfe\x00{[" * 50)
    (folder / "bad_steps.jsonl").write_text("[" * 100_000 + '\n{"step": "x"}\n7\n')


def odd_lines(folder: Path) -> None:
    odd = [
        '{"step": -1}',
        '{"step": true}',
        '{"loss/head_1": 3}',
        f'{{"step": 3, "x": 1{"0" * 400}}}',
        "[]",
        "nonsense",
    ]
    path = folder / "metrics.jsonl"
    path.write_text("\n".join(odd) + "\n" + path.read_text() + '{"step": 41, "x": NaN, "y": -Infinity, "z": null}\n')


def nothing_but_config(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("config.yaml", "checkpoints"):
            path.unlink()


def all_null(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    nulls = [{tag: value if tag in ("step", "tokens") else None for tag, value in line.items()} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in nulls))


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (cut, ["metrics.jsonl: the last line is cut short and left out"]),
        (other_version, ["this version does not accept all of config.yaml: unknown key quantum"]),
        (
            garbage,
            [
                "config.yaml cannot be read",
                "ds_config.json cannot be read",
                "bad_steps.jsonl: 2 lines are not JSON objects",
            ],
        ),
        (
            odd_lines,
            ["metrics.jsonl: 3 lines have no step", "metrics.jsonl: 2 lines are not JSON objects", "x: 2 of 2 logged"],
        ),
        (nothing_but_config, ["metrics.jsonl is missing", "history.jsonl is missing", "environment.json is missing"]),
        (all_null, ["loss/head_1: 40 of 40 logged values are not finite"]),
    ],
)
def test_problems_are_named_and_the_rest_is_shown(
    damage: Callable[[Path], None], messages: list[str], write: Write, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = write()
    damage(folder)
    for others in ((), (write("whole"),)):
        _, text = paged(folder, *others, output=tmp_path / "out.html")
        warned = capsys.readouterr().err
        for message in messages:
            assert message in text
            assert f"pipeline.report: warning: try: {message}" in warned


def test_names_and_values_cannot_inject_markup(write: Write, tmp_path: Path) -> None:
    evil = "<script>alert(1)<"
    folder = write(evil, changes={1: {'"><img src=x onerror=alert(1)>\ud800': 1.0}})
    (folder / "environment.json").write_text(json.dumps({"device": "</td><script>", "packages": {"<i>": ["&amp;"]}}))
    (folder / "train.log").write_text("2026-11-21 10:00:00,000 ERROR </pre><script>alert(2)</script>\n")
    _, text = paged(folder, output=tmp_path / "out.html")
    assert evil in text
    assert "</td><script>" in text
    assert "</pre><script>alert(2)</script>" in text
