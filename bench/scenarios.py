"""What is measured: each scenario makes guests, lets parties take turns, and keeps the rounds."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from bench import attended
from bench.byhand import ByHand
from bench.evacuating import evacuate_times
from bench.figures import Move, Round
from bench.guests import OWN, PLUGIN, Entourage, Shape, Told, Traveller
from bench.saving import save_times
from bench.stage import Stage
from bench.testing import test_times
from bench.virsh import OnLibvirt, Virsh
from bench.xen import turns
from entourage import messages
from entourage.hosts.link import Call
from entourage.version import __version__
from lab.delay import Delay
from lab.host import Host
from lab.hosts import Lab

Log = Callable[[str], None]
_SLOW = 0.2  # seconds, as in the plugin
_TOOL = "/srv/slow-tool"


@dataclasses.dataclass(frozen=True)
class Result:
    """What a scenario found.

    Attributes:
        name: Of the scenario.
        title: For people.
        rounds: Each party's move, round by round.
        facts: What is no figure of a move.
    """

    name: str
    title: str
    rounds: Sequence[Round] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A scenario: how often it is run, in all and in a hurry, and what runs it."""

    name: str
    title: str
    rounds: int
    quick: int
    run: Callable[[Scenario, int, Log], Result]
    shape: Shape = dataclasses.field(default_factory=lambda: Shape(""))


def in_turn(lab: Lab, travellers: Sequence[Traveller], count: int, log: Log) -> list[Round]:
    """So many rounds; in every second one the parties' order is the other way round.

    A guest that does not survive ends the series: what remains of it would tell of a guest that
    has been started anew.
    """
    rounds: list[Round] = []
    with Stage(lab, travellers) as stage:
        for number in range(count):
            order = travellers if number % 2 else list(reversed(travellers))
            one: dict[str, Move] = {}
            for traveller in order:
                move = stage.measure(traveller)
                one[traveller.party] = move
                log(_line(move))
                if not move.survived:
                    return [*rounds, one]
            rounds.append(one)
    return rounds


Gather = Callable[[Lab, Shape], Sequence[Traveller]]


def _together(
    scenario: Scenario,
    count: int,
    log: Log,
    gather: Gather,
    around: Callable[[Lab], AbstractContextManager[object]] = nullcontext,
) -> Result:
    """So many rounds of the parties that ``gather`` makes, in as many labs as that takes."""
    rounds: list[Round] = []
    while len(rounds) < count:
        with Lab.up(name=f"bench-{scenario.name}") as lab, around(lab):
            rounds += in_turn(lab, gather(lab, scenario.shape), count - len(rounds), log)
    return Result(scenario.name, scenario.title, rounds)


def _with_libvirt(scenario: Scenario, count: int, log: Log, gather: Gather) -> Result:
    if shutil.which("libvirtd") is None:
        return Result(scenario.name, scenario.title, (), {"left out": "no libvirtd here"})
    return _together(scenario, count, log, gather)


def compare(scenario: Scenario, count: int, log: Log) -> Result:
    """Entourage and the floor script, the same guest."""
    return _together(
        scenario, count, log, lambda lab, shape: [Entourage(lab, shape, 0), ByHand(lab, shape, 1)]
    )


def on_libvirt(scenario: Scenario, count: int, log: Log) -> Result:
    """The same domain of libvirt's, moved by virsh and by Entourage."""

    def gather(lab: Lab, shape: Shape) -> Sequence[Traveller]:
        return [OnLibvirt(lab, shape, 0, "entourage"), Virsh(lab, shape, 1, "virsh")]

    return _with_libvirt(scenario, count, log, gather)


def beside_virsh(scenario: Scenario, count: int, log: Log) -> Result:
    """Entourage and virsh, by the client (direct) and from daemon to daemon (p2p)."""

    def gather(lab: Lab, shape: Shape) -> Sequence[Traveller]:
        return [
            Entourage(lab, shape, 0),
            Virsh(lab, shape, 1, "virsh"),
            Virsh(lab, shape, 2, "virsh p2p", ["--p2p"]),
        ]

    return _with_libvirt(scenario, count, log, gather)


def beside_attended(scenario: Scenario, count: int, log: Log) -> Result:
    """``virsh migrate``, with daemons that attend it: of domains with devices, and without."""
    if shutil.which("libvirtd") is None:
        return Result(scenario.name, scenario.title, (), {"left out": "no libvirtd here"})
    found = _together(scenario, count, log, attended.parties, attended.daemons)
    return dataclasses.replace(found, facts=attended.added(found.rounds))


def beside_xl(scenario: Scenario, count: int, log: Log) -> Result:
    """Entourage and ``xl migrate``, the same guest in turn, on hosts that software emulates."""
    if shutil.which("mmdebstrap") is None:
        return Result(scenario.name, scenario.title, (), {"left out": "no mmdebstrap here"})
    return Result(scenario.name, scenario.title, turns(count, log))


