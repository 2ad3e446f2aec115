"""Options of commands: numbers and their ranges, misspelt names, and the form of messages."""

import argparse
import sys
from pathlib import Path

import pytest

from common.command_line import (
    UserError,
    a_path,
    command_parser,
    one_line,
    path_text,
    raise_if_any,
    real_number,
    say,
    whole_number,
)


def test_all_problems_are_in_one_error() -> None:
    raise_if_any([], heading="bad arguments")
    with pytest.raises(UserError, match=r"^bad arguments: a$"):
        raise_if_any(["a"], heading="bad arguments")
    with pytest.raises(UserError, match=r"^bad arguments:\n  - a\n  - b$"):
        raise_if_any(["a", "b"], heading="bad arguments")
    with pytest.raises(UserError, match=r"^bad:\n  - a(\n  - a){99}\n  - and 1,900 more$"):
        raise_if_any(["a"] * 2000, heading="bad")


def test_a_message_of_one_line() -> None:
    assert one_line(ValueError("first\n   second\tthird ")) == "first second third"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def _parsed(*words: str) -> argparse.Namespace:
    parser = command_parser("data_prep.stats", description=None)
    parser.add_argument("--count", type=whole_number(at_least=1, at_most=10**6), default=7)
    parser.add_argument("--sizes", type=whole_number(at_least=-5, at_most=2**64), nargs="+")
    parser.add_argument("--rate", type=real_number(above=0, at_most=1))
    parser.add_argument("--part", type=real_number(at_least=0, below=1))
    return parser.parse_args(words)


def test_numbers_in_their_range_are_taken() -> None:
    for text, number in (("1", 1), ("1e5", 100_000), ("1E+6", 10**6), ("2.0", 2), ("1_000", 1000), (" 12 ", 12)):
        found = _parsed("--count", text).count
        assert (found, type(found)) == (number, int)
    assert _parsed("--sizes", str(2**64), "-5", "0").sizes == [2**64, -5, 0]
    assert (_parsed().count, _parsed().rate) == (7, None)
    assert _parsed("--rate", "1", "--part", "0").rate == 1
    assert _parsed("--rate", "1e-3").rate == 0.001


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "1000001", "1.5", "1e7", "1e-1", "1e999999999", "1e-999999999", "nan", "sNaN", "inf", "-inf", "x", "",
     "0x10", "1,000", "9" * 5000, "\x1b[31m", "1" + "0" * 39],
)  # fmt: skip
def test_whole_numbers_that_are_refused(text: str) -> None:
    with pytest.raises(UserError) as refused:
        _parsed(f"--count={text}")
    start = "bad arguments: --count must be a whole number from 1 to 1,000,000, not "
    given = str(refused.value).removeprefix(start)
    assert given in (text, repr(text), repr("9" * 37 + "..."))
    assert given.isprintable()


@pytest.mark.parametrize("text", ["0", "-0.0", "1.0001", "nan", "inf", "-inf", "1e309", "1e-400", "9" * 5000, "x"])
def test_real_numbers_that_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="bad arguments: --rate must be a number above 0 and at most 1, not "):
        _parsed(f"--rate={text}")


def test_all_numbers_that_are_refused_are_in_one_error() -> None:
    with pytest.raises(UserError) as refused:
        _parsed("--count", "0", "--sizes", "1", "-6", "x", "--part", "1")
    assert str(refused.value).splitlines() == [
        "bad arguments:",
        "  - --count must be a whole number from 1 to 1,000,000, not 0",
        "  - --sizes must be a whole number from -5 to 18,446,744,073,709,551,616, not -6",
        "  - --sizes must be a whole number from -5 to 18,446,744,073,709,551,616, not x",
        "  - --part must be a number at least 0 and below 1, not 1",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--inptu", "x"], "unrecognized arguments: --inptu; did you mean --input?"),
        (["--vocab-size", "5", "--input", "x"], "unrecognized arguments: --vocab-size; did you mean --vocab_size?"),
        (
            ["--inptu=x", "--vocabsize=5"],
            "unrecognized arguments: --inptu=x --vocabsize=5; did you mean --input, --vocab_size?",
        ),
        (["--input", "x", "--zzz"], "unrecognized arguments: --zzz"),
        (["--run.name=x"], "unrecognized arguments: --run.name=x; did you mean run.name=x?"),
        (["--run.name", "x"], "unrecognized arguments: --run.name; did you mean run.name=VALUE?"),
        (["--input", "x", "--\x1b[31m"], "unrecognized arguments: --\\x1b[31m"),
        ([], "the following arguments are required: --input"),
    ],
)
def test_a_misspelt_option_is_named_with_the_nearest_one(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = command_parser("pipeline.train", description=None)
    parser.add_argument("--input", required=True)
    parser.add_argument("--vocab_size")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"pipeline.train: error: {message}"


@pytest.mark.parametrize(
    ("words", "ending"),
    [
        (["--filters", "starcodr"], "did you mean 'starcoder'?"),
        (["--rules", "xml", "few_leters"], "did you mean 'few_letters'?"),
        (["--filters", "everything"], "(choose from 'basic', 'starcoder')"),
    ],
)
def test_a_misspelt_choice_is_named_with_the_nearest_one(
    words: list[str], ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = command_parser("data_prep.write_shards", description=None)
    parser.add_argument("--filters", choices=["basic", "starcoder"])
    parser.add_argument("--rules", nargs="+", choices=["xml", "few_letters"])
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(ending)


def test_what_is_no_option_is_not_misspelt() -> None:
    parser = command_parser("pipeline.generate", description=None)
    parser.add_argument("--prompt")
    parser.add_argument("rest", nargs="*")
    parsed = parser.parse_args(["--pro", "-- a b", "--", "--no_option"])  # an abbreviation, a text, and after --
    assert (parsed.prompt, parsed.rest) == ("-- a b", ["--no_option"])


@pytest.mark.parametrize("text", ["~/x", "$HOME/x", "${HOME}/x"])
def test_paths_behind_an_equals_sign_mean_what_a_shell_makes_of_them(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert a_path(text) == Path("/home/me/x")
    assert path_text("a/~/b") == "a/~/b"
    (tmp_path / text).parent.mkdir()
    (tmp_path / text).touch()
    assert path_text(text) == text  # it exists as it is


@pytest.mark.parametrize("text", ["$NO_SUCH_VARIABLE/x", "${NO_SUCH_VARIABLE}", "~no_such_user/x", "a\0b"])
def test_paths_that_no_shell_can_expand_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_parser("p", description=None)
    parser.add_argument("--out", type=a_path)
    with pytest.raises(SystemExit) as refused:
        parser.parse_args([f"--out={text}"])
    assert refused.value.code == 2
    assert "p: error: argument --out: " in (said := capsys.readouterr().err)
    assert "holds NUL, a user that does not exist, or a variable that is not set" in said


def test_what_is_said_is_safe_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[31mb\nc")
    say("d\u202ee", file=sys.stderr)
    assert capsys.readouterr() == ("a\\x1b[31mb\nc\n", "d\\u202ee\n")
