"""Where the page listens: a unix socket, this host alone, or for proxies that are trusted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import ipaddress
import os
import socket
import stat
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from entourage.errors import UsageError, plain_words, what_to_do
from entourage.hosts.local import LONGEST, too_long
from entourage.settings.model import FleetSettings

_UNIX: Final = "unix:"
_LAST_PORT: Final = 65535
_EXAMPLE: Final = "unix:/run/entourage/fleet.sock, or 127.0.0.1:8443"
_CONNECTIONS: Final = 512
_HEADERS: Final = 1 << 15  # bytes


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen.

    Attributes:
        path: Of a unix socket; empty: TCP.
        address, port: Of TCP.
    """

    path: str = ""
    address: str = ""
    port: int = 0

    @property
    def is_loopback(self) -> bool:
        """Whether only this host's own users get there."""
        return bool(self.path) or ipaddress.ip_address(self.address).is_loopback


def listen_at(text: str, settings: FleetSettings) -> Listen:
    """What was typed.

    Args:
        text: ``unix:PATH`` or ``ADDRESS:PORT``.
        settings: Which proxies are trusted.

    Raises:
        UsageError: It cannot be meant, or others would get there without a proxy.
    """
    if text.startswith(_UNIX):
        path = text.removeprefix(_UNIX)
        if not path.startswith("/"):
            raise UsageError(f"--listen {text}: not an absolute path", remedy=_EXAMPLE)
        if too_long(path):
            raise UsageError(
                f"--listen {text}: a unix socket's path has {LONGEST} bytes at most",
                remedy=_EXAMPLE,
            )
        return Listen(path=path)
    address, _, port = text.rpartition(":")
    try:
        parsed = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        number = int(port) if port.isascii() and port.isdigit() else -1
    except ValueError:
        number, parsed = -1, None
    if parsed is None or not 0 <= number <= _LAST_PORT:
        raise UsageError(f"--listen {text}: neither a socket nor an address", remedy=_EXAMPLE)
    found = Listen(address=str(parsed), port=number)
    if not found.is_loopback and not settings.trusted_proxies:
        raise UsageError(
            f"--listen {text}: others than this host's users would get there",
            remedy="a unix socket or 127.0.0.1, with a proxy before it; or [fleet] trusted-proxies",
        )
    return found


@contextlib.contextmanager
def listening(listen: Listen, settings: FleetSettings) -> Generator[socket.socket]:
    """A socket that listens.

    Raises:
        UsageError: There can be none; somebody else listens there.
    """
    try:
        made = _unix(listen.path, settings.socket_group) if listen.path else _tcp(listen)
    except OSError as error:
        raise UsageError(
            f"the page cannot listen: {plain_words(error)}", remedy=what_to_do(error)
        ) from error
    with made:
        try:
            yield made
        finally:
            if listen.path:
                with contextlib.suppress(OSError):
                    Path(listen.path).unlink()


def _tcp(listen: Listen) -> socket.socket:
    version = ipaddress.ip_address(listen.address).version
    family = socket.AF_INET6 if version == 6 else socket.AF_INET  # noqa: PLR2004 - IPv6
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((listen.address, listen.port))
        made.listen()
    except BaseException:
        made.close()
        raise
    return made


def _unix(path: str, group: str | None) -> socket.socket:
    """For its user, and for those of a group."""
    Path(path).parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    _take_away(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        made.bind(path)
        if group is not None:
            os.chown(path, -1, _gid(group), follow_symlinks=False)
        Path(path).chmod(0o660)
        made.listen()
    except BaseException:
        made.close()
        raise
    finally:
        os.umask(before)
    return made


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(
            f"[fleet] socket-group: there is no group {group!r}", remedy=f"groupadd {group}"
        ) from None


def _take_away(path: str) -> None:
    """What a controller has left that was killed; raises UsageError where one listens."""
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise UsageError(f"{path} is there and is no socket", remedy="another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.settimeout(0)
        try:
            other.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
        raise UsageError(f"another controller listens at {path}", remedy="another --listen")


class _Server(uvicorn.Server):
    """One whose signals are the controller's to understand."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """None of them."""
        yield


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, made: socket.socket) -> AsyncGenerator[asyncio.Task[None]]:
    """Answer at a socket, in this loop.

    Yields:
        What serves: it ends by itself only where it fails.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=_HEADERS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=3,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[made]))
    try:
        yield task
    finally:
        server.should_exit = True
        await asyncio.gather(task, return_exceptions=True)
