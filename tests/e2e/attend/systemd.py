"""A STAND-IN for systemd: starts the daemon of a host, and keeps what descriptors it is given."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

from lab.host import Host
from lab.processes import HostProcess
from tests.e2e.attend.world import LOG

_ADDRESS = "/run/attend.systemd"
_WITHIN = 30.0  # seconds
# As sd_listen_fds(3) has it: the first descriptor is 3, and they are for this very process.
_START = """
import os, sys
os.environ["NOTIFY_SOCKET"] = sys.argv[1]
if len(sys.argv) > 2:
    os.dup2(0, 3)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES=sys.argv[2])
os.execvp("entourage", ["entourage", "attend"])
"""


class Systemd:
    """What it is told by the daemon of one host.

    Args:
        host: The host.
        told: The socket of ``NOTIFY_SOCKET``.
    """

    def __init__(self, host: Host, told: socket.socket) -> None:
        self._host = host
        self._told = told
        self._processes: list[HostProcess] = []

    def start(self, name: str = "", kept: int = subprocess.DEVNULL) -> HostProcess:
        """Start the daemon, and wait until it attends.

        Args:
            name: Of a descriptor that it had kept.
            kept: That descriptor.
        """
        words = [sys.executable, "-c", _START, _ADDRESS, *([name] if name else [])]
        with self._host.path(LOG).open("a") as log:
            process = self._host.popen(words, stdin=kept, stdout=log, stderr=subprocess.STDOUT)
        self._processes.append(process)
        while b"STATUS=attends" not in self._told.recv(4096):
            pass
        return process

    def kept(self) -> tuple[str, int]:
        """Wait for a descriptor that is to be kept; its name, and itself."""
        while True:
            said, descriptors, _, _ = socket.recv_fds(self._told, 4096, 1)
            words = dict(line.split("=", 1) for line in said.decode().splitlines())
            if "FDSTORE" in words:
                return words["FDNAME"], descriptors[0]

    def end(self) -> None:
        """End what was started."""
        for process in self._processes:
            process.kill()
            process.wait(_WITHIN)


@contextmanager
def systemd(host: Host) -> Generator[Systemd]:
    """Have it on a host, whose daemon does not run."""
    outside = host.path(_ADDRESS)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(outside))
        told.settimeout(_WITHIN)
        one = Systemd(host, told)
        try:
            yield one
        finally:
            one.end()
            outside.unlink()
