"""The end of a command, from its first import to its last line: one line on stderr, and an exit code.

Every command imports this module before any other (the linter sorts it to the top), and its last line is
`exit_on_user_error(main, program=...)`. Imports may take seconds, and Ctrl-C during them ends the process in the same
way as later. So this module imports hardly anything itself.
"""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable

_PACKAGES = ("benchmarks", "data_prep", "pipeline", "tests")
INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT  # the code that shells report for a process killed by this signal
_UNREAD_EXIT_CODE = 128 + signal.SIGPIPE


def _open_streams() -> None:
    """Let streams that were closed at the start lead nowhere: else the first file that is opened would be stdout."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            lowest_free = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(lowest_free, True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _running_command() -> str | None:
    """Return the command of this project that this process runs; None if it runs something else."""
    main = sys.modules["__main__"]
    spec, folder = getattr(main, "__spec__", None), _folder_of_file()
    if spec is not None:
        name: str = spec.name
    else:
        name = ".".join([os.path.basename(folder), os.path.basename(main.__file__ or "")[:-3]]) if folder else ""
    return name.removesuffix(".__main__") if name.partition(".")[0] in _PACKAGES else None


def _folder_of_file() -> str | None:
    """Return the folder of this project whose file this process runs, as `python FOLDER/NAME.py`; None without one."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or getattr(main, "__spec__", None) is not None:
        return None
    folder = os.path.dirname(os.path.realpath(file))
    return folder if os.path.dirname(folder) == os.path.dirname(os.path.dirname(os.path.realpath(__file__))) else None


def _leave_folder_of_file() -> None:
    """Take the folder of the file that this process runs out of sys.path: its modules would hide others."""
    if (folder := _folder_of_file()) is not None:
        sys.path[:] = [entry for entry in sys.path if not entry or os.path.realpath(entry) != folder]


def _guard() -> None:
    """End the process at Ctrl-C at once; not if Ctrl-C is ignored, as in background jobs."""
    if _COMMAND is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def _unguard() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_at_once(_number: int, _frame: object) -> None:
    try:
        if is_told_here():
            os.write(2, f"\n{_COMMAND}: interrupted\n".encode())
    finally:
        os._exit(INTERRUPTED_EXIT_CODE)


_open_streams()
_COMMAND = _running_command()
_leave_folder_of_file()
_guard()


def exit_on_user_error(main: Callable[[], None], *, program: str) -> None:
    """Run `main`, and turn what a user may cause into one line on stderr and an exit code.

    - A `UserError` becomes `program: error: message` and exit code 2. If many ranks meet the same mistake, only the
      first one on each node prints it.
    - Ctrl-C ends with exit code 130.
    - A closed pipe, as after `| head`, ends with exit code 141.
    - A full disk under stdout or stderr is a user's mistake: exit code 2.
    """
    from common.command_line import USER_ERROR_EXIT_CODE, UserError, as_printed

    try:
        _run(main)
    except UserError as error:
        _tell(f"{program}: error: {error}")
        tell_torchrun(as_printed(f"{program}: error: {error}"))
        sys.exit(USER_ERROR_EXIT_CODE)
    except KeyboardInterrupt:
        _tell(f"\n{program}: interrupted")
        sys.exit(INTERRUPTED_EXIT_CODE)
    except OSError as error:
        if not _comes_from_a_stream(error):
            raise
        if error.errno == errno.EPIPE:
            _tell(f"{program}: stopped: its output is no longer read")
            sys.exit(_UNREAD_EXIT_CODE)
        _tell(f"{program}: error: cannot print: {error.strerror}; make room for its output")
        sys.exit(USER_ERROR_EXIT_CODE)


def _run(main: Callable[[], None]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be valid UTF-8
    _unguard()
    try:
        main()
    except SystemExit:
        _flush()  # otherwise the interpreter does it at exit, where exceptions cannot be caught
        raise
    finally:
        _guard()
    _flush()


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def tell_torchrun(message: str) -> None:
    """Put a message into torchrun's report of ranks that failed, which would say nothing else but their exit codes."""
    import json
    import time

    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with contextlib.suppress(OSError), open(file, "w", encoding="utf-8") as report:
            json.dump({"message": message, "timestamp": str(int(time.time()))}, report)


def _tell(message: str) -> None:
    """Print a message on stderr, on one rank of each node, unless nothing can be printed."""
    from common.command_line import as_printed

    _discard_what_cannot_be_printed()
    try:
        if is_told_here():
            print(as_printed(message), file=sys.stderr, flush=True)
    except OSError:
        _discard_what_cannot_be_printed()


def is_told_here() -> bool:
    """Return True on one rank of each node, and where the launcher's variables are those of no rank."""
    local_rank = os.environ.get("LOCAL_RANK", "0")
    n_ranks = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1"))
    are_numbers = local_rank.isascii() and local_rank.isdigit() and n_ranks.isascii() and n_ranks.isdigit()
    return not are_numbers or int(local_rank) == 0 or int(local_rank) >= int(n_ranks)


def _discard_what_cannot_be_printed() -> None:
    """Redirect stdout and stderr to nowhere if they cannot be written, or the interpreter would fail at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _comes_from_a_stream(error: OSError) -> bool:
    """Return True if writing to stdout or stderr fails in the same way as `error`, which may come from another file."""
    if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT):
        return False
    for stream in (sys.stdout, sys.stderr):
        try:
            os.write(stream.fileno(), b"\n")
        except OSError as its_own:
            if its_own.errno == error.errno:
                return True
    return False
