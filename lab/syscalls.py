"""The few Linux calls that Python 3.11 has no function for: mounts, namespaces, loop devices.

Each raises `OSError` with the call's errno, as the functions in `os` do.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
from pathlib import Path

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

_PR_SET_PDEATHSIG = 1

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR = 0x4
_EBUSY = 16

_EXT4_IOC_SHUTDOWN = 0x8004587D
_EXT4_SHUTDOWN_NOLOGFLUSH = 0x2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` names for new ones."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that `fd` is, or those namespaces of the process that it is."""
    _check(_libc.setns(fd, kind), "setns")


def sethostname(name: str) -> None:
    """Name the UTS namespace."""
    raw = name.encode()
    _check(_libc.sethostname(raw, len(raw)), "sethostname")


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that made it ends; over exec as well."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "prctl")


def unmount(target: str) -> None:
    """Take what is mounted there out of sight; whoever has it open still reaches it."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), target)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Show `source`, a file system of type `kind`, at `target`, like the system call."""
    _check(
        _libc.mount(
            source.encode(),
            target.encode(),
            kind.encode() or None,
            ctypes.c_ulong(flags),
            options.encode() or None,
        ),
        target,
    )


def bind(source: str, target: str) -> None:
    """Show `source`, with everything mounted below it, at `target` too."""
    mount(source, target, flags=MS_BIND | MS_REC)


def pivot_root(new_root: str) -> None:
    """Make `new_root`, a mount point, the root of this mount namespace and forget the old one."""
    os.chdir(new_root)
    # The old root ends up on top of the new one and is taken off: no directory for it is needed.
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def attach_loop(image: Path) -> int:
    """Attach `image` to a free loop device and return it open.

    The device frees itself when its last user is gone: nothing of it outlives a killed lab.
    """
    with image.open("r+b") as backing, Path("/dev/loop-control").open("rb") as control:
        while True:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            config = bytearray(304)  # struct loop_config: fd, block size, loop_info64, reserved
            struct.pack_into("=II", config, 0, backing.fileno(), 0)
            struct.pack_into("=I", config, 8 + 52, _LO_FLAGS_AUTOCLEAR)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, bytes(config))
            except OSError as error:
                os.close(device)
                if error.errno == _EBUSY:  # another lab took that device first
                    continue
                raise
            return device


def shutdown_ext4(fd: int) -> None:
    """Stop the ext4 that `fd` lies on at once; what is not yet on its disk is lost."""
    fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, struct.pack("=I", _EXT4_SHUTDOWN_NOLOGFLUSH))
