"""Start processes that outlive Entourage, ssh and the user's login.

Such a process has a session of its own (no terminal's signals), a systemd scope of its own where
systemd runs the host (logging out ends no scope), none of our descriptors except those that it is
meant to have, and the marker by which it is found again in its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from entourage.errors import EntourageError, plain_words, what_to_do
from entourage.hosts.programs import kill
from entourage.hosts.resources import MARKER, carries, marked_processes

_SYSTEMD_RUNS = Path("/run/systemd/system")
_SCOPE_PATIENCE = 5.0
SAVES_UNIT = "entourage-saves.service"
"""Saves all machines at shutdown, and restores them at boot (packaging/systemd)."""
Ended: TypeAlias = "asyncio.Future[None]"
_started_here: set[int] = set()


class _Child(subprocess.Popen[bytes]):
    """A Popen without the warning about a child that nobody waits for."""

    def __del__(self) -> None:
        """Without the warning of the base class."""


class ProcessHandle:
    """A process that cannot be mistaken for a later one with the same id.

    Args:
        pid: Its id.
        pidfd: A descriptor of it, owned by the handle.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._ended: Ended | None = None

    @classmethod
    def open(cls, pid: int, started: int | None = None) -> ProcessHandle | None:
        """Get hold of a process; None where it has ended.

        Args:
            pid: Its id.
            started: What ``start_time`` said of it; another process of that id is not it.
        """
        if pid <= 0:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except (ProcessLookupError, OverflowError):
            return None
        # Asked only now: while the descriptor is open, the id cannot change its owner unseen.
        now = start_time(pid)
        if now is None or (started is not None and now != started):
            os.close(pidfd)
            return None
        return cls(pid, pidfd)

    @property
    def descriptor(self) -> int:
        """Its pidfd, which stays the handle's; see pidfd_open(2)."""
        return self._pidfd

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended; asks the kernel, and never waits."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    async def ended(self) -> None:
        """Wait until the process has ended."""
        if self._ended is None:
            loop = asyncio.get_running_loop()
            self._ended = loop.create_future()
            loop.add_reader(self._pidfd, self._on_end)
        await asyncio.shield(self._ended)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        with contextlib.suppress(ChildProcessError):
            # Ours, if this very process started it: then nobody else takes its last word.
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it."""
        if self._pidfd < 0:
            return
        if self._ended is not None and not self._ended.done():
            asyncio.get_running_loop().remove_reader(self._pidfd)
            self._ended.cancel()
        os.close(self._pidfd)
        self._pidfd = -1


def start_time(pid: int) -> int | None:
    """When a process began, in the kernel's ticks; None where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold anything, spaces and parentheses too.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else int(fields[18])


async def launch(
    argv: Sequence[str],
    *,
    marker: str,
    log: Path,
    unit: str,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
) -> int:
    """Start a process for good.

    Args:
        argv: The program, found on PATH, and its arguments.
        marker: By what the process and its children are found again.
        log: Takes what it prints.
        unit: The name of its systemd scope, without ``.scope``.
        pass_fds: Descriptors that it is meant to have, under the same numbers.
        environment: More for its environment, of which it has next to nothing otherwise.
        stdin: A descriptor that it reads from; nothing, if left out.
        stdout: A descriptor that it writes to; the log, if left out.

    Returns:
        Its process id.

    Raises:
        EntourageError: It cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = _Child(
            list(argv),
            stdin=stdin,
            stdout=output if stdout is None else stdout,
            stderr=output,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            cwd="/",
            umask=0o077,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "LANG": "C.UTF-8",
                **(environment or {}),
                MARKER: marker,
            },
        )
    except FileNotFoundError as error:
        raise EntourageError(f"{argv[0]} is not installed", remedy="install it") from error
    except OSError as error:
        raise EntourageError(
            f"{argv[0]} cannot be started: {error.strerror}", remedy=what_to_do(error)
        ) from error
    finally:
        os.close(output)
    _reap()
    _started_here.add(child.pid)
    # exec closes the descriptor that Popen waits for a moment before the environment can be read:
    # whoever undoes at that moment would not find it. Microseconds, and there is no event for it.
    while start_time(child.pid) is not None and not carries(child.pid, marker):
        os.sched_yield()  # no await: it could be cancelled here
    if _SYSTEMD_RUNS.is_dir():  # noqa: ASYNC240 - /run
        await _give_scope(child.pid, unit, log)
    return child.pid


def _reap() -> None:
    """Reap finished children."""
    for pid in tuple(_started_here):
        try:
            ended = os.waitpid(pid, os.WNOHANG) != (0, 0)
        except ChildProcessError:
            ended = True
        if ended:
            _started_here.discard(pid)


async def _give_scope(pid: int, unit: str, log: Path) -> None:
    """Move a process into a scope of its own; where that fails it goes on without, and says so."""
    argv = scope_request(pid, unit, user=os.geteuid() != 0)
    problem = ""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        problem = plain_words(error)
    else:
        try:
            async with asyncio.timeout(_SCOPE_PATIENCE):
                _, stderr = await process.communicate()
            if process.returncode:
                problem = stderr.decode(errors="replace").strip()
        except TimeoutError:
            problem = f"systemd does not answer within {_SCOPE_PATIENCE:g} s"
        finally:
            await kill(process)
    if problem:
        with log.open("a") as file:
            file.write(f"entourage: process {pid} has no systemd scope of its own: {problem}\n")


def scope_request(pid: int, unit: str, *, user: bool) -> list[str]:
    """What asks systemd for a scope around a process that runs already.

    It is asked by D-Bus and not by ``systemd-run --scope``, which would stand between us and the
    descriptors that the process is to have.
    """
    return [
        "busctl", "--user" if user else "--system", "--quiet", "call",
        "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))",
        f"{unit}.scope", "fail",
        "4",
        # As the host shuts down, that one is stopped first: it saves what runs.
        "Before", "as", "1", SAVES_UNIT,
        "PIDs", "au", "1", str(pid),
        "Description", "s", "started by Entourage",
        "CollectMode", "s", "inactive-or-failed",
        "0",
    ]  # fmt: skip


async def await_marked(marker: str, patience: float) -> None:
    """Wait until no process carries the marker any more; those that stay too long are killed.

    Args:
        marker: The value of ``ENTOURAGE_RESOURCE``.
        patience: Seconds that they have to end by themselves.

    Raises:
        EntourageError: One does not even end when it is killed.
    """
    for last in (False, True):
        handles = [
            handle
            for pid in marked_processes(marker)
            if (handle := ProcessHandle.open(pid)) is not None
        ]
        try:
            if last:
                for handle in handles:
                    handle.kill()
            async with asyncio.timeout(patience):
                for handle in handles:
                    await handle.ended()
        except TimeoutError as error:
            if last:
                pids = ", ".join(str(handle.pid) for handle in handles)
                raise EntourageError(f"a process does not end when killed: {pids}") from error
        else:
            if not last:
                return
        finally:
            for handle in handles:
                handle.close()
            _reap()


def last_lines(log: Path, start: int, count: int = 3) -> str:
    """The last lines that a log got after position ``start``, in one."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            text = file.read(1 << 20).decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-count:])
