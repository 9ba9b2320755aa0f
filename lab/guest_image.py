"""The guest's kernel and initramfs: the release's kernel, busybox, a few modules, a script.

Nothing is compiled and nothing is installed: the kernel's package is fetched and unpacked.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.host import REPOSITORY
from lab.kernel import Kernel, merge_lib, modules

if TYPE_CHECKING:
    from collections.abc import Sequence

CACHE = REPOSITORY / ".cache"
PUBLIC = Path("/var/tmp/entourage-guest")
BUSYBOX = Path("/usr/bin/busybox")
_HERE = Path(__file__).parent
_SCRIPTS = {"init": _HERE / "guest_init.sh", "bin/request": _HERE / "guest_request.sh"}
# The first that apt knows: Debian's, with few drivers, and LZ4, which unpacks fast; Ubuntu's.
_METAPACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")

MODULES = (
    *("virtio_pci", "virtio_net", "virtio_blk", "virtio_scsi", "virtio_rng"),
    *("nvme", "sd_mod", "virtio_console"),
)
"""What a lab guest has drivers for; what they depend on comes along."""

# Of a kernel whose modules were taken; with others it is taken anew.
_COMPLETE = f"complete-{hashlib.sha256(repr(MODULES).encode()).hexdigest()[:8]}"
_AGENT = "qemu-guest-agent"
_AGENT_PROGRAM = "usr/sbin/qemu-ga"
_NOTICE = _HERE / "guest_notice.sh"


@dataclass(frozen=True)
class GuestImage:
    """What a lab guest boots from."""

    kernel: Path
    initrd: Path


class GuestImageError(RuntimeError):
    """The guest's kernel could not be fetched or unpacked."""


def guest_image(*, agent: bool = False) -> GuestImage:
    """Return the image, made now if this version of it was not yet; with QEMU's guest agent?"""
    directory = CACHE / "guest"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernel = _kernel(directory)
        initrd = _initramfs(kernel, directory)
        if agent:
            initrd = _with_agent(initrd, directory)
        return GuestImage(
            _for_everyone(kernel / "vmlinuz", f"vmlinuz-{kernel.name}"),
            _for_everyone(initrd, initrd.name),
        )


def _for_everyone(path: Path, name: str) -> Path:
    """A copy that QEMU's user can read: a checkout may lie in /root, which is root's alone."""
    PUBLIC.mkdir(mode=0o755, exist_ok=True)
    status = PUBLIC.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise GuestImageError(f"{PUBLIC} is somebody else's: remove it")
    place = PUBLIC / name
    if not place.exists():
        scratch = PUBLIC / f".{name}.{os.getpid()}"
        shutil.copyfile(path, scratch)
        scratch.chmod(0o644)
        scratch.rename(place)
    return place


def _kernel(directory: Path) -> Path:
    """Return the folder of the kernel that was fetched last; fetch the newest if none was."""
    present = sorted(
        directory.glob(f"linux-image-*/{_COMPLETE}"), key=lambda path: path.stat().st_mtime
    )
    if present:
        return present[-1].parent
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        packages = _download(Path(scratch))
        root = Path(scratch, "root")
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
        place = directory / packages[0].name.removesuffix(".deb")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        found = Kernel.found(root)
        shutil.copy(found.image, place / "vmlinuz")
        _take_modules(found, root, place / "modules")
        (place / _COMPLETE).touch()
    return place


def _download(scratch: Path) -> list[Path]:
    """Fetch the newest kernel of the release: its image's package, and others that it is in."""
    for metapackage in _METAPACKAGES:
        images = [name for name in _depends(metapackage) if name.startswith("linux-image-")]
        if images:
            break
    else:
        raise GuestImageError(f"apt knows no {' nor '.join(_METAPACKAGES)}; run: apt-get update")
    version = images[0].removeprefix("linux-image-")
    names = [images[0], *(name for name in _depends(images[0]) if name.endswith(f"-{version}"))]
    return _fetch(names, scratch)


def _fetch(names: Sequence[str], scratch: Path) -> list[Path]:
    """Fetch packages of the release."""
    # As root, apt would hand the download to a user who may not write here.
    options = ["-o", "APT::Sandbox::User=root", "-q"]
    fetched = subprocess.run(
        ["apt-get", *options, "download", *names],
        cwd=scratch,
        check=False,
        capture_output=True,
        text=True,
    )
    if fetched.returncode:
        raise GuestImageError(f"apt-get download {' '.join(names)} failed:\n{fetched.stderr}")
    return [next(scratch.glob(f"{name}_*.deb")) for name in names]


