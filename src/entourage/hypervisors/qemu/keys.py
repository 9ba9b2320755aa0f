"""The one-time pre-shared key, as QEMU wants it: in a file of a directory, by an object's name."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from entourage.hypervisors.base import Secret
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.qmp import Monitor
from entourage.hypervisors.qemu.record import Running
from entourage.hypervisors.qmp_error import CommandError

OBJECT = "entourage-tls"
# The group ffdhe2048 of RFC 7919, appendix A.1. Without it QEMU makes parameters of its own as the
# key is added, which takes from a fifth of a second to several, and the machine hangs meanwhile.
_DH_PARAMETERS = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""
_CHACHA_LAST = ":-CHACHA20-POLY1305:+CHACHA20-POLY1305"


async def add_key(
    monitor: Monitor, where: Places, secret: Secret, running: Running, *, server: bool
) -> None:
    """Give QEMU the key.

    A server reads the file anew at every handshake: it stays until ``forget_file``. A client reads
    it once.

    Args:
        monitor: Of the machine.
        where: Its places.
        secret: The key.
        running: Tells whom QEMU runs as: the files are that user's, 0600.
        server: Whether QEMU is connected to.
    """
    forget_file(where)
    where.psk.mkdir(mode=0o700)
    if running.uid:
        os.chown(where.psk, -1, running.gid)
        where.psk.chmod(0o710)  # the user reads in it, and makes nothing in it
    _write(where.psk / "keys.psk", f"{secret.username}:{secret.key.hex()}\n", running.uid)
    if server:
        _write(where.psk / "dh-params.pem", _DH_PARAMETERS, running.uid)
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
            {
                "qom-type": "tls-creds-psk",
                "id": OBJECT,
                "dir": str(where.psk),
                **whose,
                **cipher_order(),
            },
        )
    finally:
        if not server:
            forget_file(where)


def _write(path: Path, text: str, uid: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "w") as file:
        if uid:
            os.fchown(file.fileno(), uid, -1)
        file.write(text)


def cipher_order(
    processor: Path = Path("/proc/cpuinfo"), policy: Path = Path("/etc/gnutls/config")
) -> dict[str, str]:
    """What QEMU's key object is told about ciphers: AES before ChaCha20 where the processor has it.

    With a pre-shared key TLS 1.3 has a choice of suites with SHA-256 only, of which GnuTLS offers
    ChaCha20 first. A processor with instructions for AES is several times faster at AES-128-GCM,
    and QEMU encrypts what its mirrors send with its big lock held.

    Args:
        processor: Tells what the processor can do.
        policy: GnuTLS's configuration: where it has an order for the whole system, that is kept.
    """
    features = _line(processor, r"(?:flags|Features)\s*:")
    if "aes" not in features.split():
        return {}
    system = _line(policy, r"\s*SYSTEM\s*=")
    return {"priority": ("@SYSTEM" if system else "NORMAL") + _CHACHA_LAST}


def _line(path: Path, begins: str) -> str:
    """The first line that begins so; empty where there is none. No more than that is read.

    All of a large host's /proc/cpuinfo takes the kernel tens of milliseconds.
    """
    with contextlib.suppress(OSError), path.open() as lines:
        return next((line for line in lines if re.match(begins, line)), "")
    return ""


async def drop_key(monitor: Monitor) -> None:
    """Take the key away from QEMU; while a connection uses it, it stays."""
    with contextlib.suppress(CommandError):
        await monitor.execute("object-del", {"id": OBJECT})


def forget_file(where: Places) -> None:
    """Delete the file."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(where.psk)
