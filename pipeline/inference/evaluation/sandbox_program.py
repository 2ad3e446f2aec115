"""Run one program and its checks, in the interpreter that the sandbox starts for them alone.

`sandbox_init` hands this file's text to `python -c`: inside the sandbox the repository may not be visible. Standard
input holds the program and the checks; the one argument is the number of the channel, a socket. What goes back through
it: the proof, which was waiting in it and is read only after the last check; or what the program raised.
"""

import os
import sys
import types


def main() -> None:
    """Run what standard input holds, and end the process."""
    channel = int(sys.argv.pop())
    # bound before the program runs, which may put anything in their place
    read, write, leave = os.read, os.write, os._exit
    program, _, checks = sys.stdin.buffer.read().decode("utf-8", "surrogatepass").rpartition("\0")
    module = types.ModuleType("program")
    sys.modules["program"] = module  # where dataclasses and pickle look a class's module up
    try:
        # compiled apart, so that no open string or bracket of the program swallows the checks
        for source in (program, checks):
            exec(compile(source, "program.py", "exec"), module.__dict__)
    except BaseException as error:
        raised = f"{type(error).__name__}: {error}".removesuffix(": ")
        write(channel, raised.encode("utf-8", "replace")[:500])
        leave(1)
    write(channel, read(channel, 64))
    leave(0)  # at once: no atexit handlers, no waiting for threads


if __name__ == "__main__":
    main()
