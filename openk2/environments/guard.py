"""Start a command that ends when its parent ends: `python guard.py PARENT_PID COMMAND...`.

On Linux the kernel is asked to kill this process when its parent dies, and the
request survives the exec that turns it into the command. Elsewhere a server has
to notice that its stdin closed. Run as a file of its own, before any import of
the package, so that it costs a few milliseconds.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    # The parent may have died before the request was made.
    if os.getppid() != parent:
        sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]!r}: {error}")


if __name__ == "__main__":
    main()
