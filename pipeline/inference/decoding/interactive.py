"""Interactive use: prompts are typed one after the other, and completions appear as they are decoded."""

import dataclasses
import itertools
import sys
from collections.abc import Callable

from common.command_line import UserError, say
from common.wording import escaped
from pipeline.inference.decoding.prompts import Prompt
from pipeline.inference.decoding.session import Decoding, Session

_GREETING = """Each line is a prompt of its own: the model completes text, it does not hold a conversation.
Ctrl-C stops a completion, Ctrl-D ends the program."""


def complete_lines(session: Session, decoding: Decoding, *, encode: Callable[[str], Prompt]) -> None:
    """Continue each line of standard input until it ends.

    Args:
        session: the loaded model.
        decoding: how lines are continued; each line adds 1 to the seed.
        encode: turns a line into a prompt; if it raises `UserError`, the message is printed.
    """
    import readline  # noqa: F401 (gives `input` history and editing)

    # as for arguments of the command line, so that `encode` can report bytes that are not UTF-8
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
            say(f"error: {error}")
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def write(text: str) -> None:
    """Print text immediately, without a line end; on a terminal, what it would obey is escaped."""
    print(escaped(text) if sys.stdout.isatty() else text, end="", flush=True)
