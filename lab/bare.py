"""A bare system beside this one: another release's files, processes and names; the same network.

`Bare` is one, seen from outside. Run as `python -m lab.bare` it is the system's first process: with
that, the kernel ends all others, and frees mounts, loop device and disk. Nothing outlives it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lab import reach, syscalls
from lab.host import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

_DISK_SIZE = 32 << 30  # as far as anything is ever written
_DISKS = "/var/tmp"


class BareError(RuntimeError):
    """The system could not be made."""


class Bare:
    """A bare system; a context manager, with which all of it ends."""

    def __init__(self, name: str, tar: Path, place: Path, log: Path) -> None:
        """Make it.

        Args:
            name: Its host name.
            tar: Its files.
            place: An empty directory, where only the system's own processes see its files.
            log: Gets what goes wrong.
        """
        self._lifeline, theirs = socket.socketpair()
        with theirs, log.open("ab") as output:
            self._outer = subprocess.Popen(
                [sys.executable, "-m", "lab.bare", name, str(tar), str(place)],
                cwd=REPOSITORY,
                stdin=theirs.fileno(),
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for who made it
            )
        with self._lifeline.makefile("rb") as said:
            number, up = said.readline(), said.readline()
        if not up:
            self._lifeline.close()
            self._outer.wait()
            raise BareError("its first process ended")
        self._pid = int(number)
        for path, content in reach.files().items():
            self.write(path, content)
        self.write("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {name}\n".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.kill(self._pid, signal.SIGKILL)
        self._outer.wait()
        self._lifeline.close()

    def write(self, path: str, content: bytes) -> None:
        """Write a file there."""
        file = Path(f"/proc/{self._pid}/root", path.lstrip("/"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # it may be a symlink, which would lead to a file of ours
        file.write_bytes(content)

    def command(self, argv: Sequence[str], cwd: str = "/root") -> list[str]:
        """An argument list that runs another one there, as after a login."""
        known = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "USER": "root",
            "LOGNAME": "root",
            "LANG": "C.UTF-8",
            "TERM": os.environ.get("TERM", "dumb"),
            **reach.environment(),
        }
        return [
            *("nsenter", f"--target={self._pid}", "--root", "--mount", "--uts", "--ipc", "--pid"),
            *(f"--wdns={cwd}", "--", "env", "-i"),
            *(f"{name}={value}" for name, value in known.items()),
            *argv,
        ]


def _build(tar: BinaryIO, place: Path) -> None:
    """Put a disk of its own at `place`, with the system's files, and make it the root."""
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    # A file without a name: with its last user it is gone.
    with tempfile.TemporaryFile(dir=_DISKS) as disk:
        disk.truncate(_DISK_SIZE)
        path = f"/proc/self/fd/{disk.fileno()}"
        options = ["-q", "-O", "^has_journal", "-E", "nodiscard", path]
        subprocess.run(["mkfs.ext4", *options], check=True, pass_fds=[disk.fileno()])
        loop = syscalls.attach_loop(Path(path))
    try:
        syscalls.mount(str(Path(f"/proc/self/fd/{loop}").readlink()), str(place), "ext4")
    finally:
        os.close(loop)
    # Devices are the machine's.
    unpack = ["tar", "-x", "--numeric-owner", "-C", str(place), "--exclude=./dev/*"]
    subprocess.run(unpack, check=True, stdin=tar)
    syscalls.mount("proc", str(place / "proc"), "proc")
    syscalls.mount("sysfs", str(place / "sys"), "sysfs")
    syscalls.mount("/dev", str(place / "dev"), flags=syscalls.MS_BIND)
    syscalls.mount("tmpfs", str(place / "dev/shm"), "tmpfs")
    syscalls.mount("devpts", str(place / "dev/pts"), "devpts", options="mode=620,ptmxmode=666")
    syscalls.bind(str(place / "dev/pts/ptmx"), str(place / "dev/ptmx"))
    syscalls.mount("tmpfs", str(place / "run"), "tmpfs", options="mode=755")
    syscalls.pivot_root(str(place))


def main(name: str, tar: str, place: str) -> None:
    """Be the first process, until who made it ends, whose end of the socket is closed then."""
    owner = socket.socket(fileno=os.dup(0))
    syscalls.unshare(
        syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWPID
    )
    if child := os.fork():
        owner.sendall(f"{child}\n".encode())
        owner.close()
        os.close(0)
        os.waitpid(child, 0)
        return
    with Path(tar).open("rb") as file:
        _build(file, Path(place))
    syscalls.sethostname(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries whom nobody waits for
    owner.sendall(b"up\n")
    owner.recv(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
