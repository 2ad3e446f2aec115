"""The contract of every command: a user's mistake is one clear line and exit code 2, never a traceback.

A `UserError` says what is wrong, which value was given, and what to do. Any other exception is a
defect of ours and keeps its traceback.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence

USER_ERROR_EXIT_CODE = 2
_INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT  # as shells have it


class UserError(ValueError):
    """A mistake of the person at the keyboard. The message is for them: what, which value, what to do."""


def exit_on_user_error(main: Callable[[], None], *, program: str) -> None:
    """Run `main`; a `UserError` becomes `program: error: message` on stderr and exit code 2, Ctrl-C a line and 130.

    Of many ranks that meet the same mistake, one per node says so.
    """
    try:
        main()
    except UserError as error:
        sys.stdout.flush()
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED_EXIT_CODE)


def raise_if_any(problems: Sequence[str], *, heading: str) -> None:
    """Raise one `UserError` that lists every problem, so that a user mends them all at once."""
    if len(problems) == 1:
        raise UserError(f"{heading}: {problems[0]}")
    if problems:
        raise UserError(f"{heading}:" + "".join(f"\n  - {problem}" for problem in problems))
