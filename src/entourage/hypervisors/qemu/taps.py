"""Taps: opened here, handed to QEMU as descriptors, and gone with its last breath.

A tap that is not made persistent exists as long as a process has it open. So there is nothing to
write down and nothing to clean up, whoever dies: no name is ever deleted that may have become
another domain's meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

from entourage.errors import HypervisorError, what_to_do

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_SIOCGIFMTU, _SIOCSIFMTU = 0x8921, 0x8922
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_SIOCBRADDIF = 0x89A2


def open_tap(name: str, bridge: str, mtu: int | None) -> int:
    """Make a tap that is up and a port of the bridge.

    Args:
        name: The tap's name.
        bridge: The bridge.
        mtu: Its MTU; None for the bridge's own (a smaller one would lower the bridge's).

    Returns:
        Its descriptor; closing it removes the tap.

    Raises:
        FileExistsError: There is an interface of that name.
        HypervisorError: It cannot be made.
    """
    try:
        socket.if_nametoindex(bridge)
    except OSError as error:
        raise HypervisorError(
            f"there is no bridge {bridge}", remedy="make it, or name another"
        ) from error
    if name in (known for _, known in socket.if_nameindex()):
        raise FileExistsError(errno.EEXIST, "there is an interface of that name", name)
    try:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HypervisorError(
            f"/dev/net/tun cannot be opened: {error.strerror}",
            remedy="load the module tun, and run as root",
        ) from error
    try:
        _set_up(tap, name, bridge, mtu)
    except BaseException:
        os.close(tap)
        raise
    return tap


def _set_up(tap: int, name: str, bridge: str, mtu: int | None) -> None:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise FileExistsError(
                errno.EEXIST, "there is an interface of that name", name
            ) from error
        raise HypervisorError(
            f"the tap {name} cannot be made: {error.strerror}", remedy=what_to_do(error)
        ) from error
    with contextlib.suppress(OSError):
        # The host has no business on the guest's link: no address of its own, no multicast reports.
        Path("/proc/sys/net/ipv6/conf", name, "disable_ipv6").write_text("1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            # A port with a smaller one would lower the bridge's, and with it the host's own; what
            # the guest is told is the NIC's.
            wanted = max(mtu or 0, _get_int(control, _SIOCGIFMTU, bridge))
            _set_int(control, _SIOCSIFMTU, name, wanted)
            _set_int(control, _SIOCBRADDIF, bridge, socket.if_nametoindex(name))
            up = _get_int(control, _SIOCGIFFLAGS, name) & 0xFFFF | _IFF_UP
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), up))
        except OSError as error:
            raise HypervisorError(
                f"the tap {name} cannot be made a port of {bridge}: {error.strerror}",
                remedy=f"check that {bridge} is a bridge and takes an MTU of {mtu or 'its own'}",
            ) from error


def _get_int(control: socket.socket, request: int, name: str) -> int:
    answer = fcntl.ioctl(control, request, struct.pack("16si20x", name.encode(), 0))
    value: int = struct.unpack_from("i", answer, 16)[0]
    return value


def _set_int(control: socket.socket, request: int, name: str, value: int) -> None:
    fcntl.ioctl(control, request, struct.pack("16si20x", name.encode(), value))
