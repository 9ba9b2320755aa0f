"""A real systemd as the first process of a lab host: its units, its cgroups, its devices.

It boots what the distribution's packages put under `/lib`, and what is enabled on the host itself:
nothing that this machine's administrator has enabled runs twice. What would change the machine's
kernel (its sysctls, modules, clock) is masked.
"""

from __future__ import annotations

import os
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from lab import syscalls

PROGRAM = "/lib/systemd/systemd"
UNITS = "/etc/systemd/system"
"""Where a host's own units lie, on its own disk: nothing of the machine's is there."""

_ENABLED = "multi-user.target.wants"

_SSHD = """\
[Unit]
Description=sshd of a lab host
After=network.target

[Service]
ExecStartPre=/bin/mkdir -p /run/sshd
ExecStart=/usr/sbin/sshd -D -E /var/log/sshd.log
KillMode=process
"""
# The machine's kernel is everybody's, and so is its clock.
_MASKED = (
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "getty.target",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-hwdb-update.service",
    "systemd-modules-load.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-sysctl.service",
    "systemd-sysusers.service",
    "systemd-timesyncd.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "timers.target",
)
_MASKS = [(name, "/dev/null") for name in _MASKED]
_NODES = ("kvm", "fuse", "loop-control", "vhost-net", "vhost-vsock")
_TRY = 'mount -t cgroup2 none "$1" && mkdir "$1/$2" && rmdir "$1/$2"'
_LOOPS, _LOOP_MAJOR = 64, 7  # as the kernel's devices.txt has it
_EVERYBODYS = ("null", "zero", "full", "random", "urandom", "tty")


class Cgroup:
    """A part of the machine's cgroup tree that is a host's whole tree."""

    def __init__(self, name: str, place: str) -> None:
        """Make it.

        Args:
            name: Not yet used in that tree.
            place: An empty directory, where nothing is seen of it afterwards.

        Raises:
            OSError: This machine lets nobody have one.
        """
        self._name = name
        syscalls.mount("cgroup2", place, "cgroup2")
        try:
            self._tree = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            syscalls.unmount(place)
        os.mkdir(name, dir_fd=self._tree)

    def enter(self) -> None:
        """Put this process into it, and have it be all that is seen."""
        procs = os.open(f"{self._name}/cgroup.procs", os.O_WRONLY, dir_fd=self._tree)
        try:
            os.write(procs, b"0")
        finally:
            os.close(procs)
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)

    def remove(self) -> None:
        """Remove it; whoever was in it has ended."""
        for _, names, _, parent in os.fwalk(self._name, topdown=False, dir_fd=self._tree):
            for name in names:
                os.rmdir(name, dir_fd=parent)
        os.rmdir(self._name, dir_fd=self._tree)


def is_possible(scratch: Path) -> bool:
    """Whether this machine has one, and lets us have cgroups; `scratch` is an empty directory."""
    argv = ["unshare", "--mount", "sh", "-ec", _TRY, "sh", str(scratch), f"lab-{os.getpid()}"]
    return Path(PROGRAM).exists() and not subprocess.run(argv, check=False).returncode


def build(view: Path, own: Path) -> None:
    """Prepare a host's root for it, in the cgroup that was entered.

    Args:
        view: The root that is to be; `/proc`, `/sys` and `/run` are mounted in it.
        own: The host's own disk.
    """
    syscalls.mount("cgroup2", str(view / "sys/fs/cgroup"), "cgroup2")
    _build_devices(view / "dev")
    units = own / UNITS.lstrip("/")
    if not units.exists():
        (units / _ENABLED).mkdir(parents=True)
        (units / "lab-sshd.service").write_text(_SSHD)
        for name, target in ((f"{_ENABLED}/lab-sshd.service", "../lab-sshd.service"), *_MASKS):
            (units / name).symlink_to(target)
    (view / UNITS.lstrip("/")).mkdir(parents=True, exist_ok=True)
    syscalls.bind(str(units), str(view / UNITS.lstrip("/")))
    (view / "etc/fstab").unlink(missing_ok=True)  # it may be a symlink to a file of the machine
    (view / "etc/fstab").touch()


def _build_devices(place: Path) -> None:
    """A /dev of the host's own: systemd puts sockets and links there."""
    syscalls.mount("tmpfs", str(place), "tmpfs", options="mode=755")
    for name in (*_EVERYBODYS, *_NODES, "net/tun"):
        with suppress(FileNotFoundError):
            status = Path("/dev", name).stat()
            (place / name).parent.mkdir(exist_ok=True)
            os.mknod(place / name, stat.S_IFCHR | 0o600, status.st_rdev)
            (place / name).chmod(stat.S_IMODE(status.st_mode))
    for number in range(_LOOPS):
        os.mknod(place / f"loop{number}", stat.S_IFBLK | 0o600, os.makedev(_LOOP_MAJOR, number))
    (place / "console").symlink_to("null")
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        (place / name).symlink_to(f"/proc/self/fd{target}")
    for name in ("shm", "pts"):
        (place / name).mkdir()
    (place / "ptmx").touch()  # the host's own is bound over it


def become() -> NoReturn:
    """Be systemd from now on."""
    os.closerange(3, 1 << 16)
    os.environ["container"] = "lab"  # noqa: SIM112 - as systemd calls it
    options = ["--system", "--unit=multi-user.target", "--log-target=journal", "--show-status=no"]
    os.execv(PROGRAM, [PROGRAM, *options])  # noqa: S606 - no shell wanted
