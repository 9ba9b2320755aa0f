"""Two hosts, a libvirtd on each, and a libvirt domain, looked at from outside."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from subprocess import CompletedProcess
from typing import ClassVar

from lab.domain_xml import domain_xml
from lab.guest import Disk
from lab.host import Host
from lab.hosts import Lab
from lab.leftovers import Snapshot
from lab.libvirtd import IMAGES, Libvirtd, ssh_uri
from lab.network import guest_address
from lab.observer import Observer
from lab.processes import HostProcess
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Under
from tests.e2e.world import KEPT, World

DISK = Disk(f"{IMAGES}/web1.qcow2", "qcow2")
QEMU = "/usr/bin/qemu-system-x86_64"
# What libvirt knows of the classes usb and pci; the guest need not have drivers for them.
ALL_CLASSES = """
<controller type="usb" model="qemu-xhci"/>
<redirdev bus="usb" type="tcp">
  <source mode="bind" host="127.0.0.1" service="4000"/>
  <protocol type="raw"/>
</redirdev>
<filesystem type="mount" accessmode="mapped">
  <source dir="/opt"/>
  <target dir="shared"/>
</filesystem>
"""
STALE = (
    "/var/lib/libvirt/qemu/domain-*",
    "/var/lib/libvirt/qemu/channel/target/domain-*",
    "/etc/libvirt/qemu/*.xml.new",
    "/var/lib/libvirt/swtpm/*",
)
# What proxy agents have kept, which `recover` then reads.
OF_STAND_INS = ("/var/lib/entourage/afar*", "/run/entourage/afar*")
# A program that ssh does not find: as where there is no Entourage.
NOT_THERE = ("--remote-command", "no-entourage-here")
# libvirt's own directories, made when the first domain comes, or goes.
MADE_ONCE = (
    "/etc/libvirt/qemu",
    "/etc/libvirt/qemu/autostart",
    "/run/libvirt/qemu/swtpm",
    "/var/lib/libvirt/swtpm",
)


@dataclass
class LibvirtWorld(World):
    """A domain on one of two hosts, each with a libvirtd, that the tests move, or fail to."""

    sockets: ClassVar = ("/run/libvirt/qemu/", "/var/lib/libvirt/qemu/")
    kept: ClassVar = (*KEPT, *MADE_ONCE, *OF_STAND_INS)
    devices: ClassVar = ""
    tpm_secret: ClassVar = ""
    agent: ClassVar = False
    extra: str = ""

    @classmethod
    def begin(
        cls,
        lab: Lab,
        seen: Observer,
        name: str = "web1",
        *,
        disks: Sequence[Disk | str] = (DISK,),
        tpm: bool = True,
        extra: str = "",
        address: str = guest_address(),
        allocated: bool = False,
    ) -> LibvirtWorld:
        """Boot a domain on a; ``extra`` is XML for its devices."""
        world = super().begin(
            lab,
            seen,
            name,
            disks=disks,
            tpm=tpm,
            extra=extra,
            address=address,
            allocated=allocated,
        )
        assert isinstance(world, cls)
        return world

    def _write(self, extra: str) -> str:
        self.extra = extra
        file = "/root/domain.xml"
        text = domain_xml(
            self.name,
            disks=self.disks,
            tpm=self.tpm,
            address=self.address,
            tpm_secret=self.tpm_secret,
            devices=self.devices,
            metadata=extra,
            agent=self.agent,
        )
        self.here.path(file).write_text(text)
        return file

    def _start(self, what: str) -> None:
        daemon = Libvirtd(self.here)
        if what != self.name:
            daemon.virsh("define", what)
        daemon.virsh("start", self.name, timeout=PATIENCE)
        # A power cut is to find a host that has long had the domain, and swtpm its certificates.
        self.here.run(["sync", "--file-system", IMAGES])

    def end(self) -> None:
        """Pull the guest's plug, forget it, and see that this leaves nothing."""
        daemon = Libvirtd(self.here)
        daemon.virsh("destroy", self.name)
        daemon.virsh("undefine", self.name)
        self.delete_volume(self.here)
        for host in (self.here, self.there):
            self.is_clean(host)

    def start_over(self) -> None:
        """After a test that failed, whatever it has left: a new guest on a, and nothing else."""
        self.lab.mend_all()
        for host in (self.lab["a"], self.lab["b"]):
            if not host.is_on:
                host.power_on()
            daemon = Libvirtd(host)
            for text in host.leftovers(self.clean[host.name]).processes:
                host.run(["kill", "-KILL", text.split()[0]], check=False)
            if daemon.runs:
                daemon.kill()
            for place in ("/var/lib/libvirt", "/run/libvirt", "/etc/libvirt"):
                for pattern in (f"*{self.name}*", "swtpm", "domain-*"):
                    find = ["find", place, "-depth", "-name", pattern]
                    # A host that has just been powered on again has no /run/libvirt.
                    for path in host.run(find, check=False).stdout.splitlines():
                        host.run(["rm", "-rf", path])
            host.run(["find", "/var/lib/entourage", "-mindepth", "1", "-delete"])
            host.run(["rm", "-rf", "/run/entourage"])
            daemon.start()
        fresh = self.begin(
            self.lab, self.seen, self.name, disks=self.disks, tpm=self.tpm, extra=self.extra
        )
        self.__dict__.update(fresh.__dict__)

    # libvirt's view ----------------------------------------------------------------------------

    def domains(self, host: Host) -> dict[str, str]:
        """The domains that the libvirtd of a host knows, and their states."""
        return Libvirtd(host).domains()

    def delete_volume(self, host: Host) -> None:
        """Delete the disks on a host; not behind libvirt's back, whose pool would not know."""
        Libvirtd(host).virsh("pool-refresh", "default")
        for disk in self.disks:
            Libvirtd(host).virsh("vol-delete", disk.path)

    def virsh_migrate(self, *options: str, check: bool = True) -> CompletedProcess[str]:
        """Move it without Entourage, as libvirt's users do today."""
        return self.here.run(self._virsh_migrate(options), check=check, timeout=PATIENCE)

    @contextmanager
    def virsh_migrating(self, *options: str) -> Generator[HostProcess]:
        """Begin that; it is under way when there is a QEMU on the target."""
        process = self.here.popen(self._virsh_migrate(options))
        deadline = time.monotonic() + PATIENCE
        while not self._qemu_is_there():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)  # virsh tells nobody how far it is
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def _virsh_migrate(self, options: Sequence[str]) -> list[str]:
        # What has moved away before was deleted behind the pool's back.
        Libvirtd(self.there).virsh("pool-refresh", "default")
        how = ("--live", "--copy-storage-all", "--persistent", "--undefinesource", *options)
        return ["virsh", "migrate", *how, self.name, ssh_uri(self.there)]

    def _qemu_is_there(self) -> bool:
        came = self.there.leftovers(self.clean[self.there.name]).processes
        return any(QEMU in text for text in came)

    def kill_daemon(self, host: Host) -> None:
        """Kill the libvirtd of a host, in the middle of whatever it does."""
        Libvirtd(host).kill()

    def start_daemon(self, host: Host) -> None:
        """Start it again; that it is another process is no trace of a migration."""
        Libvirtd(host).start()
        self.clean[host.name] = _other_daemon(self.clean[host.name], host)
        if host is self.here and self.running is not None:
            self.running = _other_daemon(self.running, host)

    def booted(self, host: Host) -> None:
        """A host was powered on again: its libvirtd starts, and what was booted is no trace."""
        Libvirtd(host).start()
        super().booted(host)
        # libvirt never clears away what it had there when the plug was pulled.
        now = host.snapshot().files
        stale = {path for path in now if any(fnmatch(path, pattern) for pattern in STALE)}
        known = self.clean[host.name]
        self.clean[host.name] = dataclasses.replace(known, files=known.files | stale)

    def is_clean(self, host: Host) -> None:
        """Nothing of the guest is on a host, in libvirt's eyes and in truth."""
        assert self.domains(host) == {}
        super().is_clean(host)

    def lives(self) -> None:
        """It runs on, the same one, in libvirt's eyes and in truth."""
        assert self.domains(self.here) == {self.name: "running"}
        super().lives()


