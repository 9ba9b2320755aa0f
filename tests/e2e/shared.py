"""Storage that both hosts of a lab have, and block devices made of files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from lab.host import Host
from lab.hosts import Lab
from lab.libvirtd import Libvirtd

SHARED = "/mnt/shared"
POOL = "shared"


@contextmanager
def loop(host: Host, file: str, size: str) -> Generator[str]:
    """A block device made of a file; /dev is the same on all hosts of a lab."""
    host.run(["truncate", "-s", size, file])
    device = host.run(["losetup", "--find", "--show", file]).stdout.strip()
    try:
        yield device
    finally:
        host.run(["losetup", "--detach", device])
        host.path(file).unlink()


@contextmanager
def shared_storage(lab: Lab, size: str = "256M") -> Generator[None]:
    """One filesystem, mounted on both hosts."""
    hosts = (lab["a"], lab["b"])
    with ExitStack() as stack:
        device = stack.enter_context(loop(hosts[0], "/srv/shared.img", size))
        hosts[0].run(["mkfs.ext4", "-q", device])
        for host in hosts:
            host.run(["mkdir", "-p", SHARED])
            host.run(["mount", device, SHARED])
            stack.callback(host.run, ["umount", SHARED])
        yield


@contextmanager
def filled(host: Host, *, but: int = 0) -> Generator[None]:
    """Nobody has room in the shared directory any more, root included, but for so many bytes."""
    file = f"{SHARED}/filler.{secrets.token_hex(4)}"
    space = os.statvfs(host.path(SHARED))
    length = max(space.f_bavail * space.f_frsize - but, space.f_frsize)
    host.run(["fallocate", "-l", str(length), file], check=bool(but))
    if not but:  # what is left, and what is kept for root; it ends for want of room
        host.run(["sh", "-c", f"cat /dev/zero >>{file}; sync {file}"], check=False)
    try:
        yield
    finally:
        host.run(["rm", file])


@contextmanager
def pool(host: Host) -> Generator[None]:
    """A storage pool of the shared directory: libvirt can look into nothing else from afar."""
    daemon = Libvirtd(host)
    daemon.virsh("pool-create-as", POOL, "dir", "--target", SHARED)
    try:
        yield
    finally:
        daemon.virsh("pool-destroy", POOL)
