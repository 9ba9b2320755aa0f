"""Every error that Entourage raises on purpose.

    EntourageError              what happened, to which device, on which host, what to do
    ├── UsageError              what the user typed or wrote cannot be meant       exit 2
    │   └── ConfigError         … in a file: its path and key are named
    ├── Refused                 TEST found what cannot move; nothing was touched   exit 3
    ├── DomainBusy              another command works on this domain               exit 3
    ├── MigrationFailed         rolled back, the domain runs on the source         exit 4
    │   ├── Interrupted         … because the user asked for it
    │   └── GuestEnded          … and the guest has ended meanwhile: it is off     exit 7
    ├── InDoubt                 who may run the domain is not known from here      exit 6
    ├── HypervisorError         QEMU, libvirt or Xen said no
    │   └── HypervisorOff       … because nothing listens at its socket
    ├── DeviceError             a controller or a tool failed in a step
    ├── InternalError           a bug that was met on the way; rolled back or in doubt all the same
    ├── DeadlineError           something took longer than it was given
    ├── LinkError               the link to the other host
    │   ├── LinkLost            … went away or fell silent
    │   │   └── NoAgent         … because no Entourage is there
    │   └── PeerVersionError    … leads to a different Entourage
    └── JournalError            the journal cannot be trusted to keep a promise

An error that is not one of these is a bug, as is the cause of an InternalError. Its traceback is
shown only under ``--verbose``.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from entourage.steps import Refusal

_ROOM = "make room on that filesystem"
_RIGHTS = "run it as root, or see who may use that file"
_THERE = "see whether it is there: is its package installed, is its filesystem mounted?"
_WAY = "see whether the other end is alive, and what filters the way to it"
_LOOK = "look at it and at its filesystem, and at the kernel's log"
_REMEDIES: Final[Mapping[int, str]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _RIGHTS),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV), _THERE),
    **dict.fromkeys((errno.ENETUNREACH, errno.EHOSTUNREACH), _WAY),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
    **dict.fromkeys((errno.EBUSY, errno.ETXTBSY), "see what uses it (fuser), and end that"),
    errno.EEXIST: "see what has put it there, and move that away",
    errno.EISDIR: "name a file",
    errno.EROFS: "see why that filesystem is mounted read-only",
    errno.ENOMEM: "free memory on that host",
    errno.EIO: "look at the kernel's log: the disk may be failing",
}


def plain_words(error: BaseException) -> str:
    """What an error says to a user: of the system's own, the file and the reason without a number.

    ``/run/entourage/x: no space left on device``
    """
    if isinstance(error, TimeoutError) and not str(error):
        return "it took too long"
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    reason = error.strerror[:1].lower() + error.strerror[1:]
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(names)}: {reason}" if names else reason


def what_to_do(error: BaseException) -> str:
    """What can be done about what the system has refused; ``plain_words`` says what that is."""
    if not isinstance(error, OSError):
        return ""
    if isinstance(error, socket.gaierror):
        return "see whether the name is right, and which name server is asked"
    if isinstance(error, ConnectionError | TimeoutError):
        return _WAY
    return _REMEDIES.get(error.errno, _LOOK) if error.errno else ""


class EntourageError(Exception):
    """What happened; to which device and on which host, where that is known; and what to do.

    Attributes:
        message: What happened, in one sentence without a full stop.
        device: The id of the device, as ``block/disk0``; empty where none is concerned.
        host: The host on which it happened; empty where that is this one or none.
        remedy: What the user can do; empty where there is nothing to say.
    """

    exit_code = 1

    def __init__(self, message: str, *, device: str = "", host: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.device = device
        self.host = host
        self.remedy = remedy

    def __str__(self) -> str:
        """One line: ``block/disk0 on b: no space left (free 3 GiB in /srv)``."""
        return f"{self.what} ({self.remedy})" if self.remedy else self.what

    @property
    def what(self) -> str:
        """The same without the remedy."""
        where = " on ".join(part for part in (self.device, self.host) if part)
        return f"{where}: {self.message}" if where else self.message


class UsageError(EntourageError):
    """What the user typed or wrote cannot be meant."""

    exit_code = 2


class ConfigError(UsageError):
    """A file holds what it may not.

    Attributes:
        path: The file.
        key: The key as ``block[0].format``; empty where the whole file is meant.
    """

    def __init__(self, message: str, *, path: str, key: str = "", remedy: str = "") -> None:
        super().__init__(f"{path}: {f'{key}: ' if key else ''}{message}", remedy=remedy)
        self.path = path
        self.key = key


class Refused(EntourageError):  # noqa: N818 - the field says "refused", an error it is all the same
    """TEST found devices that cannot move; nothing was touched.

    Attributes:
        refusals: Every one of them, each with its reason and its remedy.
    """

    exit_code = 3

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        super().__init__("; ".join(str(refusal) for refusal in refusals))
        self.refusals = tuple(refusals)


class DomainBusy(EntourageError):  # noqa: N818 - a state, as in EBUSY
    """Another command works on this domain, or a migration of it is not settled."""

    exit_code = 3


class MigrationFailed(EntourageError):  # noqa: N818 - what the user calls it
    """The migration was rolled back: the domain runs on the source.

    Attributes:
        recovery_errors: What went wrong while devices were put back, each a sentence.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        device: str = "",
        host: str = "",
        remedy: str = "",
        recovery_errors: Sequence[str] = (),
    ) -> None:
        super().__init__(message, device=device, host=host, remedy=remedy)
        self.recovery_errors = tuple(recovery_errors)


