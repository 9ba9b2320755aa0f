"""Where to, as virsh writes it: ``qemu+ssh://root@b:2222/system``, ``qemu+tls://b/system``."""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qs, urlsplit

import msgspec

from entourage.errors import UsageError

_DRIVER = "qemu"
_TRANSPORTS = frozenset({"", "ssh", "tls", "tcp", "unix", "libssh", "libssh2"})
_BY_SSH = frozenset({"ssh", "libssh", "libssh2"})


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """A libvirtd, and the host it is on.

    Attributes:
        host: As ssh knows it; empty where the URI names none.
        port: For ssh; None: the usual one.
        there: The URI of that libvirtd on its own host.
        by_ssh: Whether libvirt's own way there is ssh.
        is_local: Whether its way is a socket of that host.
    """

    host: str
    port: int | None
    there: str
    by_ssh: bool
    is_local: bool


def is_uri(text: str) -> bool:
    """Whether a target is a URI, and not a host's name."""
    return "://" in text


def destination(text: str) -> Destination:
    """Take a URI apart.

    Raises:
        UsageError: It cannot be meant.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{text}: {error}", remedy="as qemu+ssh://HOST/system") from error
    driver, _, transport = parts.scheme.partition("+")
    if driver != _DRIVER or transport not in _TRANSPORTS:
        raise UsageError(
            f"{text}: only libvirt's QEMU domains can be moved, not {parts.scheme}://",
            remedy="as qemu+ssh://HOST/system, qemu+tls://HOST/system or qemu+unix:///system",
        )
    if any(char.isspace() or not char.isprintable() for char in text):
        raise UsageError(f"{text!r} is no URI", remedy="as qemu+ssh://HOST/system")
    path = parts.path or "/system"
    if path not in {"/system", "/session"}:
        raise UsageError(f"{text}: there is no {path}", remedy="/system or /session")
    host = parts.hostname or ""
    if parts.username:
        host = f"{parts.username}@{host}"
    return Destination(
        host=host,
        port=port if transport in _BY_SSH else None,
        there=_there(parts, path),
        by_ssh=transport in _BY_SSH,
        is_local=transport == "unix",
    )


def _there(parts: SplitResult, path: str) -> str:
    """The same libvirtd, as its own host calls it."""
    socket = parse_qs(parts.query).get("socket")
    return f"qemu+unix://{path}?socket={socket[0]}" if socket else f"qemu://{path}"
