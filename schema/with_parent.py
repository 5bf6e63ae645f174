"""
Run a command that ends when its parent ends: `python with_parent.py PARENT SIGNAL USER COMMAND…`.

A service that is killed cannot stop its children. On Linux the kernel does: it sends SIGNAL to the command
when PARENT dies, however it dies. The command runs in a session of its own, so that Ctrl-C in a terminal
reaches only the service, which then stops its parts in order. On other systems the command keeps running.

This file is a program, started by its path with `python -I -S`, so it imports nothing of this project.
"""

import ctypes
import os
import pwd
import sys

SET_PARENT_DEATH_SIGNAL = 1
PARENT_IS_GONE = 3


def main(parent: int, signal: int, user: str, command: list[str]) -> None:
    """
    Replace this program by the command; does not return.

    Args:
        parent: Process id of the parent.
        signal: Signal that the command gets when the parent dies.
        user: User that the command runs as; "" for the parent's.
        command: Path of the command and its arguments.
    """
    os.setsid()
    if user:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    if sys.platform == "linux":
        # After setuid, which clears this setting. The parent may have died before the call.
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal)
        if os.getppid() != parent:
            sys.exit(PARENT_IS_GONE)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
