"""
Run a command that ends when its parent ends: `python with_parent.py PARENT SIGNAL USER COMMAND…`.

A service that is killed cannot stop its children. On Linux the kernel does it: the command
gets SIGNAL when PARENT dies, however it dies. It runs in a session of its own, so that
Ctrl-C in a terminal reaches the service alone, which then stops its parts in order.
Elsewhere the command runs on.

This file is a program, started by path with `python -I -S`: it imports nothing of ours.
"""

import ctypes
import os
import pwd
import sys

SET_PARENT_DEATH_SIGNAL = 1
PARENT_IS_GONE = 3


def main(parent: int, signal: int, user: str, command: list[str]) -> None:
    """
    Run the command in place of this program; does not return.

    Args:
        parent: The process to end with.
        signal: What the command gets when the parent dies.
        user: Whose rights the command has, or "" for those of the parent.
        command: A path and its arguments.
    """
    os.setsid()
    if user:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    if sys.platform == "linux":
        # After the change of user, which would clear the setting.
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal)
        if os.getppid() != parent:
            sys.exit(PARENT_IS_GONE)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
