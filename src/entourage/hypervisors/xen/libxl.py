"""Two calls of libxl's C library: what a domain does, and letting a suspended one go on.

xl has no word for the second one (before Xen 4.19), and for the first it would have to be started,
which takes longer than the guest should wait. ``libxl_domain_info`` and ``libxl_domain_resume`` are
public (tools/include/libxl.h); the fields of ``libxl_dominfo`` are those since Xen 4.7.

As a program, ``python -I -m … libxl resume DOMID`` lets a suspended domain go on.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes.util import find_library
from pathlib import Path

import msgspec

from entourage.errors import HypervisorError, plain_words

_SUSPEND = 2
_CRASH = 3
_SHUT_DOWN = 0
_REBOOT = 1
_SOFT_RESET = 5  # it keeps its domain
_NOT_FOUND = -21  # ERROR_DOMAIN_NOTFOUND of libxl_types.idl
_CRITICAL = 9
_PLACES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")


class _Info(ctypes.Structure):
    """``libxl_dominfo``, with room for what later versions add."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        ("domid", ctypes.c_uint32),
        ("ssidref", ctypes.c_uint32),
        ("ssid_label", ctypes.c_void_p),
        ("running", ctypes.c_bool),
        ("blocked", ctypes.c_bool),
        ("paused", ctypes.c_bool),
        ("shutdown", ctypes.c_bool),
        ("dying", ctypes.c_bool),
        ("never_stop", ctypes.c_bool),
        ("shutdown_reason", ctypes.c_int),
        ("memory", ctypes.c_uint64 * 5),
        ("cpu_time", ctypes.c_uint64),
        ("later", ctypes.c_uint64 * 32),
    )


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What a domain does at this moment.

    Attributes:
        paused: Somebody holds it (``xl pause``, or it is being built).
        why_off: Its ``shutdown_reason`` where it is shut down; None where it is not.
        cpu_time: Nanoseconds that it has run here; 0 where it never did.
    """

    paused: bool
    why_off: int | None = None
    cpu_time: int

    @property
    def suspended(self) -> bool:
        """It has been asked to suspend, and has."""
        return self.why_off == _SUSPEND

    @property
    def ended(self) -> bool:
        """It is off; one that is reset keeps its domain."""
        return self.why_off not in {None, _SUSPEND, _SOFT_RESET}

    @property
    def shut_down(self) -> bool:
        """It is off because its guest was shut down."""
        return self.why_off == _SHUT_DOWN

    @property
    def reboots(self) -> bool:
        """It is off because its guest reboots: xl makes it anew."""
        return self.why_off == _REBOOT

    @property
    def crashed(self) -> bool:
        """It is off because its guest has crashed."""
        return self.why_off == _CRASH

    @property
    def state(self) -> str:
        """As ``entourage list`` says it."""
        if self.crashed:
            return "crashed"
        if self.ended:
            return "shut off"
        if self.suspended:
            return "suspended"
        return "paused" if self.paused else "running"


@functools.cache
def _library() -> ctypes.CDLL:
    """libxl, whose file has Xen's version in its name."""
    named = [str(path) for place in _PLACES for path in Path(place).glob("libxenlight.so.4.*")]
    for name in (find_library("xenlight"), *sorted(named, reverse=True)):
        if name:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
    raise HypervisorError("libxenlight cannot be loaded", remedy="install xen-utils")


@functools.cache
def _context() -> ctypes.c_void_p:
    """A ``libxl_ctx``, which says nothing by itself, for as long as this process lives."""
    try:
        log = ctypes.CDLL("libxentoollog.so.1")
    except OSError as error:
        raise HypervisorError(
            f"libxentoollog cannot be loaded: {plain_words(error)}", remedy="install xen-utils"
        ) from error
    make = log.xtl_createlogger_stdiostream
    make.restype = ctypes.c_void_p
    stderr = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
    logger = ctypes.c_void_p(make(stderr, _CRITICAL, 0))
    context = ctypes.c_void_p()
    status: int = _library().libxl_ctx_alloc(ctypes.byref(context), 0, 0, logger)
    if status:
        raise HypervisorError(
            f"Xen cannot be spoken to (libxl says {status})", remedy="run this as root, in dom0"
        )
    return context


def life(domid: int) -> Life | None:
    """What a domain does now; None where it is gone. Microseconds: one hypercall.

    Raises:
        HypervisorError: libxl is not there, or not allowed, or does not say.
    """
    info = _Info()
    status: int = _library().libxl_domain_info(_context(), ctypes.byref(info), domid)
    if status == _NOT_FOUND:
        return None
    if status:
        raise HypervisorError(
            f"libxl does not say what becomes of domain {domid} (its error {status})",
            remedy="`xl list` and `xl dmesg` may tell more",
        )
    found = Life(
        paused=info.paused,
        why_off=info.shutdown_reason if info.shutdown else None,
        cpu_time=info.cpu_time,
    )
    dying = info.dying  # being destroyed: only its memory may still be held by somebody
    _library().libxl_dominfo_dispose(ctypes.byref(info))  # which sets all of it to zero
    return None if dying else found


def main(arguments: list[str]) -> int:
    """Let a suspended domain go on."""
    [word, domid] = arguments
    if word != "resume":
        return 2
    status: int = _library().libxl_domain_resume(_context(), int(domid), 1, None)
    if status:
        sys.stderr.write(f"libxl_domain_resume says {status}\n")
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
