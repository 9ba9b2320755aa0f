"""One lock per domain and host, held by who works on the domain; freed when that process dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from entourage.errors import DomainBusy

if TYPE_CHECKING:
    from collections.abc import Generator


_LENGTH = 2048  # bytes: json writes up to twelve for a character
_MOST_TOLD = 160


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock: its process, and what that last said it does."""

    pid: int
    doing: str


class DomainLock:
    """A lock that is held.

    Its descriptor is not inheritable: what is started meanwhile does not keep it. The deadman
    must: pass it `fileno` (``pass_fds``), and the lock is free only once both are gone.
    """

    def __init__(self, descriptor: int) -> None:
        """Use `domain_lock`."""
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The descriptor that holds the lock."""
        return self._descriptor

    def note(self, doing: str) -> None:
        """Tell ``status`` what is being done: one write to a file in memory, never a sync.

        It is always as long, so that nobody reads the end of what was there before.
        """
        text = json.dumps({"pid": os.getpid(), "doing": doing[:_MOST_TOLD]}).encode()
        os.pwrite(self._descriptor, text.ljust(_LENGTH), 0)


@contextlib.contextmanager
def domain_lock(run_dir: Path, domain: str, doing: str) -> Generator[DomainLock]:
    """Hold the lock of a domain.

    Args:
        run_dir: A directory that is empty after a reboot (0700 where it is made here).
        domain: The domain's UUID.
        doing: What ``status`` and others who want the lock are told.

    Raises:
        DomainBusy: Another process has it; its pid and what it does are named.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(run_dir / f"{domain}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # The file is never deleted: two processes could else hold locks on two files of one name.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            raise DomainBusy(
                f"process {holder.pid} works on the domain: {holder.doing}",
                remedy="wait until it has finished; entourage status shows how far it is",
            ) from error
        lock = DomainLock(descriptor)
        lock.note(doing)
        yield lock
    finally:
        # Closed, not unlocked: LOCK_UN would take the lock from the deadman too.
        os.close(descriptor)


def lock_holder(run_dir: Path, domain: str) -> Holder | None:
    """Who works on the domain now; None where nobody does."""
    try:
        descriptor = os.open(run_dir / f"{domain}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> Holder:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(int(content["pid"]), str(content["doing"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return Holder(0, "not known")


def interrupt_holder(run_dir: Path, domain: str) -> bool:
    """Send SIGINT to who works on the domain now, whose lock it holds when it is sent.

    Returns:
        Whether there was somebody.
    """
    holder = lock_holder(run_dir, domain)
    if holder is None:
        return False
    try:
        process = os.pidfd_open(holder.pid)
    except OSError:
        return False
    try:
        # It may be dead, its deadman hold the lock, and its number be another's.
        if not _has_open(holder.pid, run_dir / f"{domain}.lock"):
            return False
        signal.pidfd_send_signal(process, signal.SIGINT)
    except ProcessLookupError:
        return False
    else:
        return True
    finally:
        os.close(process)


def _has_open(pid: int, path: Path) -> bool:
    """Whether a process has a file open."""
    for descriptor in Path("/proc", str(pid), "fd").glob("*"):
        with contextlib.suppress(OSError):
            if os.path.samefile(descriptor, path):  # noqa: PTH121 - follows the link
                return True
    return False
