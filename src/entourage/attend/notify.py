"""Tells systemd how far the daemon is (``sd_notify``); nothing where systemd has not started it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence


def notify(state: str, descriptors: Sequence[int] = (), *, at_once: bool = False) -> bool:
    """Say something as ``READY=1``.

    Args:
        state: What is said.
        descriptors: They go along: for its file descriptor store.
        at_once: Do not wait where systemd does not read: a guest stands still.

    Returns:
        Whether it was sent.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.setblocking(not at_once)
        to.connect(address)
        socket.send_fds(to, [state.encode()], descriptors)
        return True
    return False
