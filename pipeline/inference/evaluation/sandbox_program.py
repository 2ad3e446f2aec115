"""Run one program and its checks in an interpreter that the sandbox starts only for them.

`sandbox_init` passes the text of this file to `python -c`, because the sandbox may hide the repository. Standard input
holds the program and the checks. The only argument is the file descriptor of the channel, a socket. The proof waits in
the channel and is read after the last check; this script sends back the proof, or what the program raised.
"""

import os
import sys
import types


def main() -> None:
    """Run the program and the checks from standard input, and end the process."""
    channel = int(sys.argv.pop())
    # bound now, because the program may replace them
    read, write, leave = os.read, os.write, os._exit
    program, _, checks = sys.stdin.buffer.read().decode("utf-8", "surrogatepass").rpartition("\0")
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses and pickle look up the module of a class here
    try:
        # compiled separately, so that an open string or bracket of the program cannot swallow the checks
        for source in (program, checks):
            exec(compile(source, "program.py", "exec"), module.__dict__)
    except BaseException as error:
        raised = f"{type(error).__name__}: {error}".removesuffix(": ")
        write(channel, raised.encode("utf-8", "replace")[:500])
        leave(1)
    write(channel, read(channel, 64))
    leave(0)  # immediately, without atexit handlers and without waiting for threads


if __name__ == "__main__":
    main()
