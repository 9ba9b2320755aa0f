"""How each fault is brought about on real hosts, and what is done once the migration has ended."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from lab.delay import Delay
from lab.host import Host
from lab.hosts import Lab
from tests.e2e.run import PATIENCE, Under
from tests.e2e.tool import Tool
from tests.e2e.world import World

_QEMU = "qemu-system-x86_64"
_FILLER = "/srv/filler"
_BLOCK = 4096
_FROZEN_FOR = 4.0  # seconds, more than links may be silent in these tests
_SPREAD = 0.005  # seconds
_CLOCK = "/etc/clock"
_FAKER = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
_TOOL_STEPS: Final = {"test": "0", "prepare": "1", "stopped": "2", "sync": "3"}
FAKED: Final = {
    "LD_PRELOAD": _FAKER,
    "FAKETIME_TIMESTAMP_FILE": _CLOCK,
    "FAKETIME_NO_CACHE": "1",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
}
"""For the environment of a process whose clock is to be set at will."""


def _is_agent(words: list[str]) -> bool:
    return words[-1:] == ["agent"]


def _is(program: str) -> Callable[[list[str]], bool]:
    return lambda words: Path(words[0]).name == program


_KILLED: Final = {
    "agent": ("target", _is_agent),
    "stand-in": ("source", _is_agent),  # an agent of the source's, for a target that has none
    "ssh": ("source", _is("ssh")),
    "source-qemu": ("source", _is(_QEMU)),
    "target-qemu": ("target", _is(_QEMU)),
    "source-swtpm": ("source", _is("swtpm")),
    "target-swtpm": ("target", _is("swtpm")),
}
_CUTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "link-reset": {"how": "reset"},
    "link-drop": {},
    "link-mended": {},
    "link-drop-to": {"direction": "a-b"},
    "link-drop-fro": {"direction": "b-a"},
    "link-lossy": {"how": "lossy"},
}


class Fault:
    """A fault that can be inflicted on a migration that stands at a point.

    Args:
        world: The guest and its hosts.
        name: What dies, or goes wrong.
        point: Where the migration will stand, a key of ``matrix.POINTS``.
    """

    def __init__(self, world: World, name: str, point: str) -> None:
        self._world = world
        self._name, self._point = name, point
        self._source, self._target = world.here, world.there
        self._tool = Tool((self._source, self._target))
        self._tool.write(
            f'[ "$type$step$recover" != fpga{_TOOL_STEPS.get(point)}no ] || kill -KILL $$'
            if name == "tool"
            else ""
        )
        if name == "clock":
            self._set_clocks("+0d", "+0d")
        self._frozen: tuple[Host, frozenset[str]] | None = None
        self._detour: Delay | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        """What ``entourage`` on both hosts is to have in its environment."""
        return FAKED if self._name == "clock" else {}

    def inflict(self, under: Under) -> None:
        """Do it; when this returns it is done, and what was killed is dead."""
        source, target = self._source, self._target
        if self._name in _KILLED:
            where, which = _KILLED[self._name]
            self._kill(source if where == "source" else target, which)
            return
        if self._name in _CUTS:
            self._world.lab.cut(source.name, target.name, **_CUTS[self._name])
            return
        match self._name:
            case "entourage":
                under.process.kill()
                under.process.wait()
            case "entourage-frozen":
                under.signal("STOP")
            case "agent-frozen":
                # Before the point is passed: it may be the very one that is held there.
                self._freeze(target, _is_agent)
            case "ssh-frozen":
                self._freeze(source, _is("ssh"))
            case "target-qemu-frozen":
                self._freeze(target, _is(_QEMU))
            case "tool" | "link-flaps":
                pass  # the one sees to that itself, the other comes as it goes on
            case "source-host":
                self._cut_source(under)
            case "target-host":
                self._cut_target(under)
            case "both-hosts":
                kill(self._world, target, _is_agent, "STOP")
                self._cut_source(under)
                self._cut_target(under)
            case "source-host-and-agent":
                self._kill(target, _is_agent)
                self._cut_source(under)
            case "link-reorders":
                lab = self._world.lab
                self._detour = Delay.between(lab, source.name, target.name, 0, spread=_SPREAD)
            case "strangers":
                _send_garbage(self._world.lab, target)
            case "disk-full":
                _fill(target)
            case "source-disk-full":
                _fill(source)
            case "clock":
                self._set_clocks("-400d", "+400d")
            case _:
                raise AssertionError(self._name)

    def passed_on(self, under: Under) -> None:
        """The migration goes on from the point."""
        if self._name == "entourage-frozen":
            time.sleep(_FROZEN_FOR)  # that long it is frozen: the others have found the link silent
            if self._point != "held":  # there its way back is closed, and GO is not said
                self._world.seen.wait_answer(PATIENCE)
            under.signal("CONT")
        if self._name in {"ssh-frozen", "target-qemu-frozen"}:
            time.sleep(_FROZEN_FOR)
            self._thaw()
        if self._name == "link-flaps":
            for _ in range(5):
                self._world.lab.cut(self._source.name, self._target.name)
                time.sleep(0.4)
                self._world.lab.mend(self._source.name, self._target.name)
                time.sleep(0.2)
        if self._name == "link-mended":
            lab = self._world.lab
            lab.wait_dropped(self._source.name, self._target.name, PATIENCE)
            lab.mend(self._source.name, self._target.name)

    def over(self) -> None:
        """The command has ended: the network is mended, there is power and room again."""
        lab = self._world.lab
        if self._name == "agent-frozen":
            self._wait_ended(self._target, self._thaw())
        lab.mend(self._source.name, self._target.name)
        if self._detour is not None:
            self._detour.end()
        for host in (self._source, self._target):
            if not host.is_on:
                host.power_on()
                self._world.booted(host)
        if self._name.endswith("disk-full"):
            full = self._source if self._name.startswith("source") else self._target
            full.path(_FILLER).unlink()
        for host in (self._source, self._target):
            host.path(_CLOCK).unlink(missing_ok=True)
            # The faker's own, which it removes where a program ends less suddenly than ours.
            for left in host.path("/dev/shm").glob("*faketime_*"):  # noqa: S108 - the host's
                left.unlink()
        self._tool.write("")

    def _kill(self, host: Host, which: Callable[[list[str]], bool]) -> None:
        """Kill some of the migration's and the guest's own processes, and wait until they died."""
        pids = kill(self._world, host, which, "KILL")
        assert pids, host.leftovers(self._world.clean[host.name])
        self._wait_ended(host, pids)

    def _wait_ended(self, host: Host, pids: frozenset[str]) -> None:
        deadline = time.monotonic() + PATIENCE
        # By its number: a process that is about to end has lost its command line.
        while not pids.isdisjoint(_found(self._world, host, lambda _words: True)):
            assert time.monotonic() < deadline
            time.sleep(0.002)  # it was somebody else's child: there is nothing to wait on

    def _freeze(self, host: Host, which: Callable[[list[str]], bool]) -> None:
        pids = kill(self._world, host, which, "STOP")
        assert pids, host.leftovers(self._world.clean[host.name])
        self._frozen = (host, pids)

    def _thaw(self) -> frozenset[str]:
        assert self._frozen is not None
        host, pids = self._frozen
        host.run(["kill", "-CONT", *pids], check=False)  # some may have been killed meanwhile
        return pids

    def _cut_source(self, under: Under) -> None:
        under.signal("STOP")  # it stands at the point, and would go on now
        under.points.let_go()
        self._source.power_cut()

    def _cut_target(self, under: Under) -> None:
        # Likewise its agent, where one runs already.
        kill(self._world, self._target, _is_agent, "STOP")
        under.far_points.let_go()
        self._target.power_cut()

    def _set_clocks(self, source: str, target: str) -> None:
        for host, offset in ((self._source, source), (self._target, target)):
            new = host.path(f"{_CLOCK}.new")
            new.write_text(f"{offset}\n")
            new.rename(host.path(_CLOCK))


def kill(
    world: World, host: Host, which: Callable[[list[str]], bool], signal: str
) -> frozenset[str]:
    """Send a signal to those of the migration's and the guest's processes; which they were."""
    pids = _found(world, host, which)
    if pids:
        host.run(["kill", f"-{signal}", *pids])
    return pids


def _found(world: World, host: Host, which: Callable[[list[str]], bool]) -> frozenset[str]:
    came = host.leftovers(world.clean[host.name]).processes
    return frozenset(pid for pid, *words in map(str.split, came) if which(words))


def _send_garbage(lab: Lab, target: Host) -> None:
    """From the client, which is no host of the migration's: 64 KiB of noise to each open port."""
    listening = target.run(["ss", "--listening", "--tcp", "--numeric", "--no-header"]).stdout
    ports = {line.split()[3].rpartition(":")[2] for line in listening.splitlines()} - {"22"}
    assert ports, "nothing listens"
    for port in ports:
        with lab.client.socket() as stranger, contextlib.suppress(OSError):
            stranger.settimeout(1)
            stranger.connect((target.address, int(port)))
            stranger.sendall(random.Random(port).randbytes(1 << 16))  # noqa: S311 - noise


def _fill(host: Host) -> None:
    """Leave no room on the disk of a host, not even a block."""
    with host.path(_FILLER).open("wb") as file:
        size, step = 0, 1 << 30
        while step >= _BLOCK:
            try:
                os.posix_fallocate(file.fileno(), size, step)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                step //= 2
            else:
                size += step
