"""What Entourage makes on a host, written down before it is made, and how each is undone.

The ledger outlives the process that writes it: after a crash the next one reads it backwards and
undoes every row. A row is written *before* the deed, and undoing what was never made is no error.
What a user owned before is never undone: a file is deleted only while it is the very file (inode
and generation) that was made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from entourage.errors import EntourageError, plain_words
from entourage.hosts import programs
from entourage.hosts.fileid import file_id
from entourage.hosts.ownership import RECORD, give_back
from entourage.hosts.threads import in_thread

# In the environment of every process that is made for good; children inherit it.
MARKER = "ENTOURAGE_RESOURCE"
_IP_WITHIN = 30.0  # seconds


class Ledger(Protocol):
    """Where resources are written down before they are made."""

    def record(self, kind: str, **spec: str | int) -> None:
        """Write one down; durable when this returns. Kinds are the keys of ``undo``."""
        ...


class MemoryLedger:
    """A ledger for one process: enough to undo a start that failed."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, str | int]]] = []

    def record(self, kind: str, **spec: str | int) -> None:
        """Write one down."""
        self.rows.append((kind, spec))

    async def undo(self) -> list[str]:
        """Undo everything, newest first; returns what could not be undone, each a sentence."""
        problems = await undo_rows(list(reversed(self.rows)))
        self.rows.clear()
        return problems


async def undo_rows(rows: Sequence[tuple[str, Mapping[str, str | int]]]) -> list[str]:
    """Undo rows in the order given; one that fails never stops the others.

    Returns:
        What could not be undone, each a sentence.
    """
    problems: list[str] = []
    for kind, spec in rows:
        try:
            await undo(kind, spec)
        except (OSError, EntourageError, KeyError) as error:
            problems.append(f"{kind} {dict(spec)} is left: {plain_words(error)}")
    return problems


async def undo(kind: str, spec: Mapping[str, str | int]) -> None:
    """Undo one row; what is not there (any more) is undone already.

    Args:
        kind: ``process`` (marker), ``scratch`` (path: a name that can only be ours; beside: what
            is seen where its storage is mounted, empty where that is this host's own), ``file``
            (path, id), ``dir`` (path: removed with what is in it), ``tap`` (name), ``owners``
            (path: the record of files that were given to a user).
        spec: The row's fields.

    Raises:
        OSError, EntourageError: It could not be undone.
    """
    match kind:
        case "process":
            await end_processes(str(spec["marker"]))
        case "scratch":
            await in_thread(_remove_scratch, Path(str(spec["path"])), str(spec.get("beside", "")))
        case "file":
            await in_thread(_remove, Path(str(spec["path"])), str(spec["id"]))
        case "dir":
            await in_thread(_remove_directory, Path(str(spec["path"])))
        case "owners":
            await in_thread(give_back, Path(str(spec["path"])))
        case "tap":
            await remove_tap(str(spec["name"]))
        case _:
            raise EntourageError(f"no way to undo {kind!r}", remedy="a newer Entourage made it")


def _remove_scratch(path: Path, beside: str) -> None:
    if not beside or os.path.lexists(beside) or os.path.lexists(path):
        path.unlink(missing_ok=True)
        return
    raise EntourageError(
        f"whether {path} is left cannot be seen: there is no {beside}",
        remedy=f"mount its storage; or remove {path}, if its save is gone",
    )


def _remove_directory(path: Path) -> None:
    if (path / RECORD).exists():
        raise EntourageError(
            f"{path / RECORD} says to whom files are still to be given back",
            remedy="`entourage recover` tries it again",
        )
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def _remove(path: Path, which: str) -> None:
    """Delete a file, if it is still the one that was made."""
    with contextlib.suppress(FileNotFoundError):
        if not path.is_symlink() and file_id(path) == which:
            path.unlink()


async def remove_tap(name: str) -> None:
    """Delete a tap device; one that is gone is no error."""
    if not Path("/sys/class/net", name).exists():  # noqa: ASYNC240 - /sys
        return
    command = ("ip", "link", "delete", "dev", name)
    status, _, said = await programs.run(*command, within=_IP_WITHIN)
    if status and Path("/sys/class/net", name).exists():  # noqa: ASYNC240 - /sys
        raise EntourageError(f"tap {name} cannot be deleted: {said}")


def carries(pid: int, marker: str) -> bool:
    """Whether a process carries the marker in its environment; False where it has ended."""
    wanted = f"{MARKER}={marker}".encode()
    try:
        return wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def marked_processes(marker: str) -> list[int]:
    """The processes of this host that carry the marker in their environment."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    return [pid for pid in pids if carries(pid, marker)]


async def end_processes(
    marker: str, *, patience: float = 5.0, how: signal.Signals = signal.SIGKILL
) -> None:
    """End all processes that carry the marker, at once, and wait until they are gone.

    Args:
        marker: The value of ``ENTOURAGE_RESOURCE``.
        patience: Seconds to wait for the kernel, or for what they do on another signal.
        how: That signal.

    Raises:
        EntourageError: One is still there.
    """
    handles: list[int] = []
    try:
        for pid in marked_processes(marker):
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
                signal.pidfd_send_signal(handles[-1], how)
        for handle in handles:
            await _gone(handle, patience, how)
    finally:
        for handle in handles:
            os.close(handle)


async def _gone(pidfd: int, patience: float, how: signal.Signals) -> None:
    """Wait until the process of a pidfd has ended."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(patience):
            await ended.wait()
    except TimeoutError as error:
        raise EntourageError(f"a process does not end ({patience:g} s after {how.name})") from error
    finally:
        loop.remove_reader(pidfd)
    with contextlib.suppress(ChildProcessError):
        # A child of this very process stays as a zombie until its last word is taken.
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - it does not wait


def place(scratch: Path, final: Path, ledger: Ledger, *, known_as: Path | None = None) -> None:
    """Give a finished scratch file its name, never over something that is there.

    Args:
        scratch: The file.
        final: Its name, perhaps in a directory by its descriptor.
        ledger: Takes it before it is there.
        known_as: Its name for later processes; None: the same.

    Raises:
        FileExistsError: There is something; it stays as it is.
    """
    ledger.record("file", path=str(known_as or final), id=file_id(scratch))
    os.link(scratch, final)
    scratch.unlink()
