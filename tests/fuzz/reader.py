"""A row of the table of readers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from common.command_line import UserError
from tests.fuzz import mutations

Folder = Path


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A reader, and an example of what it reads."""

    file: str
    """The file that is changed, in the folder of the example."""
    make: Callable[[Folder], object]
    """Writes the example into an empty folder."""
    read: Callable[[Folder], object]
    """Reads the changed file, as a command does."""
    changes: Callable[[bytes], st.SearchStrategy[bytes]] = mutations.json_file
    """The changes of the file, given its content."""
    allowed: tuple[type[BaseException], ...] = (UserError,)
    """What reading may raise."""
    most_bytes: int = 40 << 30
    """Size of a file of zeros that is read or refused soon; a record of any length is read to its end."""
    examples: int = 60
    """Changed files in the usual run of the tests; fewer where reading takes long."""