def _line(move: Move) -> str:
    fate = "" if move.survived else "  the guest did not survive"
    return (
        f"{move.party:>10}: blackout {move.blackout * 1e3:6.1f} ms, by pinger"
        f" {move.pinger * 1e3:6.1f} ms, longest freeze before {move.early * 1e3:6.1f} ms,"
        f" in all {move.total:5.2f} s{fate}"
    )


# Devices


def devices(scenario: Scenario, count: int, log: Log) -> Result:
    """N devices of 200 ms each in step 2, by in-process controllers and by external tools.

    Beside them the way of 2006: a script that calls the same tools one after the other.
    """
    rounds: list[Round] = []
    facts: dict[str, Any] = {"seconds each": _SLOW}
    for number in (1, 4, 16, 64):
        for kind in ("in-process", "tools"):
            key = f"{kind} {number}"
            with Lab.up(name="bench-devices") as lab:
                for host in (lab["a"], lab["b"]):
                    script = '#!/bin/sh\n[ "$4" = 2 ] && exec sleep 0.2\nexit 0\n'
                    host.write_files({_TOOL: script})
                    host.path(_TOOL).chmod(0o755)
                shape = Shape(key, extra=_many(number, kind), environment=_plugin())
                facts[key] = _step_two(lab, shape, count, log, key)
        tools = [[_TOOL, "-type", "x", "-step", "2"]] * number
        facts[f"2006 {number}"] = [_one_after_the_other(tools) for _ in range(min(count, 3))]
    return Result(scenario.name, scenario.title, rounds, facts)


def _many(number: int, kind: str) -> str:
    each = 'type = "slow"' if kind == "in-process" else f'type = "other"\ntool = "{_TOOL}"'
    return "\n".join(f'[[external]]\nid = "d{n}"\n{each}' for n in range(number)) + "\n"


def _plugin() -> dict[str, str]:
    return {**OWN, "PYTHONPATH": str(PLUGIN)}


def _step_two(lab: Lab, shape: Shape, count: int, log: Log, key: str) -> list[dict[str, float]]:
    """Seconds of step 2 for all devices together, and of the blackout, move by move."""
    found: list[dict[str, float]] = []
    traveller = Entourage(lab, shape, 0)
    with Stage(lab, [traveller]) as stage:
        for _ in range(count):
            move = stage.measure(traveller)
            told = stage.told
            if told is None or not move.survived:
                break
            began = [e["at"] for e in told.events if _is_slow(e, "device-step-started")]
            ended = [e["at"] for e in told.events if _is_slow(e, "device-step-done")]
            found.append({"step 2": max(ended) - min(began), "blackout": move.blackout})
            log(f"{key:>14}: step 2 {found[-1]['step 2']:.3f} s, blackout {move.blackout:.3f} s")
    return found


def _is_slow(event: Mapping[str, Any], kind: str) -> bool:
    is_it = event["event"] == kind and event["step"] == 2  # noqa: PLR2004 - TRANSFER
    return is_it and str(event["device"]).startswith("external/")


def _one_after_the_other(tools: Sequence[Sequence[str]]) -> float:
    """Seconds that xend's loop of 2006 would take for these."""
    began = time.monotonic()
    for tool in tools:
        subprocess.run(["sh", "-c", "sleep 0.2", *tool], check=True)
    return time.monotonic() - began


# Rollback


def rollback(scenario: Scenario, count: int, log: Log) -> Result:
    """From a failing verdict in step 3 to the guest running at the source; and QEMU's own way."""
    facts: dict[str, Any] = {}
    # So slow that what fails at once fails while the last memory is still under way.
    slow = ("--bandwidth", "50MiB/s")
    cases: dict[str, tuple[int, tuple[str, ...], dict[str, Any]]] = {
        "before landing": (0, slow, {"back": "before", "bandwidth": 50 << 20, "hold": 0.02}),
        "after landing": (1000, (), {"back": "after", "hold": 0.02}),
    }
    for when, (delay, options, plan) in cases.items():
        extra = f'[[external]]\nid = "f"\ntype = "fails"\nsubtype = "{delay}"\n'
        shape = Shape(
            when, tpm=True, extra=extra, options=options, plan=plan, environment=_plugin()
        )
        plain = dataclasses.replace(shape, extra="")
        ours: list[float] = []
        theirs: list[float] = []
        with Lab.up(name="bench-rollback") as lab:
            entourage, floor = Entourage(lab, shape, 0), ByHand(lab, plain, 1)
            with Stage(lab, [entourage, floor]) as stage:
                for _ in range(count):
                    ours.append(_back(stage.fail(entourage)))
                    theirs.append(_back(stage.fail(floor)))
                    log(f"{when}: {ours[-1] * 1e3:.1f} ms, by hand {theirs[-1] * 1e3:.1f} ms")
        facts[when] = {"entourage": ours, "floor": theirs}
    return Result(scenario.name, scenario.title, (), facts)


