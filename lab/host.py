"""One host of a lab, seen from outside: run programs on it, read its files, pull its plug."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lab import leftovers, network, syscalls
from lab.processes import HostProcess, Stream, communicate, in_namespaces, spawn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lab.init import HostConfig

REPOSITORY = Path(__file__).resolve().parent.parent
"""The tree that this package lies in; every host sees it at the same path."""

_DEATH_TIMEOUT = 20.0
_BIRTH_TIMEOUT = 30.0


class HostError(RuntimeError):
    """A host did not come up, or is not in the state that was asked for."""


class Host:
    """A host; made by `lab.hosts.Lab`. `switch` is the host that it is plugged into."""

    def __init__(self, config: HostConfig, directory: Path, switch: Host | None) -> None:
        self.name = config.name
        self.address = config.address
        self.config = config
        self.directory = directory
        self._switch = switch
        self._init_pid = 0
        self._pidfd = -1
        self._outer: subprocess.Popen[bytes] | None = None
        self._lifeline: socket.socket | None = None
        self._processes: list[HostProcess] = []

    def __repr__(self) -> str:
        return f"Host({self.name!r}, init_pid={self._init_pid})"

    # Power ------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        """Whether the host's first process lives."""
        return self._pidfd >= 0 and not _readable(self._pidfd, 0)

    @property
    def init_pid(self) -> int:
        """The id of the host's first process, as the machine sees it."""
        if not self.is_on:
            raise HostError(f"host {self.name} is off")
        return self._init_pid

    def power_cut(self) -> None:
        """Pull the plug: the network is silent first, then all that is not on the disk is gone."""
        if self._switch is None:
            raise HostError("the switch has no plug")
        port = network.port_of(self.name)
        network.ip_batch(self._switch.init_pid, [f"link set dev {port} down"])
        self.kill()
        with suppress(subprocess.CalledProcessError):  # the kernel may have been faster
            network.ip_batch(self._switch.init_pid, [f"link delete dev {port}"])

    def await_off(self, timeout: float) -> None:
        """Wait until it has shut down by itself, and its disk is as it left it."""
        if self._switch is None or not self.config.image:
            raise HostError("it does not shut down")
        loop = os.minor(self.path("/srv").stat().st_dev) if self.is_on else None
        if not _readable(self._pidfd, timeout):
            raise HostError(f"host {self.name} has not shut down within {timeout:g} s")
        self.kill()  # there is nothing left but what we know of it
        if loop is not None:
            _await_loop_release(loop)

    def power_on(self) -> None:
        """Boot again, on the disk that the host had."""
        boot([self], self._switch)

    def adopt(self) -> None:
        """Find the running host that another process made, if it still runs."""
        with suppress(FileNotFoundError):
            pid, started = map(int, (self.directory / "pid").read_text().split())
            with suppress(ProcessLookupError):
                self._init_pid, self._pidfd = pid, os.pidfd_open(pid)
                if _start_time(pid) != started:  # the number was used again
                    os.close(self._pidfd)
                    self._pidfd = -1

    def begin_boot(self) -> None:
        """Start the first process; the host waits for its uplink then."""
        if self.is_on:
            raise HostError(f"host {self.name} is on already")
        Path(self.config.mountpoint).mkdir(parents=True, exist_ok=True)
        written = self.directory / "config.json"
        written.touch(mode=0o600)
        written.write_text(self.config.dumps())
        ours, theirs = socket.socketpair()
        with theirs, (self.directory / "init.log").open("ab") as log:
            self._outer = subprocess.Popen(
                [sys.executable, "-S", "-m", "lab.init", str(written)],
                cwd=REPOSITORY,
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        ours.settimeout(_BIRTH_TIMEOUT)
        self._lifeline = ours

    def await_uplink_request(self) -> int:
        """Return the first process's id once the host has namespaces that can take a NIC."""
        self._init_pid = int(self._line())
        self._pidfd = os.pidfd_open(self._init_pid)
        written = f"{self._init_pid} {_start_time(self._init_pid)}"
        (self.directory / "pid").write_text(written)
        if self.config.uplink:
            self._line()
        return self._init_pid

    def finish_boot(self) -> None:
        """Tell the host that its uplink is there and wait until it is up."""
        if self._lifeline is not None and self.config.uplink:
            self._lifeline.sendall(b"uplink\n")
        self._line()
        if self.config.systemd:
            self._await_systemd()

    def _await_systemd(self) -> None:
        """Wait until systemd has started all that the boot consists of, or has seen it fail."""
        deadline = time.monotonic() + _BIRTH_TIMEOUT
        argv = ["systemctl", "is-system-running", "--wait"]
        while self.run(argv, check=False).stdout.strip() not in {"running", "degraded"}:
            if not self.is_on or time.monotonic() > deadline:
                raise HostError(f"systemd of host {self.name} does not come up")
            time.sleep(0.02)  # it does not listen yet

    def _line(self) -> str:
        """Read one line of what the first process says."""
        said = b""
        while self._lifeline is not None and not said.endswith(b"\n"):
            received = self._lifeline.recv(1)
            if not received:
                log = self.directory / "init.log"
                raise HostError(f"host {self.name} did not come up:\n{log.read_text()[-3000:]}")
            said += received
        return said.decode().strip()

    def kill(self) -> None:
        """End every process of the host at once and lose what its disk had not yet written."""
        kept = self._keep_mounted() if self.config.image and self.is_on else []
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._await_death()
            os.close(self._pidfd)
            self._pidfd = -1
        if self._lifeline is not None:  # without it, one that was only being born dies too
            self._lifeline.close()
            self._lifeline = None
        if self._outer is not None:
            self._outer.wait(_DEATH_TIMEOUT)
            self._outer = None
        if kept:
            loop = os.minor(os.fstat(kept[0]).st_dev)
            syscalls.shutdown_ext4(kept[0])
            for directory in kept:
                os.close(directory)
            _await_loop_release(loop)

    def _keep_mounted(self) -> list[int]:
        """Hold the host's file systems when all else of it is gone.

        So the ext4 can be shut down before anything writes it back, as an overlay's end would.
        """
        kept: list[int] = []
        with suppress(FileNotFoundError):  # it is half dead already
            for directory in ("/srv", "/"):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                kept.append(os.open(self.path(directory), flags))
        return kept

    def _await_death(self) -> None:
        """Wait until the first process is dead, which it is when all others were collected."""
        deadline = time.monotonic() + _DEATH_TIMEOUT
        while not _readable(self._pidfd, 0.002):
            self._forget_ended()  # those that are ours to collect
            if time.monotonic() > deadline:
                raise HostError(f"host {self.name} does not die")

    # Programs ---------------------------------------------------------------------------------

    def entrance(self, cwd: str = "/root") -> list[str]:
        """A command that enters the host, to put before an argument list; for terminals."""
        return [
            "nsenter",
            f"--target={self.init_pid}",
            *("--root", "--mount", "--uts", "--ipc", "--net", "--pid"),
            f"--wdns={cwd}",
            "--",
        ]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of programs on the host: nothing of the machine's but TERM."""
        return {
            "PATH": self.config.search_path,
            "HOME": "/root",
            "USER": "root",
            "LOGNAME": "root",
            "LANG": "C.UTF-8",
            "TERM": os.environ.get("TERM", "dumb"),
            **(extra or {}),
        }

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/root",
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = subprocess.PIPE,
        stderr: Stream = subprocess.PIPE,
    ) -> HostProcess:
        """Start a program on the host; its signals, status and streams are those of a Popen."""
        if not self.is_on:
            raise HostError(f"host {self.name} is off")
        self._forget_ended()
        process = spawn(
            self._pidfd,
            str(self.path("/")),
            argv,
            env=self.environment(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
        self._processes.append(process)
        return process

    def _forget_ended(self) -> None:
        self._processes = [process for process in self._processes if process.poll() is None]

    def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Open a socket in the host's network; any thread of this process may use it then."""
        opened: list[socket.socket] = []
        namespace = syscalls.CLONE_NEWNET
        in_namespaces(
            self._pidfd, namespace, lambda: opened.append(socket.socket(socket.AF_INET, kind))
        )
        return opened[0]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 30.0,
        input: str | None = None,  # noqa: A002  # as in subprocess.run
        env: Mapping[str, str] | None = None,
        cwd: str = "/root",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the host to its end, as `subprocess.run` does; output is captured."""
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        process = self.popen(argv, env=env, cwd=cwd, stdin=stdin)
        return communicate(process, argv, input, timeout, check=check)

    # Files ------------------------------------------------------------------------------------

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write files of the running host; they survive until the next boot."""
        for path, content in files.items():
            self.path(path).write_text(content)

    def path(self, path: str) -> Path:
        """The host's `path` as a path of the machine's; valid while the host is on."""
        return Path(f"/proc/{self.init_pid}/root", path.lstrip("/"))

    def snapshot(self) -> leftovers.Snapshot:
        """What there is on the host now, to compare with later."""
        return leftovers.take(self.init_pid)

    def leftovers(
        self, before: leftovers.Snapshot, *, ignore: Sequence[str] = ()
    ) -> leftovers.Leftovers:
        """What has come since `before` and is still there; `ignore` are patterns of paths."""
        return leftovers.compare(before, self.snapshot(), ignore)

    def wait_clean(
        self, before: leftovers.Snapshot, timeout: float = 5.0, *, ignore: Sequence[str] = ()
    ) -> leftovers.Leftovers:
        """Wait until nothing is left over, or the time is up; return what still is."""
        deadline = time.monotonic() + timeout
        while (left := self.leftovers(before, ignore=ignore)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left


def boot(hosts: Sequence[Host], switch: Host | None) -> None:
    """Boot hosts side by side and plug them in."""
    for host in hosts:
        host.begin_boot()
    plugs = [(host.name, host.await_uplink_request()) for host in hosts]
    if switch is not None:
        network.plug_in(switch.init_pid, plugs)
    for host in hosts:
        host.finish_boot()


def _start_time(pid: int) -> int:
    """When the process started, in ticks since boot: with the pid, it names a process for good."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])


def _readable(fd: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def _await_loop_release(number: int) -> None:
    """Wait until the loop device is free: only then is the old mount surely gone.

    The kernel drops the mounts of a dead namespace a moment later, and has no event for it.
    """
    attached = Path(f"/sys/block/loop{number}/loop")
    deadline = time.monotonic() + _DEATH_TIMEOUT
    while attached.exists():
        if time.monotonic() > deadline:
            raise HostError(f"/dev/loop{number} is still in use")
        time.sleep(0.001)
