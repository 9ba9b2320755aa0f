"""Guests that travel between the two hosts, each by the hand of another party."""

from __future__ import annotations

import datetime as dt
import json
import os
import shlex
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.guest import Disk, domain_toml
from lab.guest_image import PUBLIC
from lab.host import Host
from lab.hosts import Lab
from lab.network import guest_address

CONFIG = "/etc/entourage/bench.toml"
OWN: Mapping[str, str] = {"ENTOURAGE_CONFIG": CONFIG}
"""Entourage's own settings, not the lab's (``lab/vcpus.py``), which cost blackout."""
SETTINGS = f"""\
[agent]
boot-directories = ["{PUBLIC}"]
allow-unencrypted = true
[qemu]
user = "root"  # as the floor's
"""
PLUGIN = Path(__file__).with_name("plugin")
_PATIENCE = 60.0
_TIME = ("/usr/bin/time", "-f", "%U %S %M", "-o")


@dataclass(frozen=True)
class Shape:
    """What the guest consists of, and how it is moved.

    Attributes:
        name: Of the shape.
        disks: Size of each, as ``256M``.
        data: MiB of data in the first one, beside what the guest writes.
        filled: MiB of its memory that hold something which cannot be compressed.
        tls: Memory and disks are encrypted.
        live: False stops the guest first.
        extra: More devices, as TOML.
        options: More for ``entourage migrate``.
        plan: More for the floor script's plan.
        environment: For ``entourage migrate``.
    """

    name: str
    disks: tuple[str, ...] = ("256M",)
    data: int = 0
    tpm: bool = False
    tls: bool = True
    live: bool = True
    memory: str = "256M"
    filled: int = 0
    extra: str = ""
    options: tuple[str, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict[str, Any])
    environment: Mapping[str, str] = field(default_factory=lambda: OWN)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a party says of one move; times are seconds since the epoch."""

    ok: bool
    began: float
    ended: float
    stop: float = 0.0
    resume: float = 0.0
    spans: Mapping[str, float] = field(default_factory=dict[str, float])
    events: Sequence[Mapping[str, Any]] = ()
    moments: Mapping[str, float] = field(default_factory=dict[str, float])
    source: str = ""
    said: str = ""


class Traveller:
    """A guest that one party moves.

    Args:
        lab: Where.
        shape: What it consists of.
        index: Its number in the lab: an address and a name follow from it.
    """

    party = ""

    def __init__(self, lab: Lab, shape: Shape, index: int) -> None:
        self.lab = lab
        self.shape = shape
        self.address = guest_address(index)
        self.name = f"{self.party}{index}"
        self.source, self.target = lab["a"], lab["b"]
        self.around: list[str] = []  # a tracer, that writes its log to …
        self.trace = f"/srv/{self.name}.trace"  # … this file at both ends
        self.disks = [f"/srv/{self.name}.{n}.raw" for n in range(len(shape.disks))]
        for host in (self.source, self.target):
            host.write_files({CONFIG: SETTINGS})

    def start(self) -> None:
        """Start the guest on a, running."""
        raise NotImplementedError

    def move(self) -> Told:
        """Move it to the other host."""
        raise NotImplementedError

    def monitor(self) -> str:
        """The path, on the guest's host, of a QMP socket that nobody else uses."""
        raise NotImplementedError

    def pause(self) -> None:
        """Stop the guest, so that others have the machine to themselves."""
        qmp(self.source, self.monitor(), "stop")

    def resume(self) -> None:
        """Let it run again."""
        qmp(self.source, self.monitor(), "cont")

    def costs(self) -> tuple[tuple[float, float], tuple[int, int]]:
        """CPU seconds and peak resident bytes of the last move's orchestrators."""
        if self.around:  # a tracer goes on with QEMU, and time(1) waits for it
            return (0.0, 0.0), (0, 0)
        # The two hosts have changed places.
        source = usage(self.target, self.name, "source")
        target = usage(self.source, self.name, "target")
        return (source[0], target[0]), (source[1], target[1])

    def _toml(self) -> str:
        return domain_toml(
            self.name,
            disks=self.disks,
            tpm=self.shape.tpm,
            memory=self.shape.memory,
            address=self.address,
            extra=self.shape.extra,
        )

    def _make_disks(self) -> None:
        for path, size in zip(self.disks, self.shape.disks, strict=True):
            Disk(path).create(self.source, size)
        if self.shape.data:
            # Beyond what the guest writes, and scattered, as files are.
            last = self.shape.data // 8 - 1
            copy = 'dd if=/dev/urandom of="$1" bs=1M count=8 conv=notrunc status=none'
            script = f"for n in $(seq 0 {last}); do {copy} seek=$((128 + n * 128)); done"
            self.source.run(["sh", "-c", script, "sh", self.disks[0]])

    def _timed(self, end: str) -> list[str]:
        around = [*self.around, self.trace] if self.around else []
        return [*_TIME, _usage_file(self.name, end), *around]

    def _swap(self) -> None:
        self.source, self.target = self.target, self.source


