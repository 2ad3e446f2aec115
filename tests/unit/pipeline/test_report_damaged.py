"""The page about runs whose files are damaged, missing, from another version, or contain markup."""

import itertools
import json
import os
import re
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
        (other_version, ["this version does not accept all of config.yaml: unknown section quantum"]),
        (
            garbage,
            [
                "config.yaml is not YAML",
                "ds_config.json is not JSON",
                "bad_steps.jsonl: 2 lines are not JSON objects",
            ],
        ),
        (
            odd_lines,
            ["metrics.jsonl: 3 lines have no step", "metrics.jsonl: 3 lines are not JSON objects", "x: 1 of 1 logged"],
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


FILES = ("metrics.jsonl", "config.yaml", "ds_config.json", "environment.json", "history.jsonl", "bad_steps.jsonl")


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, link_to_zeros])
@pytest.mark.parametrize("name", [*FILES, "train.log"])
def test_what_is_no_file_is_named_and_not_waited_for(
    make: Callable[[Path], None], name: str, write: Write, tmp_path: Path
) -> None:
    folder = write()
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    _, text = paged(folder, output=tmp_path / "out.html")
    assert re.search(rf"{name} cannot be read: it is a (FIFO|folder|device or a socket), not a file", text)


NUMBERS = (
    "1.7e308",
    "1.8e308",
    "5e-324",
    "1e100",
    "1e16",
    f"1{'0' * 400}",
    "NaN",
    "-Infinity",
    "18446744073709551615",
    "-0.0",
)
STEPS, OTHERS = re.compile(r'(?<="step": )[0-9]+'), re.compile(r'(?<!"step")(?<=: )[0-9][0-9.e-]*(?=[,}\n])')


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("between", ["0", "3.5", "-1.7e308", "1e-99", None])
@pytest.mark.parametrize("place", [STEPS, OTHERS])
def test_any_number_makes_a_page(
    number: str, between: str | None, place: re.Pattern[str], write: Write, tmp_path: Path
) -> None:
    """In place of all numbers or of every second, with others between them."""
    folder = write()
    for name in ("metrics.jsonl", "config.yaml", "ds_config.json", "history.jsonl"):
        values = itertools.cycle((number, between or number))
        text = (folder / name).read_text()
        (folder / name).write_text(place.sub(lambda _, values=values: next(values), text))  # type: ignore[misc]
    checker, _ = paged(folder, write("whole"), output=tmp_path / "out.html")
    places = {given[key] or "" for _, given in checker.tags for key in ("d", "x", "y") if key in given}
    assert not [place for place in places if "nan" in place or "inf" in place or "e" in place]


def test_the_folder_of_a_refused_start_is_named_in_one_line(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("checkpoints", "hangs", "ranks"):
        (tmp_path / "refused" / name).mkdir(parents=True)
    paged(tmp_path / "refused", write(), output=tmp_path / "out.html")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"pipeline.report: warning: refused: {tmp_path}/refused is the folder of a run that never started: the output"
        " of its start says why; delete it"
    )


def test_deep_lines_are_counted(write: Write, tmp_path: Path) -> None:
    folder = write()
    for name in ("metrics.jsonl", "history.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"step":' + "[" * 100_000 + "\n" + '{"step":' + "[" * 90 + "]" * 90 + "}\n")
    for name in ("config.yaml", "ds_config.json", "environment.json"):
        (folder / name).write_text("[" * 10_000 + "]" * 10_000)
    _, text = paged(folder, output=tmp_path / "out.html")
    for message in ("metrics.jsonl: 2 lines are not JSON", "history.jsonl: 2 lines are not JSON", "nested deeper than"):
        assert message in text


def test_names_and_values_cannot_inject_markup(write: Write, tmp_path: Path) -> None:
    evil = "<script>alert(1)<"
    folder = write(evil, changes={1: {'"><img src=x onerror=alert(1)>\ud800': 1.0}})
    (folder / "environment.json").write_text(json.dumps({"device": "</td><script>", "packages": {"<i>": ["&amp;"]}}))
    (folder / "train.log").write_text("2026-11-21 10:00:00,000 ERROR </pre><script>alert(2)</script>\n")
    _, text = paged(folder, output=tmp_path / "out.html")
    assert evil in text
    assert "</td><script>" in text
    assert "</pre><script>alert(2)</script>" in text
