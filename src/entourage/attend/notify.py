"""Tells systemd how far the daemon is (``sd_notify``); nothing where systemd has not started it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence


def notify(state: str, descriptors: Sequence[int] = ()) -> None:
    """Say something as ``READY=1``.

    Args:
        state: What is said.
        descriptors: They go along: for its file descriptor store.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(address)
        socket.send_fds(to, [state.encode()], descriptors)
