"""Where to, as virsh writes it: ``qemu+ssh://root@b:2222/system``, ``qemu+tls://b/system``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qs, urlsplit

from entourage.errors import UsageError
from entourage.hypervisors.backend import Destination, Elsewhere

_DRIVER = "qemu"
_TRANSPORTS = frozenset({"", "ssh", "tls", "tcp", "unix", "libssh", "libssh2"})
_BY_SSH = frozenset({"ssh", "libssh", "libssh2"})


_PATHS = frozenset({"/system", "/session"})
_SOCKETS = ("/run/libvirt/", "/var/run/libvirt/")
_KNOWN: Mapping[str, frozenset[str]] = {
    "": frozenset({"socket", "mode"}),
    "unix": frozenset({"socket", "mode"}),
    "tcp": frozenset({"mode"}),
    "tls": frozenset({"mode", "pkipath", "no_verify", "no_sanity", "tls_priority"}),
    "ssh": frozenset({"socket", "mode", "netcat", "proxy", "keyfile", "no_verify", "no_tty"}),
    "libssh": frozenset(
        {"socket", "mode", "netcat", "proxy", "keyfile", "known_hosts", "known_hosts_verify"}
    ),
    "libssh2": frozenset(
        {"socket", "mode", "netcat", "proxy", "keyfile", "known_hosts", "known_hosts_verify"}
    ),
}
"""What of a URI's options is obeyed, by its transport.

``netcat``, ``proxy`` and ``mode`` say how libvirt gets from its ssh to its daemon, and those of TLS
what it believes there: where Entourage is on the host, nothing goes that way.
"""
_VERIFIES: Mapping[str, str] = {"normal": "yes", "auto": "accept-new", "ignore": "no"}
_PREFIX = "afar "
"""Before a URI, in the name of a hypervisor on a host without Entourage; journals have it."""


def agentless_name(uri: str, identity: str = "") -> str:
    """The name of the hypervisor behind a URI, on a host where no Entourage is.

    Args:
        uri: By which it is reached from here.
        identity: What that host was known by when it was last asked; empty before that.
    """
    return f"{_PREFIX}{uri} {identity}".rstrip()


def parse_agentless(hypervisor: str) -> tuple[str, str]:
    """The URI and the identity in such a name; a URI has no blanks in it."""
    uri, _, identity = hypervisor.removeprefix(_PREFIX).partition(" ")
    return uri, identity


def elsewhere(hypervisor: str) -> Elsewhere | None:
    """What is behind such a name; None where it is the name of one on its own host."""
    if not hypervisor.startswith(_PREFIX):
        return None
    uri, _ = parse_agentless(hypervisor)
    address = ""
    with contextlib.suppress(ValueError):
        address = urlsplit(uri).hostname or ""
    return Elsewhere(uri=uri, address=address)


def same_as(hypervisor: str) -> str:
    """The usual URI of the libvirtd of this host behind a socket of its own; empty for others."""
    try:
        parts = urlsplit(hypervisor)
    except ValueError:
        return ""
    if parts.scheme != "qemu+unix" or parts.netloc or parts.fragment or parts.path not in _PATHS:
        return ""
    query = parse_qs(parts.query, keep_blank_values=True)
    sockets = query.pop("socket", [])
    if query or len(sockets) != 1 or ".." in sockets[0]:
        return ""
    return f"{_DRIVER}://{parts.path}" if sockets[0].startswith(_SOCKETS) else ""


def destination(text: str) -> Destination | None:
    """Take a URI apart; None where it is a host's name.

    Raises:
        UsageError: It cannot be meant.
    """
    if "://" not in text:
        return None
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
    if path not in _PATHS:
        raise UsageError(f"{text}: there is no {path}", remedy="/system or /session")
    options = _options(text, parts, transport)
    host = parts.hostname or ""
    if parts.username:
        host = f"{parts.username}@{host}"
    return Destination(
        host=host,
        port=port if transport in _BY_SSH else None,
        there=_there(options, path),
        by_ssh=transport in _BY_SSH,
        is_local=transport == "unix",
        ssh_options=_ssh_options(text, options) if transport in _BY_SSH else (),
    )


def _options(text: str, parts: SplitResult, transport: str) -> Mapping[str, str]:
    """What stands after the question mark; raises UsageError where that is not obeyed."""
    query = parse_qs(parts.query, keep_blank_values=True)
    known = _KNOWN[transport]
    for key, values in query.items():
        if key not in known or len(values) > 1:
            why = "is not obeyed here" if key not in known else "stands there twice"
            raise UsageError(
                f"{text}: {key} {why}",
                remedy=f"leave it out; there are {', '.join(sorted(known))}. What else ssh needs"
                " goes into ~/.ssh/config, or ssh.options in the settings",
            )
    return {key: values[0] for key, values in query.items()}


def _ssh_options(text: str, options: Mapping[str, str]) -> tuple[str, ...]:
    """The same in the words of ssh, by which the host's Entourage is reached."""
    found: list[str] = []
    for key, name in (("keyfile", "IdentityFile"), ("known_hosts", "UserKnownHostsFile")):
        if path := options.get(key):
            if '"' in path:
                raise UsageError(f"{text}: {key} has a quotation mark", remedy="rename that file")
            found.append(f'{name}="{path.replace("%", "%%")}"')
    if options.get("no_verify", "0") not in {"", "0"}:
        found.append("StrictHostKeyChecking=no")
    if verify := options.get("known_hosts_verify"):
        if verify not in _VERIFIES:
            raise UsageError(
                f"{text}: known_hosts_verify={verify}", remedy="normal, auto or ignore"
            )
        found.append(f"StrictHostKeyChecking={_VERIFIES[verify]}")
    if options.get("no_tty", "0") not in {"", "0"}:
        found.append("BatchMode=yes")
    return tuple(found)


def _there(options: Mapping[str, str], path: str) -> str:
    """The same libvirtd, as its own host calls it."""
    socket = options.get("socket")
    return f"qemu+unix://{path}?socket={socket}" if socket else f"qemu://{path}"
