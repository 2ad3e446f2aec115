import pytest

from common.command_line import USER_ERROR_EXIT_CODE, UserError, exit_on_user_error, raise_if_any


def test_a_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        print("some output")
        raise UserError("--seq_len must be at least 1, not 0")

    with pytest.raises(SystemExit) as stopped:
        exit_on_user_error(main, program="write_shards")
    assert stopped.value.code == USER_ERROR_EXIT_CODE == 2
    assert capsys.readouterr().err == "write_shards: error: --seq_len must be at least 1, not 0\n"


def test_our_own_defects_keep_their_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_on_user_error(main, program="p")


def test_ctrl_c_is_a_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        exit_on_user_error(main, program="stats")
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\nstats: interrupted\n"


def test_success_does_not_exit() -> None:
    calls: list[str] = []
    exit_on_user_error(lambda: calls.append("ran"), program="p")
    assert calls == ["ran"]


@pytest.mark.parametrize(("local_rank", "speaks"), [("0", True), ("1", False)])
def test_one_rank_per_node_speaks(
    local_rank: str, speaks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise UserError("wrong")

    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SystemExit) as exit_info:
        exit_on_user_error(main, program="p")
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == ("p: error: wrong\n" if speaks else "")


def test_all_problems_come_in_one_error() -> None:
    raise_if_any([], heading="bad arguments")
    with pytest.raises(UserError, match=r"^bad arguments: a$"):
        raise_if_any(["a"], heading="bad arguments")
    with pytest.raises(UserError, match=r"^bad arguments:\n  - a\n  - b$"):
        raise_if_any(["a", "b"], heading="bad arguments")
