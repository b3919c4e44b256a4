"""Runs a command, and ends it when standard input closes: when whoever holds the other end is gone, killed or not.

    python -I tether.py COMMAND ...

A file of its own that imports nothing of Prism, so that it starts at once. The exit code is the command's; 128 and a
signal's number when a signal ended it, as in a shell.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Returns the exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_follow, args=(child,), daemon=True).start()
    code = child.wait()
    return 128 - code if code < 0 else code


def _follow(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):  # sys.stdin would be locked when the interpreter ends
        pass
    child.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
