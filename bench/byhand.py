"""A guest that is moved by hand: the floor that Entourage is measured against."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import time
from collections.abc import Sequence
from typing import Any

from bench.guests import Shape, Told, Traveller
from entourage.hypervisors.qemu.keys import cipher_order
from lab.host import REPOSITORY
from lab.hosts import Lab
from lab.network import HOST_BRIDGE
from lab.processes import HostProcess

DOWNTIME = 30
"""Milliseconds that QEMU may take for the last memory: what Entourage begins with."""
_HERE = "/run/bench"
_PATIENCE = 60.0


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
