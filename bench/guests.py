"""Guests that travel between the two hosts, each by the hand of another party."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
import shlex
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entourage.hypervisors.qemu.keys import cipher_order
from lab.guest import Disk, domain_toml
from lab.guest_image import PUBLIC
from lab.host import REPOSITORY, Host
from lab.hosts import Lab
from lab.network import HOST_BRIDGE, guest_address
from lab.processes import HostProcess

DOWNTIME = 30
"""Milliseconds that QEMU may take for the last memory: what Entourage begins with."""
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
_HERE = "/run/bench"
_TIME = ("/usr/bin/time", "-f", "%U %S %M", "-o")


@dataclass(frozen=True)
class Shape:
    """What the guest consists of, and how it is moved.

    Attributes:
        name: Of the shape.
        disks: Size of each, as ``256M``.
        data: MiB of data in the first one, beside what the guest writes.
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


class ByHand(Traveller):
    """Moved by the floor script; its QEMU has the very arguments that Entourage's has."""

    party = "floor"

    def __init__(self, lab: Lab, shape: Shape, index: int) -> None:
        super().__init__(lab, shape, index)
        self._qemu: list[str] = []
        self.plan: dict[str, Any] = dict(shape.plan)

    def start(self) -> None:
        """Start the guest on a, running."""
        self._make_disks()
        self.source.write_files({f"/srv/{self.name}.toml": self._toml()})
        self.source.run(["entourage", "start", f"/srv/{self.name}.toml"])
        pid = self.source.run(["pgrep", "-f", f"guest={self.name},"]).stdout.split()[0]
        raw = self.source.path(f"/proc/{pid}/cmdline").read_bytes()
        self._qemu = by_hand(raw.decode().split("\0")[:-1], self._dir, self._tap)
        self.source.run(["entourage", "stop", self.name, "--force"])
        self.source.run(["sh", "-c", self._script(self._qemu, make_disks=False)])
        self.resume()

    def monitor(self) -> str:
        """A monitor beside the one that the script uses."""
        return f"{self._dir}/info"

    def move(self) -> Told:
        """Move it to the other host."""
        shape = self.shape
        psk = f"{_HERE}/psk" if shape.tls else ""
        if psk:
            key = "bench:" + "5a" * 32 + "\n"
            for host in (self.source, self.target):
                host.path(psk).mkdir(parents=True, exist_ok=True)
                host.write_files({f"{psk}/keys.psk": key})
        plan = {
            "host": self.target.name,
            "prepare": self._script([*self._qemu, "-incoming", "defer"], make_disks=True),
            "here": f"{self._dir}/qmp",
            "there": f"{self._dir}/qmp",
            "address": self.target.address,
            "ports": [49300, 49301],
            "psk": psk,
            "ciphers": cipher_order(),
            "disks": [f"n{n}-disk{n}" for n in range(len(self.disks))],
            "downtime": DOWNTIME,
            "live": shape.live,
            "usage": self._timed("target"),
            **self.plan,
        }
        script = str(REPOSITORY / "bench" / "floor.py")
        argv = [*self._timed("source"), "python3", "-I", "-S", script, json.dumps(plan)]
        began = time.time()
        process = self.source.popen(argv)
        told = _floor_told(process, began)
        if told.ok and not plan.get("back"):
            # What Entourage does by itself.
            self.source.run(["rm", "-rf", *self.disks, *self._state()])
            self._swap()
        else:
            self.target.run(["rm", "-rf", *self.disks, *self._state()])
        return told

    @property
    def _dir(self) -> str:
        return f"{_HERE}/{self.name}"

    @property
    def _tap(self) -> str:
        return f"tap{self.name}"

    def _state(self) -> list[str]:
        return [f"/srv/{self.name}.tpm"]

    def _script(self, qemu: Sequence[str], *, make_disks: bool) -> str:
        lines = [
            "set -e",
            f"mkdir -p {self._dir}",
            f"ip tuntap add dev {self._tap} mode tap 2>/dev/null || :",
            f"ip link set dev {self._tap} master {HOST_BRIDGE} up",
        ]
        if make_disks:
            lines += [
                f"truncate -s {size} {path}"
                for path, size in zip(self.disks, self.shape.disks, strict=True)
            ]
        if self.shape.tpm:
            state = f"/srv/{self.name}.tpm"
            control = f"type=unixio,path={self._dir}/swtpm.sock"
            swtpm = f"swtpm socket --tpm2 --terminate --daemon --ctrl {control}"
            lines += [
                f"mkdir -p {state}",
                f"{swtpm} --tpmstate dir={state},mode=0600 >/dev/null 2>&1",
            ]
        # QEMU's sandbox keeps it from going to the background by itself. What it says goes to a
        # file: ssh waits for all who hold its end.
        lines += [
            f"rm -f {self._dir}/info",
            f"setsid {shlex.join(qemu)} </dev/null >{self._dir}/log 2>&1 &",
            f"for n in $(seq 1000); do [ -S {self._dir}/info ] && break; sleep 0.01; done",
            f"[ -S {self._dir}/info ] || {{ cat {self._dir}/log >&2; exit 1; }}",
        ]
        return "\n".join(lines)


def by_hand(argv: Sequence[str], directory: str, tap: str) -> list[str]:
    """QEMU's arguments as somebody would write them who hands over no descriptors."""
    done: list[str] = []
    for word in argv:
        changed = re.sub(
            r"^socket,id=((?:monitor-)?(\w+)),fd=\d+", rf"socket,id=\1,path={directory}/\2", word
        )
        changed = re.sub(r",vhostfd=\d+", "", changed)
        changed = re.sub(
            r"^(tap,id=[^,]+),fd=\d+", rf"\1,ifname={tap},script=no,downscript=no", changed
        )
        done.append(re.sub(r"path=/run/entourage/q/[^/]+/", f"path={directory}/", changed))
    return done


def _floor_told(process: HostProcess, began: float) -> Told:
    output, errors = process.communicate(timeout=_PATIENCE)
    ended = time.time()
    if process.returncode:
        return Told(ok=False, began=began, ended=ended, said=output + errors)
    moments: dict[str, float] = json.loads(output)
    names = ("stop", "pre-switchover", "disks settled", "completed there", "landed", "resume")
    known = [(name, moments[name]) for name in names if name in moments]
    spans = {
        f"{before} → {name}": at - earlier
        for (before, earlier), (name, at) in itertools.pairwise(known)
    }
    return Told(
        ok=True,
        began=began,
        ended=ended,
        stop=moments["stop"],
        resume=moments["resume"],
        spans=spans,
        moments=moments,
    )


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
