"""What the lab's Xen hosts boot from: made once from Debian's packages, then cached.

A base disk with Debian's Xen, kernel and ssh; the hypervisor as QEMU's multiboot loads it; an
initramfs for dom0, and another for its guests. Nothing is compiled and nothing is installed.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab.guest_image import BUSYBOX, CACHE, Cpio
from lab.host import REPOSITORY
from lab.kernel import Kernel, modules

_HERE = Path(__file__).parent
_RELEASE, _XEN = "bookworm", "4.17"
_PACKAGES = (
    *(f"xen-hypervisor-{_XEN}-amd64", f"xen-utils-{_XEN}", "linux-image-amd64", "busybox-static"),
    *("openssh-server", "openssh-client", "python3", "iproute2", "kmod", "udev", "mount"),
    *("qemu-system-xen", "qemu-utils"),  # HVM guests' device model, and what reads qcow2 for all
)
_DOM0_MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
_GUEST_MODULES = ("xen_blkfront", "xen_netfront")
_DISK_SIZE = "3G"


@dataclass(frozen=True)
class XenImage:
    """What a lab host boots from, and what its guests do.

    Attributes:
        hypervisor: Xen, unpacked.
        kernel: Of dom0 and of the guests.
        initrd: Of dom0.
        disk: dom0's root, ext4; only ever used below an overlay.
        key: The private key that opens root's door on every host.
    """

    hypervisor: Path
    kernel: Path
    initrd: Path
    disk: Path
    key: Path


def xen_image() -> XenImage:
    """Return the image, made now if this version of it was not yet (some minutes)."""
    directory = CACHE / "xen"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place = directory / _digest()
        if not (place / "complete").exists():
            for old in directory.glob("*/"):  # another version's, or half of this one
                shutil.rmtree(old, ignore_errors=True)
            place.mkdir()
            _make(place, _packages(directory))
            (place / "complete").touch()
    return XenImage(
        hypervisor=place / "xen.elf",
        kernel=place / "vmlinuz",
        initrd=place / "dom0.cpio",
        disk=place / "dom0.ext4",
        key=place / "key",
    )


def _digest() -> str:
    """Changes with whatever the image is made of, but for Debian's packages."""
    digest = hashlib.sha256(repr(_PACKAGES).encode())
    for path in (Path(__file__), _HERE.parent / "kernel.py", *sorted(_HERE.glob("*.sh"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _packages(directory: Path) -> Path:
    """Debian's part of the root file system, as a tar archive: what takes long."""
    name = hashlib.sha256(repr(_PACKAGES).encode()).hexdigest()[:16]
    archive = directory / f"debian-{name}.tar"
    if not archive.exists():
        scratch = archive.with_suffix(".part.tar")
        left_out = ("doc", "man", "locale", "info")
        subprocess.run(
            [
                "mmdebstrap", "--quiet", "--variant=apt",
                '--aptopt=APT::Sandbox::User "root"',
                *(f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in left_out),
                f"--include={','.join(_PACKAGES)}", _RELEASE, str(scratch),
            ],
            check=True,
        )  # fmt: skip
        scratch.rename(archive)
    return archive


def _make(place: Path, debian: Path) -> None:
    root = place / "root"
    root.mkdir()
    subprocess.run(["tar", "-xf", debian, "-C", root, "--exclude=./dev/*"], check=True)
    kernel = Kernel.found(root)
    shutil.copy(kernel.image, place / "vmlinuz")
    with gzip.open(root / f"boot/xen-{_XEN}-amd64.gz") as packed:
        (place / "xen.elf").write_bytes(packed.read())
    dom0 = _initramfs(kernel, _DOM0_MODULES, _HERE / "dom0_initrd.sh")
    (place / "dom0.cpio").write_bytes(dom0)
    guest = _initramfs(kernel, _GUEST_MODULES, _HERE / "guest_init.sh")
    _furnish(root, place, guest)
    for path in (root / "boot").glob("*"):
        path.unlink()
    subprocess.run(
        [
            "mke2fs", "-q", "-t", "ext4", "-O", "^metadata_csum,^64bit", "-E", "lazy_itable_init=1",
            "-d", root, place / "dom0.ext4", _DISK_SIZE,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    shutil.rmtree(root)


def _furnish(root: Path, place: Path, guest: bytes) -> None:
    """What a lab host has beyond Debian's packages."""
    lab = root / "lab"
    lab.mkdir()
    shutil.copy(_HERE / "dom0_init.sh", lab / "init")
    (lab / "init").chmod(0o755)
    (root / "etc/inittab").write_text("null::respawn:/bin/busybox sleep 1d\n")
    guests = root / "srv/guest"
    guests.mkdir(parents=True)
    shutil.copy(place / "vmlinuz", guests / "vmlinuz")
    (guests / "initrd").write_bytes(guest)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / "key"], check=True)
    ssh = root / "root/.ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(place / "key", ssh / "id_ed25519")
    (ssh / "id_ed25519").chmod(0o600)
    shutil.copy(place / "key.pub", ssh / "authorized_keys")
    # One key for both hosts: they have one disk below them.
    host_key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2]
    (ssh / "known_hosts").write_text(f"a,b,10.78.0.1,10.78.0.2 {' '.join(host_key)}\n")
    # Software emulation makes every handshake long: the cheapest that is sound.
    (ssh / "config").write_text("Host *\n  Ciphers aes128-gcm@openssh.com\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n10.78.0.1 a\n10.78.0.2 b\n")
    (root / "etc/ssh/sshd_config").write_text(
        "PermitRootLogin prohibit-password\nUsePAM no\nUseDNS no\n"
        "MaxStartups 100\nMaxSessions 100\n"
        "HostKey /etc/ssh/ssh_host_ed25519_key\nSubsystem sftp internal-sftp\n"
    )


def _initramfs(kernel: Kernel, names: Iterable[str], init: Path) -> bytes:
    """An archive of busybox, some of the kernel's modules, and a script."""
    archive = Cpio()
    place = f"lib/modules/{kernel.version}"
    for name in ("bin", "dev", "proc", "sys", "lib", "lib/modules", place):
        archive.add(name, 0o040755)
    archive.add("bin/busybox", 0o100755, BUSYBOX.read_bytes())
    archive.add("bin/sh", 0o120777, b"busybox")
    index: list[str] = []
    made: set[Path] = set()
    for module in modules(kernel.modules, names):
        for parent in reversed(Path(module.path).parents[:-1]):
            if parent not in made:
                made.add(parent)
                archive.add(f"{place}/{parent}", 0o040755)
        archive.add(f"{place}/{module.path}", 0o100644, module.read())
        index.append(f"{module.path}: {' '.join(module.needs)}")
    archive.add(f"{place}/modules.dep", 0o100644, "\n".join(index).encode() + b"\n")
    archive.add("init", 0o100755, init.read_bytes())
    return archive.finish()


if __name__ == "__main__":
    print(xen_image().disk.relative_to(REPOSITORY))
