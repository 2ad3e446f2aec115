"""Prompts typed one after the other, and completions that appear as they are decoded."""

import dataclasses
import itertools
import sys
from collections.abc import Callable

from common.command_line import UserError
from pipeline.inference.decoding.prompts import Prompt
from pipeline.inference.decoding.session import Decoding, Session

_GREETING = """Each line is continued for itself: the model completes text, it does not converse.
Ctrl-C stops a completion, Ctrl-D ends."""


def complete_lines(session: Session, decoding: Decoding, *, encode: Callable[[str], Prompt]) -> None:
    """Continue each line of standard input, until it ends; the sampling of each has a seed of its own.

    encode: returns a line as a prompt; its UserError is told, and the next line awaited.
    """
    import readline  # noqa: F401 (history and editing for input)

    # as in the command line's arguments: bytes that are no UTF-8 are told of by `encode`
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    print(_GREETING, file=sys.stderr, flush=True)
    for number in itertools.count():
        try:
            line = input(">>> ")
            if line:
                of_line = dataclasses.replace(decoding, seed=decoding.seed + number)
                completion = session.stream(encode(line), of_line, on_text=write)
                print(f"\n{completion.figures}")
        except UserError as error:
            print(f"error: {error}")
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def write(text: str) -> None:
    """Print a piece of text at once."""
    print(text, end="", flush=True)