def _depends(package: str) -> list[str]:
    """The names of the packages that one depends on; none if apt does not know it."""
    said = subprocess.run(
        ["apt-cache", "depends", package], check=False, capture_output=True, text=True
    ).stdout
    return [line.split()[-1] for line in said.splitlines() if "Depends: " in line]


def _take_modules(kernel: Kernel, root: Path, target: Path) -> None:
    """Copy the modules of `MODULES` and those that they need, with their index."""
    merge_lib(root)
    subprocess.run(["depmod", "-b", str(root), kernel.version], check=True)
    staging = target / "lib/modules" / kernel.version
    for module in modules(kernel.modules, MODULES):
        (staging / module.path).parent.mkdir(parents=True, exist_ok=True)
        (staging / module.path).write_bytes(module.read())
    for index in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(kernel.modules / index, staging / index)
    subprocess.run(["depmod", "-b", str(target), kernel.version], check=True)


def _initramfs(kernel: Path, directory: Path) -> Path:
    """Return the archive for this kernel and these scripts."""
    scripts = {name: path.read_bytes() for name, path in _SCRIPTS.items()}
    busybox = BUSYBOX.read_bytes()
    digest = hashlib.sha256(busybox + kernel.name.encode())
    for name, content in scripts.items():
        digest.update(name.encode() + content)
    path = directory / f"initramfs-{digest.hexdigest()[:16]}.cpio"
    if path.exists():
        return path
    archive = Cpio()
    for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
        archive.add(name, 0o040755)
    archive.add("bin/busybox", 0o100755, busybox)
    archive.add("bin/sh", 0o120777, b"busybox")
    extra = kernel / "modules"
    for file in sorted(extra.rglob("*")):
        name = str(file.relative_to(extra))
        if file.is_dir():
            archive.add(name, 0o040755)
        else:
            archive.add(name, 0o100644, file.read_bytes())
    for name, content in scripts.items():
        archive.add(name, 0o100755, content)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_bytes(archive.finish())
    scratch.rename(path)
    return path


def _with_agent(initrd: Path, directory: Path) -> Path:
    """Return the archive with QEMU's guest agent and a program that it is to run, `/bin/notice`.

    The agent is the release's. What it is linked with is this machine's, which has QEMU.
    """
    digest = hashlib.sha256(initrd.name.encode() + _NOTICE.read_bytes())
    path = directory / f"initramfs-agent-{digest.hexdigest()[:16]}.cpio"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        [package] = _fetch([_AGENT], Path(scratch))
        subprocess.run(["dpkg-deb", "-x", str(package), scratch], check=True)
        program = Path(scratch, _AGENT_PROGRAM)
        linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True)
        # Lines as "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" and "/lib64/ld-… (0x…)".
        words = [word for word in linked.stdout.split() if word.startswith("/")]
        files = {_AGENT_PROGRAM: program, **{word.lstrip("/"): Path(word) for word in words}}
        archive = Cpio()
        for folder in sorted({str(parent) for name in files for parent in Path(name).parents}):
            if folder != ".":
                archive.add(folder, 0o040755)
        for name, file in files.items():
            archive.add(name, 0o100755, file.read_bytes())
    archive.add("bin/notice", 0o100755, _NOTICE.read_bytes())
    # By which the agent sets the clock that goes on without power.
    archive.add("sbin", 0o040755)
    archive.add("sbin/hwclock", 0o120777, b"/bin/busybox")
    unfinished = path.with_suffix(f".{os.getpid()}")
    # The kernel unpacks one archive after the other.
    unfinished.write_bytes(initrd.read_bytes() + archive.finish())
    return unfinished.rename(path)


class Cpio:
    """A "newc" archive, which the kernel unpacks: a header in hexadecimal before each file."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, mode: int, content: bytes = b"") -> None:
        """Add a file, a directory (no content) or a link (its content is where it points)."""
        self._inode += 1
        raw = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts += [_padded(header + raw), _padded(content)]

    def finish(self) -> bytes:
        """Return the archive."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


if __name__ == "__main__":
    print(guest_image().kernel)
