"""The deadman: a program of its own that lets a guest run again when its parent dies, or is frozen.

Between the guest's stop and GO, the guest stands still and waits for a word. If the process that
was to say it dies, nobody would. This program is started before the stop. It has a connection to
the guest's hypervisor to itself and one end of a socket pair; the other end is its parent's alone.
It says ``A`` once it watches, and then is told

    ``h``  the parent is not frozen; not answered
    ``w``  the same, and the parent wants to know whether this acts; answered ``W`` if not
    ``g``  GO may be sent: from now on never resume; answered ``G``
    ``d``  all is over: end; answered ``D``

and the end of file means that the parent is dead: if GO was not said, the migration is given up and
the guest resumed. The same is done once the guest has stood still for longer than the parent may
hold it, and nothing is heard of the parent: it would have gone back by itself. What a parent that
goes on after that says finds nobody: GO cannot be said any more. It hears the end of file when this
has done what it could, and can then act without acting at the same time.

How that is done is its backend's: a file that defines

    ``open_guest(arguments)``  connects, and returns a `Guest`

It is light on purpose. Neither it nor the backend's file imports anything but the standard library:
it runs as ``python -I -S deadman_program.py SOCKET-FD RUN-AGAIN BUDGET BACKEND-FILE ARGUMENT…``,
with the seconds that the guest may stand still as the budget, empty where there is no limit.
"""

import contextlib
import importlib.util
import os
import select
import socket
import sys
import time
from typing import Protocol

_LOOK_EVERY = 0.1  # seconds
_FROZEN_AFTER = 0.7  # seconds without a word from the parent, which says one every 0.2


class Guest(Protocol):
    """The guest, and how its migration is given up."""

    def held_for(self) -> float:
        """Seconds for which its migration has kept it stopped, as last seen; 0 where it has not.

        Never waits for a hypervisor that does not answer.
        """
        ...

    def give_up(self, *, run_again: bool) -> str:
        """Let the guest run if ``run_again``; returns what became of it, for the log."""
        ...


def _open_guest(backend: str, arguments: list[str]) -> Guest:
    """Load the backend's file, and have it connect."""
    spec = importlib.util.spec_from_file_location("backend", backend)
    if spec is None or spec.loader is None:
        raise ImportError(f"{backend} is no file of Python's")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    guest: Guest = module.open_guest(arguments)
    return guest


class _Parent:
    """The process that is watched, and what it has said."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)
        self.may_resume = True
        self.is_dead = False
        self.heard_at = time.monotonic()

    def listen(self, seconds: float | None) -> None:
        """Take what it says within so many seconds; None: until it says something.

        Told that all is over, this ends this process, and does not return.
        """
        if not self._poll.poll(None if seconds is None else seconds * 1000):
            return
        try:
            words = self._end.recv(64)
        except OSError:
            words = b""
        self.heard_at = time.monotonic()
        self.is_dead = not words
        for word in words:
            if word == ord("w"):
                with contextlib.suppress(OSError):  # the parent has died since: that is heard next
                    self._end.sendall(b"W")
            elif word == ord("g"):
                self.may_resume = False
                self._end.sendall(b"G")
            elif word == ord("d"):
                # The lock first, of which nobody has told the number.
                os.closerange(3, self._end.fileno())
                os.closerange(self._end.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
                self._end.sendall(b"D")
                os._exit(0)  # without the milliseconds that Python takes to end


def _must_act(parent: _Parent, guest: Guest, budget: float | None) -> bool:
    """Wait until the parent is dead, or holds the guest too long; whether GO was not said."""
    while not parent.is_dead:
        watches = budget is not None and parent.may_resume
        parent.listen(_LOOK_EVERY if watches else None)
        if budget is None or not parent.may_resume or parent.is_dead:
            continue
        if guest.held_for() > budget and time.monotonic() - parent.heard_at > _FROZEN_AFTER:
            parent.listen(_LOOK_EVERY)  # both may have stood still, with all of this host
            if parent.may_resume and time.monotonic() - parent.heard_at > _FROZEN_AFTER:
                return True
    return parent.may_resume


def main(arguments: list[str]) -> int:
    """Wait for a word from the parent, for its death, or for its silence."""
    descriptor, run_again, budget, backend, *rest = arguments
    end = socket.socket(fileno=int(descriptor))
    guest = _open_guest(backend, rest)
    end.sendall(b"A")
    parent = _Parent(end)
    if _must_act(parent, guest, float(budget) if budget else None):
        # What the parent says from here on, nobody takes; it hears the end of this process.
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RD)
        # However long the hypervisor does not answer: nobody else lets the guest run.
        said = guest.give_up(run_again=run_again == "1")
        why = "" if parent.is_dead else "it was held for too long by a process that is frozen: "
        sys.stderr.write(
            f"entourage: deadman (resumes the guest if its migration dies): {why}{said}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