class Interrupted(MigrationFailed):
    """The user asked to stop before the hand-over."""


class GuestEnded(MigrationFailed):
    """The guest has ended by itself before the hand-over: the domain is off, and the source's."""

    exit_code = 7


class InDoubt(EntourageError):  # noqa: N818 - the protocol's own word
    """Who may run the domain cannot be known from here; ``entourage recover`` finds out."""

    exit_code = 6


class HypervisorError(EntourageError):
    """QEMU, libvirt or Xen said no."""


class GoneError(HypervisorError):
    """The machine is there no more, as its hypervisor has just said: its guest has ended."""


class CannotExpress(HypervisorError):  # noqa: N818 - what it says of the domain
    """A hypervisor has the domain, and it has something that Entourage cannot."""


class HypervisorOff(HypervisorError):  # noqa: N818 - a state, as in ECONNREFUSED
    """Nothing listens where the hypervisor's daemon does: it is not installed, or does not run."""


class DeviceError(EntourageError):
    """A controller or an external tool failed in a step."""


class InternalError(EntourageError):
    """A bug was met where there is something to be done about it first; ``__cause__`` is what.

    Args:
        bug: What was raised.
    """

    def __init__(self, bug: BaseException) -> None:
        super().__init__(
            f"a bug: {type(bug).__name__}: {bug}",
            remedy="please report it",
        )
        self.__cause__ = bug


def ours(error: BaseException) -> EntourageError:
    """An error of whatever kind as one that can be told.

    Returns:
        It itself, if it is one of ours; what the system has refused, with what can be done about
        it; else an InternalError. The error is the cause of one that is made of it.
    """
    if isinstance(error, EntourageError):
        return error
    if not isinstance(error, OSError):
        return InternalError(error)
    refused = EntourageError(plain_words(error), remedy=what_to_do(error))
    refused.__cause__ = error
    return refused


class DeadlineError(EntourageError):
    """Something took longer than it was given."""


class LinkError(EntourageError):
    """The link to the other host cannot be had."""


class LinkLost(LinkError):  # noqa: N818 - the protocol's own word
    """The link went away or fell silent."""


class NoAgent(LinkLost):
    """The host answers, and there is no Entourage on it."""


class PeerVersionError(LinkError):
    """The other host has an Entourage that this one cannot talk to."""


class JournalError(EntourageError):
    """The journal cannot be trusted to keep a promise; nothing was touched."""