def _back(told: Told) -> float:
    """Seconds from the verdict to the guest's running."""
    if "verdict" in told.moments:
        return told.resume - told.moments["verdict"]
    failed = [e["at"] for e in told.events if e["event"] == "device-step-done" and e["error"]]
    resumed = [e["at"] for e in told.events if e["event"] == "guest-resumed"]
    return resumed[0] - min(failed)


# Start-up


def startup(scenario: Scenario, count: int, log: Log) -> Result:
    """How long until there is a first word, and how much memory an agent takes."""
    versions: list[float] = []
    replies: list[float] = []
    memories: list[int] = []
    with Lab.up(hosts=("a",), name="bench-startup") as lab:
        for _ in range(count):
            began = time.monotonic()
            lab["a"].run(["entourage", "--version"])
            versions.append(time.monotonic() - began)
            reply, memory = _agent(lab["a"])
            replies.append(reply)
            memories.append(memory)
            log(f"version {versions[-1]:.3f} s, agent {reply:.3f} s, {memory / 1e6:.1f} MB")
    facts = {"version": versions, "agent": replies, "agent memory": memories}
    return Result(scenario.name, scenario.title, (), facts)


def _agent(host: Host) -> tuple[float, int]:
    """Seconds until an agent has answered hello; its resident bytes then."""
    hello = messages.Hello(
        version=__version__, protocol=messages.OLDEST, migration="0" * 32, source="bench",
        hypervisor="qemu",
    )  # fmt: skip
    asked = msgspec.msgpack.encode(Call(1, messages.HELLO.name, hello))
    began = time.monotonic()
    agent = host.popen(["entourage", "agent"], stdin=subprocess.PIPE)
    if agent.stdin is None or agent.stdout is None:
        raise RuntimeError("no pipes")
    os.write(agent.stdin.fileno(), len(asked).to_bytes(4, "big") + asked)
    with os.fdopen(os.dup(agent.stdout.fileno()), "rb") as said:
        while True:  # a heartbeat may come first
            length = int.from_bytes(said.read(4), "big")
            if msgspec.msgpack.decode(said.read(length))[0] == "answer":
                break
    took = time.monotonic() - began
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{agent.pid}/status").read_text())
    agent.communicate()
    return took, int(match[1]) * 1024 if match else 0


# TEST


def test(scenario: Scenario, count: int, log: Log) -> Result:
    """How long TEST takes, on a link of 1 ms each way."""
    return Result(scenario.name, scenario.title, (), test_times(scenario.shape, count, log))


# Saves


def save(scenario: Scenario, count: int, log: Log) -> Result:
    """Saves, restores and checkpoints, beside virsh's."""
    return Result(scenario.name, scenario.title, (), save_times(scenario.shape, count, log))


# Fleets


def evacuate(scenario: Scenario, count: int, log: Log) -> Result:
    """A host is emptied, beside a shell loop."""
    return Result(scenario.name, scenario.title, (), evacuate_times(scenario.shape, count, log))


# What the kernel sees


def syncs(scenario: Scenario, count: int, log: Log) -> Result:
    """Which files are synced between STOP and RESUME, at both ends, as strace sees it.

    By Entourage, and by the target's QEMU, which the agent has started.
    """
    found: list[list[str]] = []
    traced = ["strace", "-f", "-y", "-ttt", "-e", "trace=fsync,fdatasync,sync_file_range", "-o"]
    with Lab.up(name="bench-syncs") as lab:
        traveller = Entourage(lab, scenario.shape, 0)
        traveller.around = [*traced]
        with Stage(lab, [traveller]) as stage:
            for _ in range(count):
                stage.measure(traveller)
                told = stage.told
                if told is None:
                    continue
                lines = [
                    (host.name, line)
                    for host in (lab["a"], lab["b"])
                    for line in host.path(traveller.trace).read_text().splitlines()
                ]
                found.append(list(_within(lines, told)))
                log(f"in the blackout: {', '.join(found[-1]) or 'no sync'}")
    return Result(scenario.name, scenario.title, (), {"synced": found})


def _within(lines: Iterable[tuple[str, str]], told: Told) -> Iterable[str]:
    """``host: file`` of each sync that lies in the blackout."""
    for host, line in lines:
        match = SYNC.match(line)
        if match and told.stop <= float(match["at"]) <= told.resume:
            yield f"{'source' if host == told.source else 'target'}: {match['file']}"


SYNC = re.compile(r"\d+ +(?P<at>[\d.]+) f(?:data)?sync\(\d+<(?P<file>[^>]*)>")


# A long way


def far(scenario: Scenario, count: int, log: Log) -> Result:
    """20 ms each way between the hosts; the same rounds without it tell what a round trip costs."""
    found = _together(
        scenario,
        count,
        log,
        lambda lab, shape: [Entourage(lab, shape, 0), ByHand(lab, shape, 1)],
        lambda lab: Delay.between(lab, "a", "b", 0.02),
    )
    return dataclasses.replace(found, facts={"round trip": 0.04})
