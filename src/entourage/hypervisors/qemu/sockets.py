"""Listening sockets that are made here and given to QEMU, as it could not make them itself."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Generator, Iterable
from pathlib import Path


@contextlib.contextmanager
def listening(path: Path) -> Generator[socket.socket]:
    """A socket that listens at ``path``, 0600, for as long as the process that inherits it lives.

    Here it is closed at the end, so that the death of that process is seen by who has connected.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        path.chmod(0o600)
        server.listen(8)
        yield server


def listening_at_once(host: str, ports: Iterable[int]) -> socket.socket | None:
    """A TCP socket that listens at the first port that is free; None where none is.

    What it accepts inherits TCP_NODELAY, which QEMU's NBD server does not set: with it, a client
    waits up to 40 ms for each answer in several parts, because its kernel delays the ACK for which
    the server's kernel holds the next part back. QEMU's client waits so in its main loop, where
    the guest waits too: twice at every connection, and whenever an answer meets another one.

    Args:
        host: A numeric address of this host.
        ports: In the order in which they are tried.

    Raises:
        OSError: The address is none of this host's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports:
        server = socket.socket(family, socket.SOCK_STREAM)
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.bind((host, port))
            server.listen()
        except OSError as error:
            server.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return server
    return None
