"""Two hosts, a libvirtd and an ``entourage attend`` on each, and a domain that virsh migrates."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import CompletedProcess
from typing import Any, ClassVar

from lab.host import REPOSITORY, Host
from lab.hosts import Lab
from lab.leftovers import Snapshot
from lab.libvirtd import Libvirtd, ssh_uri
from lab.observer import Observer
from lab.processes import HostProcess
from lab.settings import SETTINGS as LAB
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.run import PATIENCE
from tests.e2e.tool import Tool

HOOK = REPOSITORY / "src/entourage/hypervisors/attended/hook.py"
HOOKS = "/etc/libvirt/hooks/qemu.d"
_CALL = """
import sys, libvirt
call, name, uri, flags = sys.argv[1:]
domain = libvirt.open("qemu:///system").lookupByName(name)
where = libvirt.open(uri) if call == "migrate3" else uri
getattr(domain, call)(where, {}, int(flags))
"""
LOG = "/var/log/attend.log"
SETTINGS = "/etc/entourage/entourage.toml"
DEVICES = """
[[external]]
id = "dongle"
type = "dongle"
tool = "/usr/local/sbin/move-it"

[[external]]
id = "meter"
type = "meter"
tool = "/usr/local/sbin/move-it"
"""
_READY_WITHIN = 30.0


class Attend:
    """The daemon of one host."""

    _all: ClassVar[dict[Host, Attend]] = {}

    def __init__(self, host: Host) -> None:
        self.host = host
        self.process: HostProcess | None = None

    @classmethod
    def of(cls, host: Host) -> Attend:
        """The one of that host."""
        return cls._all.setdefault(host, cls(host))

    @classmethod
    def know(cls, one: Attend) -> None:
        """Have that one be its host's, which is started in another way."""
        cls._all[one.host] = one

    def install_hook(self) -> None:
        """Put the hook where libvirtd looks for it when it starts."""
        self.host.run(["mkdir", "-p", HOOKS])
        self.host.path(f"{HOOKS}/entourage").write_bytes(HOOK.read_bytes())
        self.host.path(f"{HOOKS}/entourage").chmod(0o755)

    def remove_hook(self) -> None:
        """As where nobody has put it."""
        self.host.path(f"{HOOKS}/entourage").unlink()

    def start(self, **environment: str) -> None:
        """Start it, and return when it says that it is ready."""
        address = "/run/attend.notify"
        outside = self.host.path(address)
        outside.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(outside))
            ready.settimeout(_READY_WITHIN)
            with self.host.path(LOG).open("a") as log:
                self.process = self.host.popen(
                    ["entourage", "attend"],
                    env={"NOTIFY_SOCKET": address, **environment},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            try:
                while b"STATUS=attends" not in ready.recv(4096):
                    pass
            except TimeoutError as error:
                raise TimeoutError(self.log) from error
        outside.unlink()

    @property
    def log(self) -> str:
        """What it has said since its host was booted."""
        path = self.host.path(LOG)
        return path.read_text() if path.exists() else ""

    def kill(self) -> None:
        """End it at once."""
        self._end("KILL")

    def stop(self) -> None:
        """End it as systemd does."""
        self._end("TERM")

    def _end(self, how: str) -> None:
        assert self.process is not None
        self.process.send_signal(signal.Signals[f"SIG{how}"])
        self.process.wait(_READY_WITHIN)
        self.process = None

    def end(self) -> None:
        """End it at once, if it runs."""
        if self.runs:
            self.kill()

    def freeze(self) -> None:
        """Have it do nothing more: the power of its host is about to be cut."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    @property
    def runs(self) -> bool:
        """Whether it lives."""
        return self.process is not None and self.process.poll() is None


def settings(host: Host, **attend: str) -> None:
    """Write the settings of a host; a daemon that runs has read others."""
    lines = ["[migration]", "max-blackout = 3.0", "[attend]"]
    lines += [f'{key} = "{value}"' for key, value in attend.items()]
    host.path(SETTINGS).write_text("\n".join([*lines, LAB, ""]))


@dataclass(frozen=True)
class Virsh:
    """A ``virsh migrate`` under way."""

    process: HostProcess

    def end(self) -> CompletedProcess[str]:
        """Wait for its end."""
        stdout, stderr = self.process.communicate(timeout=PATIENCE)
        return CompletedProcess([], self.process.returncode, stdout, stderr)


@dataclass
class AttendWorld(LibvirtWorld):
    """A domain with a disk, a NIC, a TPM and two external devices."""

    sockets: ClassVar = (*LibvirtWorld.sockets, "/run/entourage-attend/")
    kept: ClassVar = (
        *LibvirtWorld.kept,
        "/run/entourage/attend*",
        "/run/entourage-attend*",
        "/run/attend.notify",
        "/var/log/*",
        "/var/lib/entourage/attend.off",
        "/var/lib/libvirt/images/*",
    )

    def _know_daemons(self) -> None:
        """That a daemon is another process than it was is no trace of a migration."""
        for host in (self.here, self.there):
            self.clean[host.name] = other_process(self.clean[host.name], host)
        if self.running is not None:
            self.running = other_process(self.running, self.here)

    def arrived(self) -> None:
        """Also where a daemon was started again."""
        self._know_daemons()
        super().arrived()

    def is_as_before(self) -> None:
        """Also where a daemon was started again."""
        self._know_daemons()
        super().is_as_before()

    def is_clean(self, host: Host) -> None:
        """Also where a daemon was started again."""
        self._know_daemons()
        super().is_clean(host)

    def end(self) -> None:
        """Also where a daemon was started again."""
        self._know_daemons()
        super().end()

    def start_over(self) -> None:
        """Also the daemons, which must not see what they attend go away beneath them."""
        for name in ("a", "b"):
            Attend.of(self.lab[name]).end()
        super().start_over()

    @classmethod
    def begin(cls, lab: Lab, seen: Observer, name: str = "web1", **more: Any) -> LibvirtWorld:
        """Boot it where a daemon runs on each host."""
        for each in ("a", "b"):
            if not Attend.of(lab[each]).runs:
                Attend.of(lab[each]).start()
        return super().begin(lab, seen, name, **more)

    def virsh(
        self, *options: str, p2p: bool = False, without: Sequence[str] = ()
    ) -> CompletedProcess[str]:
        """Migrate it as libvirt's users do; ``without``: none of these options."""
        argv = self._virsh_migrate(["--p2p", *options] if p2p else options)
        argv = [each for each in argv if each not in without]
        return self.here.run(argv, check=False, timeout=PATIENCE)

    def by_api(self, call: str, flags: int) -> CompletedProcess[str]:
        """Migrate it as programs do that call libvirt themselves.

        Args:
            call: The method of ``virDomain``.
            flags: ``virDomainMigrateFlags``.
        """
        Libvirtd(self.there).virsh("pool-refresh", "default")
        argv = [sys.executable, "-c", _CALL, call, self.name, ssh_uri(self.there), str(flags)]
        return self.here.run(argv, check=False, timeout=PATIENCE)

    @contextmanager
    def begin_virsh(self, *options: str) -> Generator[Virsh]:
        """Begin that; it is ended with the context."""
        process = self.here.popen(self._virsh_migrate(options))
        try:
            yield Virsh(process)
        finally:
            process.kill()
            process.communicate(timeout=PATIENCE)

    def booted(self, host: Host) -> None:
        """Also its daemon, as systemd starts it."""
        super().booted(host)
        Attend.of(host).start()

    def attended_again(self) -> None:
        """Wait until it is, of one that has started or come back to its daemon."""
        deadline = time.monotonic() + PATIENCE
        while "urn:entourage:attend" not in Libvirtd(self.here).virsh("dumpxml", self.name).stdout:
            assert time.monotonic() < deadline, Attend.of(self.here).log
            time.sleep(0.05)  # the daemon looks again by itself, and tells nobody
        self.running = self.here.snapshot()  # its bus is there again

    def came(self, done: CompletedProcess[str]) -> None:
        """It lives there now; libvirt leaves the source's image where it was."""
        assert done.returncode == 0, self.told(done)
        self.delete_volume(self.here)
        self.arrived()

    def came_back(self, done: CompletedProcess[str]) -> None:
        """It lives here as before."""
        assert done.returncode != 0, self.told(done)
        self.remove_image(self.there)
        self.settled()
        self.is_as_before()

    def remove_image(self, host: Host) -> None:
        """Remove what libvirt leaves of a migration that has failed, if it got that far."""
        daemon = Libvirtd(host)
        daemon.virsh("pool-refresh", "default")
        for disk in self.disks:
            daemon.virsh("vol-delete", disk.path, check=False)

    def told(self, done: CompletedProcess[str]) -> str:
        """All that was said, for a test that fails."""
        logs = "".join(
            f"--- {each.name}\n{Attend.of(each).log[-3000:]}" for each in (self.here, self.there)
        )
        for each in (self.here, self.there):
            path = each.path(f"/var/log/libvirt/qemu/{self.name}.log")
            lines = path.read_text().splitlines()[-6:] if path.exists() else []
            logs += "".join(f"--- QEMU on {each.name}: {line}\n" for line in lines)
        return f"{done.returncode}\n{done.stdout}\n{done.stderr}\n{logs}"

    def settled(self) -> None:
        """Wait until nothing of it is unsettled on either host."""
        deadline = time.monotonic() + PATIENCE
        for host in (self.here, self.there):
            while left := json.loads(host.run(["entourage", "status", "--json"]).stdout):
                assert time.monotonic() < deadline, left
                time.sleep(0.05)  # a daemon settles it by itself, and tells nobody

    def links_end(self, host: Host) -> None:
        """Wait until no ssh is served on a host: it notices late whose power was cut."""
        known = self.clean[host.name].processes
        deadline = time.monotonic() + PATIENCE
        while any(
            "sshd: root" in text
            for key, text in host.snapshot().processes.items()
            if key not in known
        ):
            assert time.monotonic() < deadline, host.snapshot().processes
            time.sleep(0.1)  # TCP tells nobody

    def shown(self, host: Host | None = None) -> dict[str, Any]:
        """What ``attend --check`` says."""
        argv = ["entourage", "attend", "--check", "--json", self.name]
        return json.loads((host or self.here).run(argv, check=False).stdout)


def steps(tool: Tool, *types: str) -> dict[str, list[str]]:
    """What each device was told, in its order: ``1``, ``2``, ``3``, ``r1`` for a recovery."""
    found: dict[str, list[str]] = {kind: [] for kind in types or ("dongle", "meter")}
    for call in tool.calls():
        words = dict(zip(call[::2], call[1::2], strict=False))
        step = words["-step"]
        found[words["-type"]].append(f"r{step}" if "-recover" in call else step)
    return found


def other_process(known: Snapshot, host: Host) -> Snapshot:
    """A snapshot with the daemon that there is now."""
    others = {key: text for key, text in known.processes.items() if not _is_daemon(text)}
    now = host.snapshot().processes.items()
    return dataclasses.replace(
        known, processes={**others, **{key: text for key, text in now if _is_daemon(text)}}
    )


def _is_daemon(process: str) -> bool:
    """Also libvirtd's: it had just forked, perhaps, when it was looked at."""
    return process.endswith("entourage attend") or process.split()[1] == "libvirtd"


__all__ = ["DEVICES", "Attend", "AttendWorld", "Libvirtd", "other_process", "ssh_uri", "steps"]
