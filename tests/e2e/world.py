"""Two hosts and a guest, looked at from outside: what is where, and what must be nowhere."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lab.guest import Disk, Guest, GuestError, Tpm, disk_sequences, domain_toml
from lab.host import Host
from lab.hosts import Lab
from lab.leftovers import Snapshot, compare
from lab.network import guest_address
from lab.observer import Observer
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run, Under, far
from tests.e2e.tool import Tool

FAULTY = Path(__file__).with_name("faulty")
_MADE_WITHIN = 5.0  # seconds
_ALL_OF_IT = ("bs=1M", "count=16", "conv=notrunc")
# Of no migration: a lock's file stays for the next one to lock; the rest is made on first use.
KEPT = (
    "/var/lib/entourage",
    "/var/lib/entourage/domains",
    "/var/lib/entourage/journal.db*",
    "/run/entourage",
    "/run/entourage/q",
    "/run/entourage/*-*-*-*-????????????.lock",
    "/run/entourage/kvm.json",
    "/run/entourage/links",
    "/run/entourage/links/*.[0-9]*",
)
EMULATED = """
[[usb]]
id = "tablet"
model = "usb-tablet"
[[pci]]
id = "rng"
model = "virtio-rng-pci"
"""
GADGET = """
[[external]]
id = "gadget0"
type = "gadget"
"""


@dataclass
class World:
    """A guest on one of two hosts, that the tests move, or fail to.

    Attributes:
        here: The host that the guest is on.
        there: The other.
        clean: What each host has on it where the guest is not there.
        running: What the host has on it that the guest is on.
        plugins: Whether the controllers of ``faulty/`` are to be used, on both hosts.
        sockets: Where sockets of a running guest may be.
        kept: What may stay on a host when the guest has gone.
        ports: Where a running guest is listened for.
        nics: How many it has.
    """

    sockets: ClassVar[tuple[str, ...]] = ("/run/entourage/q/",)
    kept: ClassVar[tuple[str, ...]] = KEPT
    ports: ClassVar[tuple[str, ...]] = ()
    nics: ClassVar[int] = 1
    lab: Lab
    seen: Observer
    here: Host
    there: Host
    name: str
    disks: tuple[Disk, ...]
    tpm: bool
    address: str
    plugins: bool = False
    clean: dict[str, Snapshot] = field(default_factory=dict[str, Snapshot])
    running: Snapshot | None = None
    boot: str = ""
    registers: Tpm | None = None

    @classmethod
    def begin(
        cls,
        lab: Lab,
        seen: Observer,
        name: str = "web1",
        *,
        disks: Sequence[Disk | str] = ("/srv/disk0.raw",),
        tpm: bool = True,
        extra: str = "",
        address: str = guest_address(),
        allocated: bool = False,
    ) -> World:
        """Boot a guest on a, and remember what both hosts had before.

        Args:
            lab: With the hosts a and b.
            seen: Pings it.
            name: The domain's.
            disks: Those that do not exist are made.
            tpm: Whether it has one.
            extra: TOML of more devices.
            address: The guest's.
            allocated: Whether its disks, small ones then, take all their room from the beginning.
        """
        a, b = lab["a"], lab["b"]
        known = tuple(disk if isinstance(disk, Disk) else Disk(disk) for disk in disks)
        world = cls(lab, seen, a, b, name, known, tpm, address, plugins="gadget" in extra)
        world.boot = seen.report(address).boot  # of another guest, before this one
        file = world._write(extra)
        world.clean = {host.name: host.snapshot() for host in (a, b)}
        for disk in known:
            if not a.path(disk.path).exists():
                disk.create(a, "16M" if allocated else "64M")
                if allocated:
                    a.run(["dd", "if=/dev/urandom", f"of={disk.path}", *_ALL_OF_IT])
        world._boot(file)
        return world

    def start_again(self) -> None:
        """Boot the guest that is off here."""
        self._boot(self.name)

    def restart(self) -> None:
        """Pull the guest's plug, unless it is off already, and boot it with all that it had."""
        self.here.run(["entourage", "stop", "--force", self.name], check=False, timeout=PATIENCE)
        acked, registers = self.seen.acked(self.address), self.registers
        self._disks_hold(acked)
        self.start_again()
        if registers and self.registers:
            assert self.registers.nv >= registers.nv

    def _write(self, extra: str) -> str:
        """Describe it in a file."""
        file = "/root/domain.toml"
        # A uuid of its own: another one of this name may have moved away before.
        text = domain_toml(
            self.name,
            disks=self.disks,
            tpm=self.tpm,
            extra=extra,
            address=self.address,
            memory="192M",
            uuid=str(uuid.uuid4()),
        )
        self.here.path(file).write_text(text)
        return file

    def _start(self, what: str) -> None:
        """Switch it on: from its file, or by its name."""
        env = self._environment(None)
        self.here.run(["entourage", "start", what], timeout=PATIENCE, env=env)

    def _boot(self, what: str) -> None:
        self._start(what)
        wanted, before = len(self.disks), self.boot
        report = self.seen.wait_for(
            lambda report: report.boot != before and report.up and len(report.acked) == wanted,
            PATIENCE,
            self.address,
        )
        self.boot = report.boot
        self.registers = self.guest.tpm() if self.tpm else None
        self.running = self.here.snapshot()

    def end(self) -> None:
        """Pull the guest's plug, and see that this leaves nothing."""
        known = json.loads(self.here.run(["entourage", "list", "--json"]).stdout)
        [uuid] = [domain["uuid"] for domain in known if domain["name"] == self.name]
        self.here.run(["entourage", "stop", "--force", self.name], timeout=PATIENCE)
        for disk in self.disks:
            if self.here.path(disk.path).is_file():
                self.here.path(disk.path).unlink()
        self.here.run(["rm", "-r", f"/var/lib/entourage/domains/{uuid}"])
        for host in (self.here, self.there):
            left = host.wait_clean(self.clean[host.name], ignore=self.kept)
            assert not left, f"left over on {host.name}:\n{left}"

    @property
    def guest(self) -> Guest:
        """The guest, to be spoken to."""
        return Guest(self.lab, self.address)

    # Moving it ---------------------------------------------------------------------------------

    def migrate(
        self, *options: str, to: str | None = None, env: Mapping[str, str] | None = None
    ) -> Run:
        """Run ``entourage migrate`` to its end."""
        argv = self._command(*options, to=to)
        done = self.here.run(argv, check=False, timeout=PATIENCE, env=self._environment(env))
        return Run(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def under(
        self,
        *hold: str,
        options: Sequence[str] = (),
        on_target: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Generator[Under]:
        """Begin a migration that stops at points of its source, or of its target.

        Args:
            hold: Points of the source.
            options: More options of ``entourage migrate``.
            on_target: Points of the target.
            env: For the environment of Entourage on both hosts.
        """
        more = dict(env or {})
        with Points(self.here, *hold) as points, Points(self.there, *on_target) as far_points:
            remote = far(**self._plugins, **more, **far_points.env if on_target else {})
            argv = self._command("--remote-command", remote, *options)
            process = self.here.popen(argv, env=self._environment({**more, **points.env}))
            try:
                yield Under(process, points, far_points)
            finally:
                points.open()
                far_points.open()
                process.communicate(timeout=PATIENCE)

    @property
    def _plugins(self) -> dict[str, str]:
        return {"PYTHONPATH": str(FAULTY)} if self.plugins else {}

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        return {**self._plugins, **(more or {})}

    def _command(self, *options: str, to: str | None = None) -> list[str]:
        remote = ["--remote-command", far(**self._plugins)] if self.plugins else []
        target = self.there.name if to is None else to
        return ["entourage", "migrate", "--json", *remote, *options, "--", self.name, target]

    # Doing things to it ------------------------------------------------------------------------

    def kill(self, host: Host, program: str) -> None:
        """Kill the program of the domain that runs on a host."""
        came = host.leftovers(self.clean[host.name]).processes
        [pid] = [text.split()[0] for text in came if Path(text.split()[1]).name == program]
        host.run(["kill", "-KILL", pid])

    def booted(self, host: Host) -> None:
        """A host was powered on again: what it has booted is no trace of a migration."""
        known = self.clean[host.name]
        self.clean[host.name] = dataclasses.replace(known, processes=host.snapshot().processes)

    def tool(self, body: str = "") -> Tool:
        """An external tool on both hosts; logs how it is called, then does what ``body`` says."""
        tool = Tool((self.lab["a"], self.lab["b"]))
        tool.write(body)
        return tool

    # Looking at it from outside ----------------------------------------------------------------

    def moved(self, run: Run, *, outcome: str = "moved", status: int = 0) -> None:
        """The guest lives over there now, complete, and nothing of it is left here."""
        assert run.status == status, str(run)
        assert run.finished["outcome"] == outcome, str(run)
        assert run.finished["runs_on"] == self.there.name, str(run)
        self.arrived()

    def arrived(self) -> None:
        """It was here and is there: complete, and nothing of it is left where it was."""
        self.here, self.there = self.there, self.here
        self.lives()
        self.is_clean(self.there)
        self.running = self.here.snapshot()
        came = self.here.leftovers(self.clean[self.here.name], ignore=self.kept)
        programs = sorted(Path(text.split()[1]).name for text in came.processes)
        assert programs == ["qemu-system-x86_64"] + ["swtpm"] * self.tpm, str(came)
        assert len(came.interfaces) == self.nics, str(came)
        assert came.ports == self.ports, str(came)
        assert all(path.startswith(self.sockets) for path in came.sockets), str(came)
        assert not any("psk" in path for path in came.files), str(came)

    def stayed(self, run: Run, *, status: int = 4) -> None:
        """The guest lives here as before, and nothing of it is left there, nor of the attempt."""
        assert run.status == status, str(run)
        outcome = {1: "failed", 2: "failed", 3: "refused", 4: "rolled-back"}[status]
        assert run.finished["outcome"] == outcome, str(run)
        assert not run.finished["problems"], str(run)
        if status == 4:
            assert run.finished["runs_on"] == self.here.name, str(run)
        self.is_as_before()

    def is_as_before(self) -> None:
        """Both hosts are as if nothing had been tried."""
        self.lives()
        assert self.running is not None
        left = self.here.wait_clean(self.running, ignore=self.kept)
        assert not left, f"left over on {self.here.name}:\n{left}"
        # A daemon that was started again makes its sockets one after the other, and tells nobody.
        deadline = time.monotonic() + _MADE_WITHIN
        while lost := compare(self.here.snapshot(), self.running, self.kept):
            assert time.monotonic() < deadline, f"lost on {self.here.name}:\n{lost}"
            time.sleep(0.05)
        self.is_clean(self.there)

    def lives(self) -> None:
        """It runs on, the same one, and all that it has ever written is on the disk here."""
        report = self.seen.wait_progress(PATIENCE, self.address)
        assert report.boots[-1] == self.boot
        assert report.errors == (), report.errors
        assert report.connections == len(report.boots)
        self.disks_are_whole()
        if self.tpm:
            registers = self.guest.tpm()
            assert registers == self.registers

    def disks_are_whole(self) -> None:
        """Every write that the guest was told is on the disk is on the disk of this host."""
        self.guest.pause_writes()
        try:
            self._disks_hold(self.seen.acked(self.address))
        finally:
            self.guest.resume_writes()

    def _disks_hold(self, acked: Mapping[str, int]) -> None:
        assert len(acked) == len(self.disks)
        for disk, name in zip(self.disks, sorted(acked), strict=True):
            records = disk_sequences(self.here.path(disk.path), disk.format)
            assert records.boot == self.boot
            assert records.last >= acked[name]
            assert records.missing == ()

    def answers(self) -> bool:
        """Whether it says anything at all."""
        try:
            self.guest.status(timeout=2)
        except (OSError, GuestError):
            return False
        return True

    def is_well(self) -> bool:
        """Whether it runs and all of it works, its TPM included."""
        try:
            self.guest.status(timeout=2)
            return not self.tpm or self.guest.tpm(timeout=2) == self.registers
        except (OSError, GuestError):
            return False

    def find(self) -> str:
        """Whose the guest is: ``source``, as it was before, or ``target``; never both."""
        having = [
            role
            for role, host in (("source", self.here), ("target", self.there))
            for domain in json.loads(host.run(["entourage", "list", "--all", "--json"]).stdout)
            if domain["name"] == self.name and domain["state"] != "moved"
        ]
        assert len(having) == 1, having
        return having[0]

    def is_clean(self, host: Host) -> None:
        """Nothing of the guest is on a host, nor of an attempt to move it there."""
        left = host.wait_clean(self.clean[host.name], ignore=self.kept)
        assert not left, f"left over on {host.name}:\n{left}"


@contextmanager
def other_bridge(host: Host) -> Generator[None]:
    """Its bridge is called br7, with all that is plugged into it."""
    _rename(host, "br0", "br7")
    try:
        yield
    finally:
        _rename(host, "br7", "br0")


def _rename(host: Host, old: str, new: str) -> None:
    host.run(["ip", "link", "set", old, "down"])
    host.run(["ip", "link", "set", old, "name", new])
    host.run(["ip", "link", "set", new, "up"])


def qmp(world: World, *commands: str | tuple[str, dict[str, Any]]) -> Any:
    """Have the guest's QEMU do something, as a user with a monitor would; the last answer."""
    return qmp_on(world.here, *commands)


def qmp_on(host: Host, *commands: str | tuple[str, dict[str, Any]]) -> Any:
    """Have the one QEMU of a host do something; the last answer."""
    [path] = host.path("/run/entourage/q").glob("*/info.sock")
    answer: dict[str, Any] = {}
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(PATIENCE)
        monitor.connect(str(path))
        with monitor.makefile("rw") as lines:
            for command in ("qmp_capabilities", *commands):
                name, arguments = (command, {}) if isinstance(command, str) else command
                request = {"execute": name, "arguments": arguments, "id": name}
                lines.write(json.dumps(request) + "\n")
                lines.flush()
                while answer.get("id") != name:
                    answer = json.loads(lines.readline())
    return answer["return"]
