"""A lab: hosts on one machine, the switch between them and a client that watches from outside."""

from __future__ import annotations

import compileall
import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lab import network, ssh
from lab.host import REPOSITORY, Host, HostError, boot
from lab.init import HostConfig
from lab.settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["Host", "HostError", "Lab"]

SWITCH = "switch"
CLIENT = "client"
PERSISTENT = "persistent"
QEMU_USER = "entourage-qemu"
_QEMU_UID = 7850  # an id that no distribution gives away
DISK_SIZE = 4 << 30
_MKFS_OPTIONS = "lazy_itable_init=0,lazy_journal_init=1,nodiscard"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def default_state_dir() -> Path:
    """Where labs keep the disks of their hosts: $ENTOURAGE_LAB, or /var/tmp/entourage-lab."""
    return Path(os.environ.get("ENTOURAGE_LAB", "/var/tmp/entourage-lab"))


class Lab:
    """Several hosts; a context manager that tears all of it down at its end."""

    def __init__(
        self, name: str, directory: Path, *, lock: IO[str] | None = None, persistent: bool = False
    ) -> None:
        self.name = name
        self.directory = directory
        self.persistent = persistent
        self.hosts: dict[str, Host] = {}
        self._lock = lock
        self._unpacked: dict[str, Sequence[Path]] = {}
        self._systemd: set[str] = set()

    # Life -------------------------------------------------------------------------------------

    @classmethod
    def up(
        cls,
        hosts: Sequence[str] = ("a", "b"),
        *,
        name: str = "lab",
        state_dir: Path | None = None,
        persistent: bool = False,
        unpacked: Mapping[str, Sequence[Path]] | None = None,
        systemd: Collection[str] = (),
    ) -> Self:
        """Make a lab; one of a killed run is cleaned up before, one in use is left alone.

        A persistent lab goes on when this process ends, until `Lab.attach(name).down()`. `unpacked`
        are directories that lie over the machine's root on a host, by its name: other versions of
        programs, say. `systemd` are the hosts whose first process is a real one.
        """
        if os.geteuid() != 0:
            raise HostError("a lab needs root: namespaces, loop devices, bridges")
        _compile()
        base = state_dir or default_state_dir()
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _exclusively(base / ".lock"):
            clean_up_stale(base)
            directory = base / name
            if directory.exists():
                raise HostError(f"the lab {name!r} in {base} is in use")
            directory.mkdir(mode=0o700)
            lock = (directory / "lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if persistent:
            (directory / PERSISTENT).touch()
        lab = cls(name, directory, lock=lock, persistent=persistent)
        lab._unpacked.update(unpacked or {})
        lab._systemd.update(systemd)
        try:
            lab._build(hosts)
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    def attach(cls, name: str = "lab", *, state_dir: Path | None = None) -> Self:
        """Use a lab that another process made; leaving it as a context leaves it running."""
        directory = (state_dir or default_state_dir()) / name
        if not directory.exists():
            raise HostError(f"there is no lab {name!r}; make one: python -m lab up")
        lab = cls(name, directory, persistent=True)
        lab.adopt()
        return lab

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.persistent:
            self.down()

    def down(self) -> None:
        """Tear it down: processes, mounts, loop devices, files. Safe to call again."""
        for host in reversed(self.hosts.values()):
            host.kill()
        self.hosts.clear()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # Hosts ------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    @property
    def client(self) -> Host:
        """The host outside, on the same switch: pings and listens, runs no guests."""
        return self.hosts[CLIENT]

    @property
    def switch(self) -> Host:
        """The host that is only the wires between the others."""
        return self.hosts[SWITCH]

    def add(self, name: str) -> Host:
        """Add one more host to a running lab. The others then know its name and key too."""
        self._plan(name)
        for host in self.hosts.values():
            if host.is_on:
                host.write_files(host.config.files)
        boot([self.hosts[name]], self.switch)
        return self.hosts[name]

    def cut(
        self,
        a: str,
        b: str,
        *,
        how: network.How = "drop",
        direction: network.Direction = "both",
        traffic: network.Traffic = "all",
    ) -> None:
        """Cut two hosts off each other until `mend`; another cut of the two replaces it.

        `drop` loses packets in the switch without a word, `lossy` one in twenty of them by chance;
        `reset` answers TCP with RST and resets the connections that there are. `traffic` is all,
        only ssh, or all TCP but ssh.
        """
        self.mend(a, b)
        network.Cut(self.hosts[a], self.hosts[b], how, direction, traffic).make(self.switch)

    def wait_dropped(self, a: str, b: str, timeout: float) -> None:
        """Wait until a cut of the two by ``drop`` has lost a packet."""
        deadline = time.monotonic() + timeout
        while not network.dropped(self.switch, network.cut_table(a, b)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing was sent between {a} and {b} within {timeout} s")
            time.sleep(0.005)  # the kernel counts, and tells nobody

    def mend(self, a: str, b: str) -> None:
        """Undo the cut between two hosts."""
        places = (self.switch, self.hosts[a], self.hosts[b])
        network.mend(places, network.cut_table(a, b))

    def mend_all(self) -> None:
        """Undo every cut."""
        network.mend(self.hosts.values(), network.cut_table("*", "*"))

    # Making it --------------------------------------------------------------------------------

    def _build(self, names: Sequence[str]) -> None:
        switch = self._host(SWITCH, "", bridge=network.SWITCH_BRIDGE)
        self.hosts[SWITCH] = switch
        self.hosts[CLIENT] = self._host(CLIENT, network.CLIENT_ADDRESS)
        for name in names:
            self._plan(name)
        others = [host for host in self.hosts.values() if host is not switch]
        # All their processes start at once; the switch is the one that is waited for first.
        boot([switch], None)
        boot(others, switch)

    def adopt(self) -> None:
        """Find the hosts of a lab that another process made."""
        written = sorted((self.directory / "hosts").glob("*/config.json"))
        for file in sorted(written, key=lambda file: file.parent.name != SWITCH):  # it comes first
            directory = file.parent
            config = HostConfig.loads(file.read_text())
            self.hosts[config.name] = Host(config, directory, self.hosts.get(SWITCH))
            self.hosts[config.name].adopt()

    def _plan(self, name: str) -> None:
        """Add a host, still off, and tell all hosts' configurations of it."""
        index = 1 + sum(host.config.sshd for host in self.hosts.values())
        host = self._host(name, network.host_address(index), bridge=network.HOST_BRIDGE)
        with Path(host.config.image).open("wb") as image:
            image.truncate(DISK_SIZE)
        subprocess.run(
            ["mkfs.ext4", "-q", "-N", "32768", "-J", "size=16", "-E", _MKFS_OPTIONS, image.name],
            check=True,
        )
        self.hosts[name] = host
        addresses = {host.name: host.address for host in self.hosts.values() if host.address}
        with_sshd = {host.name: host.address for host in self.hosts.values() if host.config.sshd}
        keys = ssh.Keys(self.directory / "keys")
        hosts_file = "".join(f"{address} {name}\n" for name, address in addresses.items())
        for known in self.hosts.values():
            known.config.files.update(keys.files(known.name, with_sshd, _search_path()))
            known.config.files["/etc/hosts"] = "127.0.0.1 localhost\n" + hosts_file

    def _host(self, name: str, address: str, *, bridge: str = "") -> Host:
        directory = self.directory / "hosts" / name
        directory.mkdir(parents=True)
        full = bridge == network.HOST_BRIDGE
        config = HostConfig(
            name=name,
            address=address,
            prefix=network.PREFIX,
            mac=network.mac_of(address) if address else "02:4c:42:77:00:00",
            bridge=bridge,
            uplink=name != SWITCH,
            image=str(directory / "disk.img") if full else "",
            mountpoint=str(directory / "mnt"),
            unpacked=[str(directory) for directory in self._unpacked.get(name, ())],
            mounts=_other_mounts(),
            carried=_carried(),
            files={
                "/etc/hostname": f"{name}\n",
                "/etc/machine-id": f"{secrets.token_hex(16)}\n",
                "/etc/profile.d/lab.sh": f"PATH={_search_path()}\n",
                **_accounts(),
                "/etc/entourage/entourage.toml": SETTINGS,
            },
            neighbours=network.guest_neighbours() if name == CLIENT else [],
            search_path=_search_path(),
            sshd=full,
            systemd=name in self._systemd,
            outlives_owner=self.persistent,
        )
        return Host(config, directory, self.hosts.get(SWITCH))


def _accounts() -> dict[str, str]:
    """The machine's users and groups and, as Entourage's package makes it, QEMU's user.

    That has one number on all hosts, as it must have where they share storage.
    """
    files: dict[str, str] = {}
    for path, line in (
        ("/etc/passwd", f"{QEMU_USER}:x:{_QEMU_UID}:{_QEMU_UID}::/nonexistent:/usr/sbin/nologin\n"),
        ("/etc/group", f"{QEMU_USER}:x:{_QEMU_UID}:\n"),
    ):
        lines = Path(path).read_text().splitlines(keepends=True)
        files[path] = "".join(old for old in lines if not old.startswith(f"{QEMU_USER}:")) + line
    return files


def _search_path() -> str:
    """PATH on the hosts: this Python environment's programs before the system's."""
    return f"{Path(sys.prefix, 'bin')}:{_SYSTEM_PATH}"


def _carried() -> list[str]:
    """What every host sees as the machine does, at the same place and as it changes."""
    carried = [str(REPOSITORY), sys.prefix]
    # The interpreter, where a host's own directories would hide it. /usr is there anyway, and
    # what a host writes there must not reach the machine.
    if not sys.base_prefix.startswith("/usr"):
        carried.append(sys.base_prefix)
    return carried


def _other_mounts() -> list[str]:
    """The machine's file systems that hold programs or data of its own, beside the root's."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    places = ("/usr", "/opt", "/home", "/var", "/nix")
    return [mount for mount in dict.fromkeys(mounts) if mount in places]


def clean_up_stale(base: Path, *, persistent_too: bool = False) -> None:
    """Remove the labs in `base` whose owner is gone; persistent ones if their hosts are, too."""
    for directory in base.iterdir():
        if not directory.is_dir():
            continue
        with (directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            lab = Lab(directory.name, directory)
            with suppress(FileNotFoundError):
                lab.adopt()
            alive = any(host.is_on for host in lab.hosts.values())
            wanted = alive and (directory / PERSISTENT).exists()
            if persistent_too or not wanted:
                lab.down()


def _compile() -> None:
    """Have byte code where pip would have made it: without it each start takes twice as long.

    Python makes it as it goes, but not where PYTHONDONTWRITEBYTECODE is set, as it often is in
    containers. Takes 0.05 s where nothing has changed.
    """
    for directory in (REPOSITORY / "src", REPOSITORY / "lab"):
        compileall.compile_dir(directory, quiet=2)


@contextmanager
def _exclusively(path: Path) -> Generator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
