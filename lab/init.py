"""The first process of a lab host: PID 1 in namespaces of its own.

Run as `python -m lab.init FILE`, with the owner's end of a socket as standard input. It builds
the host's view of the file system, brings up its network, starts sshd, says `ready`, and from
then on reaps what is left to it, or becomes a systemd, which does all that. When it dies, by
whatever cause, the kernel ends every process of the host, and mounts, network and loop device go
with them: it is the host's power supply.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lab import syscalls, systemd, vcpus

SSHD_TIMEOUT = 10.0
"""Seconds until a host whose sshd does not listen is given up."""

_LOOK_FOR_VCPUS = 0.1  # seconds; a guest that arrives has been built for longer than that
_OWN_DIRECTORIES = ("srv", "root", "var/log", "var/lib/entourage")
_PORT_22_LISTENING = ":0016 00000000:0000 0A"


@dataclass(frozen=True)
class HostConfig:
    """All that a host's first process must know."""

    name: str
    address: str
    prefix: int
    mac: str
    bridge: str  # empty: the uplink itself carries the address
    uplink: bool  # false for the switch
    image: str  # the host's own ext4; empty: it lives on a tmpfs
    mountpoint: str
    unpacked: list[str]  # directories whose content is copied to the host's own disk, once
    mounts: list[str]  # the machine's file systems besides the root, /usr say
    carried: list[str]  # directories of the machine that stay visible wherever they lie
    files: dict[str, str]  # path: content, written at each boot
    neighbours: list[tuple[str, str]]  # (address, MAC) that need no asking
    search_path: str
    sshd: bool
    systemd: bool
    outlives_owner: bool

    def dumps(self) -> str:
        """The form in which it is handed to the process."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> HostConfig:
        """What `dumps` wrote."""
        # One that another version wrote must still be found, to be cleaned up: what it does not say
        # is nothing, and what only it knows is left out.
        nothing: dict[str, Any] = {"str": "", "int": 0, "bool": False, "list": [], "dict": {}}
        blank = {each.name: nothing[str(each.type).partition("[")[0]] for each in fields(cls)}
        said = json.loads(text)
        return cls(**{name: said.get(name, value) for name, value in blank.items()})


def _build_root(config: HostConfig) -> None:
    """Lay the host's own file system over the machine's and make that the root."""
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    own = Path(config.mountpoint)
    if config.image:
        loop = syscalls.attach_loop(Path(config.image))
        try:
            device = str(Path(f"/proc/self/fd/{loop}").readlink())
            syscalls.mount(device, str(own), "ext4")
        finally:
            os.close(loop)
    else:
        syscalls.mount("tmpfs", str(own), "tmpfs")
    for directory in ("upper", "work", "view", *_OWN_DIRECTORIES):
        (own / directory).mkdir(parents=True, exist_ok=True)
    _unpack(config.unpacked, own)
    view = own / "view"
    syscalls.mount(
        "overlay",
        str(view),
        "overlay",
        options=f"lowerdir=/,upperdir={own}/upper,workdir={own}/work",
    )
    for directory in config.mounts:
        syscalls.bind(directory, f"{view}{directory}")
    syscalls.mount("proc", str(view / "proc"), "proc")
    syscalls.mount("sysfs", str(view / "sys"), "sysfs", syscalls.MS_RDONLY)
    if config.systemd:
        systemd.build(view, own)
    else:
        syscalls.mount("/dev", str(view / "dev"), flags=syscalls.MS_BIND)
    syscalls.mount("tmpfs", str(view / "dev/shm"), "tmpfs")
    syscalls.mount("devpts", str(view / "dev/pts"), "devpts", options="mode=620,ptmxmode=666")
    syscalls.bind(str(view / "dev/pts/ptmx"), str(view / "dev/ptmx"))
    for directory in ("run", "tmp"):
        syscalls.mount("tmpfs", str(view / directory), "tmpfs", options="mode=755")
    (view / "tmp").chmod(0o1777)
    for directory in _OWN_DIRECTORIES:
        (view / directory).mkdir(parents=True, exist_ok=True)
        syscalls.bind(str(own / directory), str(view / directory))
    (view / "root").chmod(0o700)
    for directory in config.carried:
        place = view / directory.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        syscalls.bind(directory, str(place))
    for path, content in config.files.items():
        file = view / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # it may be a symlink to a file of the machine
        file.write_text(content)
        file.chmod(0o600 if "PRIVATE KEY" in content else 0o644)
    syscalls.pivot_root(str(view))


def _unpack(directories: list[str], own: Path) -> None:
    """Put files over the machine's root; they are there to stay, whatever happens to the power."""
    done = own / "unpacked"
    if done.exists():
        return
    for directory in directories:
        # Not as one more layer: an overlay takes none that lies below another of its layers.
        subprocess.run(["cp", "--archive", f"{directory}/.", str(own / "upper")], check=True)
    subprocess.run(["sync", "--file-system", str(own)], check=True)
    done.touch()


