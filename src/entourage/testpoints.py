"""Named points of a migration at which a test can stop this process, to break something there.

Off unless ``ENTOURAGE_POINTS`` names a unix socket: then each point is announced there as a line,
and the process stands still until it is answered by a line. A production run does not depend on it.
"""

from __future__ import annotations

import contextlib
import os
import socket

from entourage.events import (
    AnyEvent,
    DeviceStepDone,
    DeviceStepStarted,
    Listener,
    StepDone,
    StepStarted,
)

_LISTENER = os.environ.get("ENTOURAGE_POINTS")
ON = _LISTENER is not None


def reached(point: str) -> None:
    """Stand still at this point, as ``source.before.flush-armed`` or ``source.step-started.1``.

    Nothing happens where no test listens.
    """
    if _LISTENER is None:
        return
    # A listener that has gone holds nobody.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(_LISTENER)
        connection.sendall(f"{point}\n".encode())
        connection.recv(64)


def announced(listener: Listener) -> Listener:
    """The same listener; each event is a point as well."""

    def listen(event: AnyEvent) -> None:
        listener(event)
        match event:
            case StepStarted() | StepDone():
                reached(f"source.{_tag(event)}.{event.step.value}")
            case DeviceStepStarted() | DeviceStepDone():
                reached(f"source.{_tag(event)}.{event.step.value}.{event.device}")
            case _:
                reached(f"source.{_tag(event)}")

    return listen


def _tag(event: AnyEvent) -> str:
    return str(type(event).__struct_config__.tag)
