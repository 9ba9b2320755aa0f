"""One simulation: a migration, what goes wrong with it, recovery, and the checks."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

from entourage.errors import EntourageError
from entourage.journal.journal import Journal
from tests.sim import checks
from tests.sim.faults import Faults
from tests.sim.loop import Endless, Process
from tests.sim.plans import Fault, planned
from tests.sim.seams import Here
from tests.sim.world import World

_MIGRATES_FOR, _ENDS_WITHIN = 300.0, 400.0
_ROUNDS = 5
_SOON = 0.3
"""How often a user who is in doubt types ``recover`` at once."""
_FENCES = 0.2
"""How often he has the target off for good, and says so."""


@dataclasses.dataclass
class Result:
    """What one simulation found."""

    seed: int
    faults: list[Fault]
    came: list[str]
    violations: list[str]
    ending: str
    steps: int
    points: int
    lines: list[str]


class Places:
    """Directories for both hosts, in memory; the journals in them only stand for the simulated."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")  # noqa: S108 - a file system in memory
        self.root = tempfile.mkdtemp(
            prefix="entourage-sim-", dir=memory if memory.is_dir() else None
        )
        atexit.register(shutil.rmtree, self.root, ignore_errors=True)
        self.by_host: dict[str, str] = {}
        self.images: dict[str, bytes] = {}
        for name in ("a", "b"):
            place = Path(self.root, name)
            for folder in ("state", "run"):
                (place / folder).mkdir(parents=True, mode=0o700)
            path = place / "state" / "journal.db"
            Journal.open(path).close()
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA journal_mode=DELETE")
                self.images[name] = database.serialize()
            self.by_host[name] = str(place)


_places: list[Places] = []


def places() -> Places:
    """Those of this process; made once, before anything is simulated."""
    if not _places:
        _places.append(Places())
    return _places[0]


def simulate(
    seed: int, *, trace: bool = False, faults: Callable[[int], list[Fault]] = planned
) -> Result:
    """Run a seed's simulation."""
    at = places()
    world = World(seed, at.by_host, at.images)
    world.tracing = trace
    wanted = faults(seed)
    world.faults = Faults(world, wanted)
    try:
        _story(world)
    except Endless:
        world.violated("it never ends")
    finally:
        world.loop.throw_away()
        for host in world.hosts:
            host.journal.close()
        Here.world = None
    return Result(
        seed=seed,
        faults=wanted,
        came=world.faults.came,
        violations=world.violations,
        ending=world.ending,
        steps=world.loop.steps,
        points=world.points,
        lines=world.lines,
    )


def _story(world: World) -> None:
    source = world.a.start("source", world.migrate)
    source.on_end.append(lambda: checks.at_exit(world, source))
    source.on_end.append(lambda: _soon(world))
    world.loop.drive(lambda: _quiet(world), _MIGRATES_FOR)
    world.faults.end()
    if not world.loop.drive(lambda: _quiet(world), _ENDS_WITHIN):
        left = [repr(p) for host in world.hosts for p in host.living()]
        world.violated(f"a process does not end: {', '.join(left)}")
        return
    checks.before_recovery(world)
    if checks.rows(world.a, "source") == [("armed", False)] and world.rng.random() < _FENCES:
        _fence(world)
    _recover(world)
    checks.at_the_end(world)


def _soon(world: World) -> None:
    """Some users recover at once, and wait for nothing that goes on at the target."""

    def recover() -> None:
        if world.a.on and not world.faults.over:
            world.a.recover()

    in_doubt = any(record == "armed" for record, _ in checks.rows(world.a, "source"))
    if in_doubt and world.rng.random() < _SOON:
        world.loop.after(world.rng.random() * 10, recover)


def _quiet(world: World) -> bool:
    return not (world.loop.living or world.a.deadmen or world.b.deadmen)


def _fence(world: World) -> None:
    """The target is off, and what ran there is gone: the user vouches for that, and recovers."""
    world.b.power_cut()
    world.vouch()
    for _ in range(_ROUNDS):
        world.faults.once_more()
        process = world.a.recover(fenced=True)
        if not world.loop.drive(lambda: _quiet(world), _ENDS_WITHIN):
            world.violated("recover with a fenced target does not end")
            return
        world.faults.end()
        if process.ended and checks.rows(world.a, "source")[0][0] == "back":
            break
    else:
        world.violated(f"the guest is not given back: {checks.rows(world.a, 'source')}")
    world.b.vouched_off = False
    world.b.power_on()


def _recover(world: World) -> None:
    """Run ``recover`` on both hosts until nothing is left to be done."""
    first = list(world.hosts)
    if world.rng.random() < 0.5:
        first.reverse()
    said: list[str] = []
    for turn in range(_ROUNDS):
        said = []
        for host in first:
            if turn == 0:
                world.faults.once_more()
            dead = host.copy_alive is None
            process = host.recover()
            if not world.loop.drive(lambda: _quiet(world), _ENDS_WITHIN):
                world.violated(f"recover on {host.name} does not end")
                return
            said += _left(world, process)
            checks.findings(world, process, dead=dead)
            world.faults.end()
        if not said:
            _nothing_to_do(world)
            return
    world.violated(f"recover does not settle it: {'; '.join(said)}")


def _nothing_to_do(world: World) -> None:
    """All is settled: so the next ``recover`` has nothing to do."""
    for host in world.hosts:
        process = host.recover()
        world.loop.drive(lambda: _quiet(world), _ENDS_WITHIN)
        if process.result:
            world.violated(f"recover on {host.name} still has something to do: {process.result}")


def _left(world: World, process: Process) -> list[str]:
    if not process.ended:
        return [f"{process.host.name}: recover was killed"]
    if process.error is not None:
        if not isinstance(process.error, EntourageError):
            world.violated(f"recover raised {process.error!r}")
        return [f"{process.host.name}: {process.error}"]
    return [
        f"{process.host.name}: {one.role} {one.after} {list(one.findings)} {list(one.problems)}"
        for one in process.result or ()
        if not one.settled or one.problems
    ]
