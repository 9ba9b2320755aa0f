"""``virsh migrate``, attended and not: the same domain, with devices of ours and without."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from subprocess import STDOUT

from bench.figures import Round, whole
from bench.guests import SETTINGS, Shape, Told, Traveller, read_events
from bench.virsh import Virsh
from lab.host import REPOSITORY, Host
from lab.hosts import Lab
from lab.libvirtd import start_all

HOOK = "/etc/libvirt/hooks/qemu.d/entourage"
_CONFIG = "/etc/entourage/entourage.toml"
_ATTENDED_WITHIN = 30.0
_SLOW = 0.2  # seconds
_LOG = "/var/log/attend.log"
_WAITED = re.compile(r"QEMU waited ([0-9.]+) ms")
WAITED = "QEMU waits, guest stopped, for an answer of ours"
"""Seconds, of both hosts together: all that attending adds to a blackout."""


class Attended(Virsh):
    """A libvirt domain with external devices, moved by virsh alone.

    Args:
        lab: Where.
        shape: What the guest consists of.
        index: Its number in the lab.
        party: What it is called among the others.
        number: How many devices.
        seconds: What each device takes in step 2.
    """

    def __init__(  # noqa: PLR0917 - what Virsh is given, and more
        self, lab: Lab, shape: Shape, index: int, party: str, number: int, seconds: float
    ) -> None:
        super().__init__(lab, shape, index, party)
        tool = f"/srv/tool-{index}"
        script = f'#!/bin/sh\n[ "$4" = 2 ] && exec sleep {seconds:g}\nexit 0\n'
        self.metadata = "\n".join(
            f'[[external]]\nid = "d{n}"\ntype = "other"\ntool = "{tool}"' for n in range(number)
        )
        for host in (self.source, self.target):
            host.write_files({tool: script})
            host.path(tool).chmod(0o755)

    def move(self) -> Told:
        """Move it to the other host; the daemon of the source says what the time went into."""
        source = self.source
        hosts = (source, self.target)
        known = [len(host.path(_LOG).read_text()) for host in hosts]
        uuid = source.run(["virsh", "--quiet", "domuuid", self.name]).stdout.strip()
        told = super().move()
        events = source.path(f"/run/entourage/attend/{uuid}.jsonl")
        deadline = time.monotonic() + _ATTENDED_WITHIN
        while not (said := read_events(events.read_text(), 0, 0, "")).source:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the migration of {self.name} does not end")
            time.sleep(0.1)
        logs = [host.path(_LOG).read_text()[n:] for host, n in zip(hosts, known, strict=True)]
        waited = sum(float(ms) for text in logs for ms in _WAITED.findall(text)) / 1000
        return dataclasses.replace(told, spans={**said.spans, WAITED: waited})

    def start(self) -> None:
        """Start the guest on a, running and attended."""
        super().start()
        deadline = time.monotonic() + _ATTENDED_WITHIN
        check = ["entourage", "attend", "--check", self.name]
        while self.source.run(check, check=False).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} is not attended")
            time.sleep(0.1)


@contextlib.contextmanager
def daemons(lab: Lab) -> Generator[None]:
    """Have both hosts attend, whatever is migrated on them."""
    hosts = (lab["a"], lab["b"])
    for host in hosts:
        _set_up(host)
    start_all(list(hosts))
    with contextlib.ExitStack() as stack:
        for host in hosts:
            log = stack.enter_context(host.path(_LOG).open("a"))
            process = host.popen(["entourage", "attend"], stdout=log, stderr=STDOUT)
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
        yield


def _set_up(host: Host) -> None:
    host.run(["mkdir", "-p", str(Path(HOOK).parent), str(Path(_CONFIG).parent)])
    hook = (REPOSITORY / "src/entourage/hypervisors/attended/hook.py").read_text()
    host.write_files({HOOK: hook, _CONFIG: SETTINGS})
    host.path(HOOK).chmod(0o755)


def added(rounds: Sequence[Round]) -> dict[str, list[float]]:
    """Seconds of blackout, by pinger, that each party had more than virsh in the same round."""
    kept = whole(rounds)
    names = [name for name in (kept[0] if kept else ()) if name != "virsh"]
    return {
        f"{name}, more than virsh, s": [one[name].pinger - one["virsh"].pinger for one in kept]
        for name in names
    }


def parties(lab: Lab, shape: Shape) -> Sequence[Traveller]:
    """The same virsh: of a domain with slow devices of ours, with idle ones, and without any.

    The first round is the other way round, and ratios are to who comes first there.
    """
    return [
        *(
            Attended(lab, shape, 2 + index, f"{number} of 200 ms", number, _SLOW)
            for index, number in enumerate((1, 2, 4))
        ),
        Attended(lab, shape, 1, "attended", 2, 0),
        Virsh(lab, shape, 0, "virsh"),
    ]
