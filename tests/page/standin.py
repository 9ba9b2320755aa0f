"""Stands in for ssh, and for Entourage on the hosts behind it: a fleet in a directory.

``ssh … -- HOST 'entourage COMMAND …'`` is answered from HOST's file. A move takes as long as
``pace`` says, tells of its copies and its blackout as `entourage migrate --json` does, and goes on
where whoever has begun it dies. It holds the domain's lock, as a real one does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from entourage import events
from entourage.steps import Step

ROOT = Path(os.environ.get("STANDIN_FLEET", "/nowhere"))
STEPS = 20


def main() -> int:
    host, line = sys.argv[sys.argv.index("--") + 1 :]
    command, *words = shlex.split(line)[1:]
    return COMMANDS[command](host, words)


@contextlib.contextmanager
def fleet(root: Path = ROOT) -> Generator[dict[str, Any]]:
    """All hosts, alone."""
    with (root / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = root / "fleet.json"
        found = json.loads(path.read_text())
        yield found
        new = root / "fleet.json.new"
        new.write_text(json.dumps(found))
        new.rename(path)


def begin(root: Path, hosts: Mapping[str, Sequence[str]], *, pace: float, odd: str = "") -> None:
    """Make a fleet: hosts with the names of their domains.

    Args:
        root: Where.
        hosts: Each with what runs there.
        pace: Seconds that a move takes.
        odd: A domain that every target refuses.
    """
    made: dict[str, Any] = {
        name: {
            "cordons": [],
            "moving": {},
            "domains": [
                {"name": each, "uuid": uuid(each), "state": "running", "memory": 1 << 30}
                for each in domains
            ],
        }
        for name, domains in hosts.items()
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "fleet.json").write_text(json.dumps({"hosts": made, "pace": pace, "odd": odd}))


def set_pace(root: Path, pace: float) -> None:
    """Have moves that begin from now on take so many seconds."""
    with fleet(root) as found:
        found["pace"] = pace


def uuid(name: str) -> str:
    """A domain's, which its name tells."""
    return f"00000000-0000-4000-8000-{sum(name.encode()):04d}{name.encode().hex()[:8]:0<8}"


def room(host: str, _: list[str]) -> int:
    with fleet() as found:
        here = found["hosts"][host]
        used = sum(one["memory"] for one in here["domains"])
        said: dict[str, Any] = {
            "host": host, "memory": 16 << 30, "free": (16 << 30) - used, "arrivals": None,
            "devices": {}, "cordons": here["cordons"], "domains": here["domains"],
            "arriving": [
                name for one in found["hosts"].values() for name, there in one["moving"].items()
                if there["target"] == host
            ],
        }  # fmt: skip
    put(said)
    return 0


def status(host: str, _: list[str]) -> int:
    with fleet() as found:
        moving = found["hosts"][host]["moving"]
        put([
            {"domain": name, "uuid": uuid(name), "role": "source", "record": "ARMED",
             "settled": False, "peer": each["target"], "doing": "memory"}
            for name, each in moving.items()
        ])  # fmt: skip
    return 0


def check(host: str, words: list[str]) -> int:
    name, target = words[-2:]
    with fleet() as found:
        odd = found["odd"]
    if name == odd:
        tell(events.DeviceRefused(
            at=0.0, device="usb/usb0", host=target, remedy="plug one in there",
            reason="there is no 1050:0407 <script>alert(1)</script>",
        ))  # fmt: skip
        return 3
    del host
    return 0


def cordon(host: str, words: list[str]) -> int:
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    with fleet() as found:
        here = found["hosts"][host]
        here["cordons"] = [one for one in here["cordons"] if one["name"] != given["name"]] + [given]
    return 0


def uncordon(host: str, words: list[str]) -> int:
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    with fleet() as found:
        here = found["hosts"][host]
        here["cordons"] = [one for one in here["cordons"] if one["name"] != given["name"]]
    return 0


def abort(host: str, words: list[str]) -> int:
    with fleet() as found:
        moving = found["hosts"][host]["moving"].get(words[-1])
    if moving is None:
        return 2
    os.kill(moving["pid"], signal.SIGUSR1)
    return 0


def recover(_: str, __: list[str]) -> int:
    return 0


def migrate(host: str, words: list[str]) -> int:
    """Begin it in a session of its own, and tell what it says."""
    command = [sys.executable, __file__, "--", host, shlex.join(["entourage", "move", *words])]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as moving:
        assert moving.stdout is not None
        for line in moving.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
    return moving.returncode


def move(host: str, words: list[str]) -> int:
    name, target = words[-2:]
    back: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: back.append(number))
    with fleet() as found:
        pace = found["pace"]
        found["hosts"][host]["moving"][name] = {"target": target, "pid": os.getpid()}
    try:
        return _move(host, target, name, pace, back)
    finally:
        with fleet() as found:
            del found["hosts"][host]["moving"][name]


def _move(host: str, target: str, name: str, pace: float, back: list[int]) -> int:
    began = time.monotonic()
    tell(events.MigrationStarted(
        at=0.0, migration="m", domain=name, uuid=uuid(name), source=host, target=target,
        hypervisor="qemu", devices=("block/disk0", "net/net0", "tpm/tpm0"), time="",
    ))  # fmt: skip
    for step in range(STEPS + 1):
        at = time.monotonic() - began
        tell(events.CopyProgress(at=at, what="memory", done=step << 20, total=STEPS << 20))
        if back:
            tell(events.Finished(
                at=at, outcome="rolled-back", seconds=at, runs_on=host,
                message="taken back as it was asked",
            ))  # fmt: skip
            return 4
        time.sleep(pace / STEPS)
    at = time.monotonic() - began
    tell(events.GuestStopped(at=at))
    for start, end, device in ((0.001, 0.012, "block/disk0"), (0.001, 0.006, "net/net0"),
                               (0.004, 0.0215, "tpm/tpm0")):  # fmt: skip
        tell(events.DeviceStepDone(
            at=at + end, device=device, step=Step.TRANSFER, seconds=end - start
        ))  # fmt: skip
    tell(events.SpanDone(at=at + 0.022, name="last memory", host=host, start=at + 0.003))
    tell(events.MemoryLanded(at=at + 0.0225))
    tell(events.GoSent(at=at + 0.023))
    tell(events.SpanDone(at=at + 0.0262, name="journal flush", host=target, start=at + 0.0232))
    tell(events.GuestResumed(at=at + 0.027, host=target, blackout=0.027))
    with fleet() as found:
        here, there = found["hosts"][host], found["hosts"][target]
        (one,) = [each for each in here["domains"] if each["name"] == name]
        here["domains"].remove(one)
        there["domains"].append(one)
    tell(events.Finished(at=at + 0.03, outcome="moved", seconds=at, runs_on=target, blackout=0.027))
    return 0


def tell(event: events.AnyEvent) -> None:
    """As `entourage migrate --json` does."""
    put(msgspec.to_builtins(event))


def put(what: Any) -> None:
    """One line of JSON; nobody may be there any more to read it."""
    with contextlib.suppress(OSError):
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


COMMANDS: dict[str, Callable[[str, list[str]], int]] = {
    "room": room, "status": status, "check": check, "cordon": cordon, "uncordon": uncordon,
    "abort": abort, "recover": recover, "migrate": migrate, "move": move,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