class Entourage(Traveller):
    """Moved by ``entourage migrate``."""

    party = "entourage"

    def start(self) -> None:
        """Start the guest on a, running."""
        self._make_disks()
        self.source.write_files({f"/srv/{self.name}.toml": self._toml()})
        env = self.shape.environment
        self.source.run(["entourage", "start", f"/srv/{self.name}.toml"], env=env)

    def monitor(self) -> str:
        """The monitor that ``entourage list`` uses."""
        found = next(self.source.path("/run/entourage/q").glob("*/info.sock"), None)
        if found is None:
            raise FileNotFoundError(f"{self.name} does not run")
        return f"/run/entourage/q/{found.parent.name}/info.sock"  # it is the only domain

    def move(self) -> Told:
        """Move it to the other host."""
        shape = self.shape
        variables = [f"{key}={value}" for key, value in shape.environment.items()]
        remote = ["env", *variables, *self._timed("target"), "entourage"]
        argv = [*self._timed("source"), "entourage", "migrate", self.name, self.target.name]
        argv += ["--json", "--remote-command", shlex.join(remote), *shape.options]
        argv += [] if shape.tls else ["--no-tls"]
        argv += [] if shape.live else ["--non-live"]
        began = time.time()
        process = self.source.popen(argv, env=shape.environment)
        output, errors = process.communicate(timeout=_PATIENCE)
        told = read_events(output, began, time.time(), errors)
        if told.ok:
            self._swap()
        return told


def read_events(output: str, began: float, ended: float, errors: str) -> Told:
    """What ``entourage migrate --json`` printed."""
    events: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    by_kind = {str(event["event"]): event for event in events}
    started, finished = by_kind.get("migration-started"), by_kind.get("finished")
    stopped, resumed = by_kind.get("guest-stopped"), by_kind.get("guest-resumed")
    if started is None or finished is None:
        return Told(ok=False, began=began, ended=ended, said=output + errors)
    epoch = _wall(str(started["time"])) - float(started["at"])
    spans = {
        f"{event['name']}@{'source' if event['host'] == started['source'] else 'target'}": float(
            event["at"]
        )
        - float(event["start"])
        for event in events
        if event["event"] == "span-done"
    }
    return Told(
        ok=finished["outcome"] == "moved",
        began=began,
        ended=ended,
        stop=epoch + float(stopped["at"]) if stopped else 0.0,
        resume=epoch + float(resumed["at"]) if resumed else 0.0,
        spans=spans,
        events=events,
        source=str(started["source"]),
        said=errors or str(finished),
    )


def fill(host: Host, memory: str, mebibytes: int) -> None:
    """Write random bytes into the end of the memory of each guest of that size on a lab's host.

    It is free there: a guest does not look at what is in memory that it does not use.

    Args:
        host: Where they run; nothing of another one's processes is touched.
        memory: The guest's, as ``2G``.
        mebibytes: How much of it.
    """
    size = mebibytes_of(memory) << 20
    here = Path(f"/proc/{host.init_pid}/ns/pid").readlink()
    for process in Path("/proc").glob("[0-9]*") if mebibytes else ():
        for first, last in _mappings(process, here):
            if last - first == size:
                with (process / "mem").open("wb", buffering=0) as file:
                    for number in range(mebibytes):
                        file.seek(last - ((number + 1) << 20))
                        file.write(os.urandom(1 << 20))


def mebibytes_of(memory: str) -> int:
    """MiB, of what is written as ``256M`` or ``2G``."""
    return int(memory[:-1]) << {"M": 0, "G": 10}[memory[-1]]


def _mappings(process: Path, here: Path) -> list[tuple[int, int]]:
    """What a QEMU has mapped, first address and the one after the last; nothing of others.

    Args:
        process: Its directory in ``/proc``.
        here: The PID namespace that it must be in.
    """
    try:
        named = "qemu-system" in (process / "cmdline").read_text(errors="replace")
        if not named or (process / "ns" / "pid").readlink() != here:
            return []
        lines = (process / "maps").read_text().splitlines()
    except OSError:  # it has ended
        return []
    pairs = (line.split()[0].split("-") for line in lines)
    return [(int(first, 16), int(last, 16)) for first, last in pairs]


def qmp(host: Host, path: str, command: str) -> Any:
    """Run one QMP command on a host's socket, and return what it returns."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(_PATIENCE)
        monitor.connect(str(host.path(path)))
        with monitor.makefile("rw") as lines:
            for words in ("qmp_capabilities", command):
                lines.write(json.dumps({"execute": words}) + "\n")
                lines.flush()
                while "return" not in (answer := json.loads(lines.readline())):
                    if "error" in answer:
                        raise RuntimeError(f"{command}: {answer['error']['desc']}")
    return answer["return"]


def _wall(iso: str) -> float:
    return dt.datetime.fromisoformat(iso).timestamp()


def _usage_file(name: str, end: str) -> str:
    return f"/srv/{name}.{end}.usage"


def usage(host: Host, name: str, end: str) -> tuple[float, int]:
    """CPU seconds and peak resident bytes of what moved a guest, at one end (as GNU time wrote)."""
    words = host.path(_usage_file(name, end)).read_text().splitlines()[-1].split()
    return float(words[0]) + float(words[1]), int(words[2]) * 1024
