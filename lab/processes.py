"""Programs inside a host, started and held from outside like any other child process."""

from __future__ import annotations

import os
import subprocess
import threading
from typing import IO, TYPE_CHECKING, TypeAlias

from lab import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HostProcess: TypeAlias = subprocess.Popen[str]
"""A program on a host: a direct child of this process, with its real id and status."""

Stream: TypeAlias = int | IO[str] | None
"""What `subprocess` takes for stdin, stdout and stderr."""

_ALL = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNET
)


def in_namespaces(
    pidfd: int, kinds: int, work: Callable[[], None], *, root: str | None = None
) -> None:
    """Do `work` in namespaces of the process that `pidfd` is, and come back.

    With a mount namespace comes its root, as a path from here: that of the namespace itself is
    another where the lab was made in a chroot.

    It is a thread that goes there, and ends there: namespaces belong to threads, and a thread's
    children are born in its process namespace. That is faster than `nsenter`, which would also
    stand between us and the program when signals are sent.
    """
    failed: list[BaseException] = []

    def go() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_FS)  # the other threads keep their root and cwd
            if root is None:
                syscalls.setns(pidfd, kinds)
            else:
                directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                syscalls.setns(pidfd, kinds)
                os.fchdir(directory)
                os.close(directory)
                os.chroot(".")
            work()
        except BaseException as error:  # noqa: BLE001  # raised again by who waits
            failed.append(error)

    thread = threading.Thread(target=go, name="inside a lab host")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def spawn(
    pidfd: int,
    root: str,
    argv: Sequence[str],
    *,
    env: dict[str, str],
    cwd: str,
    stdin: Stream,
    stdout: Stream,
    stderr: Stream,
) -> HostProcess:
    """Start a program in all namespaces of a host's first process, and in its root."""
    started: list[HostProcess] = []

    def start() -> None:
        started.append(
            subprocess.Popen(
                list(argv),
                env=env,
                cwd=cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                encoding="utf-8",
                errors="surrogateescape",
            )
        )

    in_namespaces(pidfd, _ALL, start, root=root)
    return started[0]


def communicate(
    process: HostProcess, argv: Sequence[str], text: str | None, timeout: float, *, check: bool
) -> subprocess.CompletedProcess[str]:
    """Do what `subprocess.run` does, for a process that runs already."""
    with process:
        try:
            out, err = process.communicate(text, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        except BaseException:
            process.kill()
            raise
    result = subprocess.CompletedProcess(list(argv), process.returncode, out, err)
    return checked(result) if check else result


def checked(
    result: subprocess.CompletedProcess[str],
) -> subprocess.CompletedProcess[str]:
    """Return the result of a success; raise that of a failure, with what the program said."""
    if result.returncode:
        error = subprocess.CalledProcessError(
            result.returncode, result.args, result.stdout, result.stderr
        )
        error.add_note((result.stderr or result.stdout or "").strip()[-2000:])
        raise error
    return result
