"""Run one program and its checks in an interpreter that the sandbox starts only for them.

`sandbox_init` passes the text of this file to `python -c`, because the sandbox may hide the repository. Standard input
holds the program alone. The arguments are the file descriptor of the channel, a stream socket, and the folders of the
packages that the program may import. Through the channel comes a key, before the program runs. The key is sent back
after the program's own code has ended, and only then the proof and the checks come. After the last check this script
sends back the proof. If something raises, it sends what was raised instead.
"""

import builtins
import importlib.util
import os
import sys
import types

SECRET_BYTES = 32


class Packages:
    """Finds the given packages, and nothing else that lies beside them."""

    def __init__(self, folders: list[str]) -> None:
        self.folders = {os.path.basename(folder): folder for folder in folders}

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name not in self.folders:
            return None
        folder = self.folders[name]
        start = os.path.join(folder, "__init__.py")
        return importlib.util.spec_from_file_location(name, start, submodule_search_locations=[folder])


def main() -> None:
    """Run the program and the checks, and end the process."""
    channel, *folders = sys.argv[1:]
    del sys.argv[1:]
    descriptor = int(channel)
    sys.meta_path.append(Packages(folders))  # type: ignore[arg-type]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a lone surrogate can be printed
    for name in ("exit", "quit", "help"):  # as HumanEval's own harness has them
        setattr(builtins, name, None)
    # bound now, because the program may replace them
    read, write, leave, run, translate, untraced = os.read, os.write, os._exit, exec, compile, sys.settrace
    key = read(descriptor, SECRET_BYTES)
    program = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses and pickle look up the module of a class here
    try:
        # compiled separately, so that an open string or bracket of the program cannot swallow the checks
        run(translate(program, "program.py", "exec"), module.__dict__)
        write(descriptor, key)
        received = b""
        while part := read(descriptor, 1 << 20):
            received += part
        proof, checks = received[:SECRET_BYTES], received[SECRET_BYTES:].decode("utf-8", "surrogatepass")
        untraced(None)
        run(translate(checks, "program.py", "exec"), module.__dict__)
    except BaseException as error:
        raised = f"{type(error).__name__}: {error}".removesuffix(": ")
        write(descriptor, raised.encode("utf-8", "replace")[:500])
        leave(1)
    write(descriptor, proof)
    leave(0)  # immediately, without atexit handlers and without waiting for threads


if __name__ == "__main__":
    main()
