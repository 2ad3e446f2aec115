"""The table of exit codes in docs/operations.md, without srun's column, which tests/slurm measures."""

from pathlib import Path

from tests.helpers.exit_codes import COLUMNS, LOCAL, documented, measured, table


def test_the_exit_codes_of_each_launcher_are_as_documented(byte_shards: Path, tmp_path: Path) -> None:
    """To write the table anew: `python -m tests.helpers.exit_codes SHARDS`."""
    found = measured(LOCAL, shards=byte_shards, folder=tmp_path)
    text, codes = documented()
    assert text == table({**codes, **found})
    assert set(codes) == set(COLUMNS)
