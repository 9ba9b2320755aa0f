"""The deadman: a program of its own that lets a guest run again when its parent dies.

Between the guest's stop and GO, the guest stands still and waits for a word. If the process that
was to say it dies, nobody would. This program is started before the stop. It has a connection to
the guest's hypervisor to itself and one end of a socket pair; the other end is its parent's alone.
It says ``A`` once it watches, and then is told

    ``g``  GO may be sent: from now on never resume; answered ``G``
    ``d``  all is over: end; answered ``D``

and the end of file means that the parent is dead: if GO was not said, the migration is given up and
the guest resumed. How that is done is its backend's: a file that defines

    ``open_guest(arguments)``  connects, and returns the function that gives the migration up, lets
                               the guest run if ``run_again``, and says what became of it

It is light on purpose. Neither it nor the backend's file imports anything but the standard library:
it runs as ``python -I -S deadman_program.py SOCKET-FD RUN-AGAIN BACKEND-FILE ARGUMENT…``.
"""

import importlib.util
import os
import socket
import sys
from typing import Protocol


class GiveUp(Protocol):
    """Gives the migration up; what ``open_guest`` of a backend's file returns."""

    def __call__(self, *, run_again: bool) -> str:
        """Let the guest run if ``run_again``; returns what became of it, for the log."""
        ...


def _open_guest(backend: str, arguments: list[str]) -> GiveUp:
    """Load the backend's file, and have it connect."""
    spec = importlib.util.spec_from_file_location("backend", backend)
    if spec is None or spec.loader is None:
        raise ImportError(f"{backend} is no file of Python's")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    give_up: GiveUp = module.open_guest(arguments)
    return give_up


def _parent_died(parent: socket.socket) -> bool:
    """Take the parent's words until it dies; whether it did so before GO was said.

    Told that all is over, it ends this process, and does not return.
    """
    may_resume = True
    while True:
        try:
            word = parent.recv(1)
        except OSError:
            word = b""
        if word == b"g":
            may_resume = False
            parent.sendall(b"G")
        elif word == b"d":
            # The lock first, of which nobody has told the number.
            os.closerange(3, parent.fileno())
            os.closerange(parent.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
            parent.sendall(b"D")
            os._exit(0)  # without the milliseconds that Python takes to end
        else:
            return may_resume


def main(arguments: list[str]) -> int:
    """Wait for a word from the parent, or for its death."""
    descriptor, run_again, backend, *rest = arguments
    parent = socket.socket(fileno=int(descriptor))
    give_up = _open_guest(backend, rest)
    parent.sendall(b"A")
    if _parent_died(parent):
        said = give_up(run_again=run_again == "1")
        sys.stderr.write(f"entourage: deadman (resumes the guest if its migration dies): {said}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
