"""The one-time pre-shared key, as QEMU wants it: in a file of a directory, by an object's name."""

from __future__ import annotations

import contextlib
import os
import shutil

from entourage.hypervisors.base import Secret
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.qmp import CommandError, Monitor

OBJECT = "entourage-tls"


async def add_key(monitor: Monitor, where: Places, secret: Secret, *, server: bool) -> None:
    """Give QEMU the key.

    A server reads the file anew at every handshake: it stays until ``forget_file``. A client reads
    it once.
    """
    forget_file(where)
    where.psk.mkdir(mode=0o700)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(where.psk / "keys.psk", flags, 0o600), "w") as file:
        file.write(f"{secret.username}:{secret.key.hex()}\n")
    whose = (
        {"endpoint": "server"}
        if server
        else {
            "endpoint": "client",
            "username": secret.username,
        }
    )
    try:
        await drop_key(monitor)
        await monitor.execute(
            "object-add",
            {"qom-type": "tls-creds-psk", "id": OBJECT, "dir": str(where.psk), **whose},
        )
    finally:
        if not server:
            forget_file(where)


async def drop_key(monitor: Monitor) -> None:
    """Take the key away from QEMU; while a connection uses it, it stays."""
    with contextlib.suppress(CommandError):
        await monitor.execute("object-del", {"id": OBJECT})


def forget_file(where: Places) -> None:
    """Delete the file."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(where.psk)
