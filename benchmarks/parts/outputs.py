"""Files that a benchmark is asked to write: checked before it measures for minutes."""

from pathlib import Path

from common.command_line import UserError


def folder_problems(**files: Path | None) -> list[str]:
    """Return which options, by name, ask for a file in a folder that does not exist, one line each."""
    return [
        f"--{name} {path}: there is no folder {path.parent}"
        for name, path in files.items()
        if path is not None and not path.parent.is_dir()
    ]


def check_json(path: Path | None) -> None:
    """Raise UserError if the folder of `--json` does not exist."""
    for problem in folder_problems(json=path):
        raise UserError(problem)
