"""Another process is stopped where it waits for something to read, and has got nothing yet.

``SIGSTOP`` alone does not tell: a process that is stopped on its way out of ``read`` looks in
``/proc`` like one that still waits, and has taken what it was given.
"""

from __future__ import annotations

import ctypes
import os

_CONT, _GETREGS, _SEIZE, _INTERRUPT = 7, 12, 0x4206, 0x4207  # <sys/ptrace.h>
_WALL = 0x40000000  # <sys/wait.h>
_TAKES = {0, 275}  # the system calls by which something is read: read and splice, on x86-64
_RESTARTED = -512  # ERESTARTSYS: it was interrupted, and would be begun again
_REGISTERS = 27  # of struct user_regs_struct, 8 bytes each
_RAX, _ORIG_RAX = 10, 15

_libc = ctypes.CDLL(None, use_errno=True)


class Traced:
    """A process of one thread, on this x86-64 machine; whoever makes this traces it.

    Args:
        pid: Its number.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ask(_SEIZE)

    def stop(self) -> bool:
        """Stop it; whether it was waiting in ``read`` or ``splice``, which has returned nothing."""
        self._ask(_INTERRUPT)
        _, status = os.waitpid(self._pid, _WALL)
        assert os.WIFSTOPPED(status), f"{self._pid} has ended: {status}"
        registers = (ctypes.c_longlong * _REGISTERS)()
        self._ask(_GETREGS, registers)
        return registers[_ORIG_RAX] in _TAKES and registers[_RAX] == _RESTARTED

    def go_on(self) -> None:
        """Let it go on."""
        self._ask(_CONT)

    def _ask(self, request: int, data: ctypes.Array[ctypes.c_longlong] | None = None) -> None:
        if _libc.ptrace(request, self._pid, None, data) == -1:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
