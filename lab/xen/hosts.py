"""Two Xen hosts, each a QEMU (software emulation, any processor) that boots Xen, dom0 and sshd.

They share a wire (UDP between the two QEMUs), a raw disk (``/dev/vdb`` on both), and nothing else.
The machine that runs the lab comes in by ssh through a port that QEMU forwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

from lab.xen.image import XenImage, xen_image

LAB = Path(os.environ.get("ENTOURAGE_LAB", "/var/tmp/entourage-lab")) / "xen"
_BOOTS_WITHIN = 240.0
_SHARED_SIZE = 16 << 20
# Without SMAP dom0 boots, without XSAVE and with eager FPU switching it calculates correctly: what
# software emulation of nested virtualization does not do well is left out.
_CPU = "max,-smap,-rdtscp,-xsave,-avx,-avx2,-f16c,-fma"
_XEN = "dom0_mem=512M,max:512M console=com1 spec-ctrl=eager-fpu"
_DOM0 = "console=hvc0 quiet net.ifnames=0 mitigations=off"
_SSH = ("-q", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "ConnectTimeout=5",
        "-o", "UserKnownHostsFile=/dev/null")  # fmt: skip


class XenLabError(RuntimeError):
    """A host does not do what it must."""


@dataclass
class XenHost:
    """One Xen host.

    Attributes:
        name: ``a`` or ``b``, as its ``hostname`` says.
        address: Its own on the wire.
    """

    name: str
    address: str
    image: XenImage
    directory: Path
    ssh_port: int
    wire: tuple[int, int]
    _qemu: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _ssh: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def console(self) -> Path:
        """What Xen and dom0 said on their console, this time."""
        return self.directory / f"{self.name}.console"

    @property
    def is_on(self) -> bool:
        """Whether its plug is in."""
        return self._qemu is not None and self._qemu.poll() is None

    def power_on(self) -> None:
        """Begin to boot, from what its disk holds."""
        overlay = self.directory / f"{self.name}.qcow2"
        if not overlay.exists():
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self.image.disk,
                 overlay],
                check=True,
            )  # fmt: skip
        ours, theirs = self.wire
        shared = self.directory / "shared.raw"
        number = 1 if self.name == "a" else 2
        dom0 = f"{_DOM0} lab.name={self.name} lab.address={self.address}"
        argv = [
            "setpriv", "--pdeathsig", "KILL",  # with this process, however that ends
            "qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=128", "-machine", "q35",
            "-cpu", _CPU, "-smp", "1", "-m", "1024", "-nodefaults", "-display", "none",
            "-serial", f"file:{self.console}", "-no-reboot",
            "-kernel", self.image.hypervisor, "-append", _XEN,
            "-initrd", f"{self.image.kernel} {dom0},{self.image.initrd}",
            "-blockdev", f"qcow2,node-name=root,file.driver=file,file.filename={overlay}",
            "-device", "virtio-blk-pci,drive=root",
            "-blockdev",
            f"raw,node-name=shared,file.driver=file,file.locking=off,file.filename={shared}",
            "-device", "virtio-blk-pci,drive=shared,share-rw=on,serial=lab-shared",
            "-netdev", f"user,id=in,restrict=on,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22",
            "-device", "virtio-net-pci,netdev=in,romfile=",
            "-netdev", f"socket,id=wire,udp=127.0.0.1:{theirs},localaddr=127.0.0.1:{ours}",
            "-device", f"virtio-net-pci,netdev=wire,mac=52:54:00:78:00:0{number},romfile=",
        ]  # fmt: skip
        with (self.directory / f"{self.name}.qemu").open("wb") as log:
            self._qemu = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_up(self, patience: float = _BOOTS_WITHIN) -> None:
        """Wait until ssh answers and Xen's daemons are up."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not self.is_on:
                raise XenLabError(f"{self.name}: QEMU has ended: {self._said()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self.run(["xl", "info", "free_memory"], check=False, timeout=30).returncode == 0:
                    # One connection for all that follows: emulated handshakes take seconds.
                    self._ssh = subprocess.Popen([*self._ssh_to("-M", "-N"), "root@127.0.0.1"])
                    return
            time.sleep(0.5)
        raise XenLabError(f"{self.name} does not come up: {self._said()}")

    def _said(self) -> str:
        logs = (self.directory / f"{self.name}.qemu", self.console)
        return "\n".join(log.read_text(errors="replace")[-1500:] for log in logs if log.exists())

    def power_cut(self) -> None:
        """Pull its plug."""
        if self._ssh is not None:
            self._ssh.kill()
            self._ssh.wait()
            self._ssh = None
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None

    def argv(self, command: Sequence[str], *options: str) -> list[str]:
        """What runs a command there.

        Args:
            command: The command.
            options: More for ssh.
        """
        return [*self._ssh_to(*options), "root@127.0.0.1", shlex.join(command)]

    def _ssh_to(self, *options: str) -> list[str]:
        control = self.directory / f"{self.name}.ssh"
        how = [f"ControlPath={control}", f"Port={self.ssh_port}"]
        return ["ssh", *options, *_SSH, *(f"-o{each}" for each in how), "-i", str(self.image.key)]

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60,
        input: str | None = None,  # noqa: A002 - as subprocess.run has it
    ) -> CompletedProcess[str]:
        """Run a command there and return what it said.

        Raises:
            XenLabError: It failed, where ``check``.
        """
        done = subprocess.run(
            self.argv(command),
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
        )
        if check and done.returncode:
            said = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
            raise XenLabError(f"{self.name}: {command} failed ({done.returncode}): {said}")
        return done

    def popen(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Begin a command there."""
        return subprocess.Popen(
            self.argv(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, path: str, text: str) -> None:
        """Write a file there."""
        self.run(["sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "sh", path], input=text)

    def read(self, path: str) -> str:
        """What is in a file there; empty where there is none."""
        return self.run(["cat", path], check=False).stdout

    def path(self, path: str) -> Path:
        """A file of this machine that stands for one of the host's, at whose socket it listens."""
        return self.directory / f"{self.name}.{Path(path).name}"

    def unpack(self, archive: Path, directory: str) -> None:
        """Unpack a compressed tar archive of this machine there."""
        with archive.open("rb") as file:
            subprocess.run(
                self.argv(["tar", "-xzf", "-", "-C", directory]),
                stdin=file,
                check=True,
                timeout=120,
            )


class XenLab:
    """Hosts ``a`` and ``b``. Use ``XenLab.up``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        image = xen_image()
        ports = _free_ports(4)
        # Not empty: what tells nothing apart proves nothing.
        (directory / "shared.raw").write_bytes(os.urandom(_SHARED_SIZE))
        self.a = XenHost("a", "10.78.0.1", image, directory, ports[0], (ports[2], ports[3]))
        self.b = XenHost("b", "10.78.0.2", image, directory, ports[1], (ports[3], ports[2]))

    @classmethod
    @contextlib.contextmanager
    def up(cls) -> Generator[XenLab]:
        """Both hosts, booted; torn down at the end, come what may."""
        LAB.parent.mkdir(parents=True, exist_ok=True)
        with LAB.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time
            shutil.rmtree(LAB, ignore_errors=True)
            LAB.mkdir()
            with (LAB / "lock").open("w") as used:
                fcntl.flock(used, fcntl.LOCK_EX)  # else other labs would clean it up as stale
                lab = cls(LAB)
                try:
                    for host in (lab.a, lab.b):
                        host.power_on()
                    for host in (lab.a, lab.b):
                        host.wait_up()
                    yield lab
                finally:
                    for host in (lab.a, lab.b):
                        host.power_cut()
                    shutil.rmtree(LAB, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