def _sysctl(name: str, value: str) -> None:
    with suppress(FileNotFoundError):  # a kernel without that feature needs no setting
        Path("/proc/sys", *name.split(".")).write_text(value)


def _bring_up_network(config: HostConfig) -> None:
    """Put the uplink, already here and called `uplink`, into a bridge of the host's own."""
    if config.bridge:
        port = config.bridge
        options = "stp_state 0 forward_delay 0 mcast_snooping 0"
        lines = [f"link add name {port} address {config.mac} type bridge {options}"]
        if config.uplink:
            lines += [f"link set dev uplink master {port}"]
    else:
        port = "uplink"
        lines = [f"link set dev uplink address {config.mac}"]
    if config.uplink:
        lines += ["link set dev uplink up"]
    lines += ["link set dev lo up", f"link set dev {port} up"]
    if config.address:
        lines += [f"address add {config.address}/{config.prefix} dev {port}"]
    lines += [
        f"neighbour replace {address} lladdr {mac} dev {port} nud permanent"
        for address, mac in config.neighbours
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def _start_sshd(search_path: str) -> None:
    Path("/run/sshd").mkdir(mode=0o755)
    subprocess.run(
        ["/usr/sbin/sshd", "-E", "/var/log/sshd.log"], env={"PATH": search_path}, check=True
    )
    # sshd detaches before it listens and does not tell: the kernel's table is what can be asked.
    deadline = time.monotonic() + SSHD_TIMEOUT
    while _PORT_22_LISTENING not in Path("/proc/net/tcp").read_text():
        if time.monotonic() > deadline:
            raise TimeoutError("sshd does not listen, see /var/log/sshd.log of the host")
        time.sleep(0.002)


def _reap_until_power_cut(owner: socket.socket, *, outlives_owner: bool) -> None:
    """Collect orphans; end with the owner, of whose death the closed socket tells."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    watched: list[int] = [woken] if outlives_owner else [woken, owner.fileno()]
    steadied: set[str] = set()
    while True:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        vcpus.steady(steadied)
        readable, _, _ = select.select(watched, [], [], _LOOK_FOR_VCPUS)
        if woken in readable:
            os.read(woken, 4096)
        elif readable and not owner.recv(1):
            return


def _be_pid_1(config: HostConfig, owner: socket.socket) -> None:
    _build_root(config)
    syscalls.sethostname(config.name)
    _sysctl("net.ipv6.conf.default.disable_ipv6", "1")
    for table in ("iptables", "ip6tables", "arptables"):
        _sysctl(f"net.bridge.bridge-nf-call-{table}", "0")
    if config.uplink:
        owner.sendall(b"waiting for the uplink\n")
        if owner.recv(16) != b"uplink\n":
            return
    _bring_up_network(config)
    if config.systemd:
        owner.sendall(b"ready\n")
        systemd.become()
    if config.sshd:
        _start_sshd(config.search_path)
    owner.sendall(b"ready\n")
    _reap_until_power_cut(owner, outlives_owner=config.outlives_owner)


def _wait_for_end(child: int, owner: socket.socket, *, outlives_owner: bool) -> None:
    """Wait for a first process that cannot watch its owner itself, and end it with the owner."""
    handle = os.pidfd_open(child)
    ends = select.poll()
    ends.register(handle, select.POLLIN)
    if not outlives_owner:
        ends.register(owner, 0)  # its closing alone: what it says is for the other one
    if handle not in dict(ends.poll()):
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    os.waitpid(child, 0)


def main() -> None:
    """Leave the machine's namespaces and become a host's first process."""
    config = HostConfig.loads(Path(sys.argv[1]).read_text())
    owner = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.chdir("/")
    syscalls.unshare(
        syscalls.CLONE_NEWNS
        | syscalls.CLONE_NEWUTS
        | syscalls.CLONE_NEWIPC
        | syscalls.CLONE_NEWPID
        | syscalls.CLONE_NEWNET
    )
    # No two hosts of one name have the same process id while both are there.
    cgroup = (
        systemd.Cgroup(f"{config.name}-{os.getpid()}", config.mountpoint)
        if config.systemd
        else None
    )
    child = os.fork()
    if child:
        owner.sendall(f"{child}\n".encode())
        if cgroup is None:
            owner.close()
            os.waitpid(child, 0)
        else:
            _wait_for_end(child, owner, outlives_owner=config.outlives_owner)
            cgroup.remove()
        return
    if cgroup is not None:
        syscalls.die_with_parent()
        cgroup.enter()
    os.setsid()
    os.environ.clear()
    os.environ["PATH"] = config.search_path
    _be_pid_1(config, owner)


if __name__ == "__main__":
    main()