def _other_daemon(known: Snapshot, host: Host) -> Snapshot:
    """A snapshot with the libvirtd that there is now."""
    others = {key: text for key, text in known.processes.items() if not _is_libvirtd(text)}
    now = host.snapshot().processes.items()
    daemon = {key: text for key, text in now if _is_libvirtd(text)}
    return dataclasses.replace(known, processes={**others, **daemon})


def _is_libvirtd(process: str) -> bool:
    return process.split()[1] == "libvirtd"


@dataclass
class FullWorld(LibvirtWorld):
    """The domain has a device of each class that can move."""

    devices: ClassVar = ALL_CLASSES
    ports: ClassVar = ("tcp 4000",)


@dataclass
class AgentlessWorld(LibvirtWorld):
    """Neither host finds an Entourage on the other."""

    devices: ClassVar = ALL_CLASSES
    ports: ClassVar = ("tcp 4000",)

    def _command(self, *options: str, to: str | None = None) -> list[str]:
        target = ssh_uri(self.there) if to is None else to
        return ["entourage", "migrate", "--json", *NOT_THERE, *options, "--", self.name, target]

    @contextmanager
    def under(
        self,
        *hold: str,
        options: Sequence[str] = (),
        on_target: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Generator[Under]:
        """Begin a migration; the points of its target are a proxy agent's, on this host."""
        with Points(self.here, *hold, *on_target) as points:
            more = {**(env or {}), **points.env}
            process = self.here.popen(self._command(*options), env=more)
            try:
                yield Under(process, points, points)
            finally:
                points.open()
                process.communicate(timeout=PATIENCE)
