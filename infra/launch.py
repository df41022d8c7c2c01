"""Becomes another program: `python -I -S launch.py DEATH_SIGNAL PARENT_PID UID GID -- PROGRAM ARGS...`.

Runs between fork and exec in place of subprocess's preexec_fn, which may deadlock in a parent that has threads. It asks
Linux to send DEATH_SIGNAL when the parent dies (so that a killed supervisor leaves nothing running), drops root for UID
and GID (-1: stay), and execs. It imports nothing of this project: it must start in milliseconds and as any user.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def _die_with_parent(death_signal: int, parent_pid: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:  # it died before we asked
        sys.exit(f"launch: the parent {parent_pid} is gone")


def main(args: list[str]) -> None:
    """Sets up this process as the arguments say and replaces it. Exits 126 or 127, as a shell would, if it cannot."""
    death_signal, parent_pid, uid, gid = (int(arg) for arg in args[:4])
    program = args[5:]
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After setuid: the kernel clears the death signal when the credentials change.
    _die_with_parent(death_signal, parent_pid)
    try:
        os.execvp(program[0], program)
    except FileNotFoundError:
        print(f"{program[0]}: no such program", file=sys.stderr)
        sys.exit(127)
    except OSError as error:
        print(f"{program[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(126)


if __name__ == "__main__":
    main(sys.argv[1:])
