"""What must be true when the command has ended, and when all is over."""

from __future__ import annotations

from typing import Any

from entourage.cli.migrate import EXIT_STATUS
from entourage.errors import EntourageError, InternalError
from entourage.events import Finished, RollbackStarted
from tests.sim.guest import FREE, INCOMING, At
from tests.sim.loop import Process
from tests.sim.world import World

_ENDS = frozenset({"guest-ends", "crash-a", "unheard-a"})
"""Faults that only end the guest, or its machine on the source."""
_CALLS_THERE = frozenset({"fails-b", "disk-b", "late-b", "hangs-b"})
_CALLS = _CALLS_THERE | {"fails-a", "disk-a", "late-a", "hangs-a"}
_LINKED = (_CALLS | _ENDS | {"crash-b"}) - {"hangs-a"}
"""Faults through which the link lives on; an agent that is asked nothing for long ends it."""
_PROMPT = frozenset({"sigint", "silent", "cut", "freeze-agent", "kill-agent", "power-b"})
"""Faults at the target's side."""
_PROMPT_WITHIN = 5.0
"""Seconds in which Ctrl-C gives the prompt back in spite of those."""
_ACTS_WITHIN = 20.0
"""Seconds after all of memory has landed, in which the target is waited for."""


def status_of(process: Process) -> int:
    """The exit status of ``entourage migrate``."""
    if isinstance(process.error, EntourageError):
        return process.error.exit_code
    return EXIT_STATUS[process.result.outcome] if process.error is None else 1


def at_exit(world: World, process: Process) -> None:
    """The command ends: what it says must be true now."""
    if not process.ended:
        world.ending = "killed"
        return
    if process.error is not None and not isinstance(process.error, EntourageError):
        world.violated(f"migrate raised {process.error!r}")
    if behind := _bug(process.error):
        world.violated(f"a bug behind {process.error!r}: {behind!r}")
    status = status_of(process)
    last = world.events[-1] if world.events else None
    if not isinstance(last, Finished):
        if status not in {1, 2, 3}:
            world.violated(f"exit status {status} without a last event")
        world.ending = f"{status}"
    else:
        world.ending = f"{status} {last.outcome}"
        if last.outcome != "failed" and EXIT_STATUS[last.outcome] != status:
            world.violated(f"exit status {status} and the last event {last.outcome}")
        _runs_on(world, last)
    _means(world, status, str(process.error))
    if status == 6 and _ENDS.issuperset(world.faults.came):
        world.violated(f"in doubt of a guest that has only ended: {process.error}")
    if not world.faults.came and status != 0:
        world.violated(f"nothing was wrong, and it ended with {status}: {process.error}")
    # A checkpoint that was as good as done is kept; what the guest does is the same.
    if world.said_back and status in {0, 5} and not world.checkpoint:
        world.violated(f"after Ctrl-C it said that it goes back, and ended with {status}")
    went_back = any(isinstance(event, RollbackStarted) for event in world.events)
    if went_back and status == 4 and isinstance(last, Finished) and not last.problems:
        _undone_there(world)
    if "has not answered since" in str(process.error) and rows(world.a, "source") != [
        ("armed", False)
    ]:
        world.violated(f"the target has not answered, and it is {rows(world.a, 'source')}")
    if "the copy here stays stopped" in str(process.error) and a_runs(world):
        world.violated("it says that the copy here stays stopped, and it runs")
    _told(world, status, str(process.error))
    _left_behind(world, process)


def _told(world: World, status: int, said: str) -> None:
    """What is told is the truth, and all of it."""
    came, a, b = frozenset(world.faults.came), world.a, world.b
    spoilt = world.faults.spoilt("record")
    last = world.events[-1] if world.events else None
    told = " ".join(last.problems) if isinstance(last, Finished) else ""
    if world.went_back and not rows(a, "source") and not spoilt:
        world.violated("it went back, and nothing was begun")
    if "cannot finish going back" in told and rows(a, "source") == [("back", True)] and not spoilt:
        world.violated("it says that the source cannot finish going back, and it has")
    if status == 4 and _ended_before(world):
        world.violated(f"the guest had ended on the source, and that is not told: {said}")
    if "link lost" in said and came <= _LINKED:
        world.violated(f"nothing happened to the link: {said}")
    if world.hurries and came <= _PROMPT and world.loop.now - world.said_back > _PROMPT_WITHIN:
        world.violated(f"Ctrl-C took {world.loop.now - world.said_back:.1f} s")
    waited_for = world.loop.now - world.landed < _ACTS_WITHIN
    if world.checkpoint:
        if status == 0 and (not b.kept or (rows(a, "source") != [("back", True)] and not spoilt)):
            world.violated(f"saved, and it is not kept: {rows(a, 'source')}")
        return
    if status == 0 and came <= _CALLS and waited_for:
        if b.excused_thing:
            world.violated("a device failed on arrival, and nothing is told")
        if (rows(a, "source"), rows(b, "target")) != ([("gone", True)], [("owns", True)]):
            world.violated(f"moved without a word: {rows(a, 'source')}, {rows(b, 'target')}")
    if status == 0 and came <= _LINKED and b.must_tell:
        world.violated("the guest has ended on the target, and nothing is told")


def _ended_before(world: World) -> bool:
    """Whether the guest had ended on the source before it was let run there again."""
    copy = world.a.copy
    if copy is None or copy.alive:
        return False
    return copy.died_held or (not copy.unheard and 0 < copy.died_at < world.went_back)


def findings(world: World, process: Process, *, dead: bool) -> None:
    """What ``recover`` has found is true.

    Args:
        world: All of it.
        process: It.
        dead: No copy of the guest was on its host when it began.
    """
    for one in process.result or ():
        decided = one.role == "source" and one.after in {"back", "gone"}
        if decided and not (one.settled or one.problems):
            world.violated(f"recover leaves {one.after} as it is, and does not say why")
        for finding in one.findings:
            if finding in {"came-back", "runs-here"} and dead:
                world.violated(f"recover says {finding}, and there was no guest")
            if finding in {"came-back-dead", "crashed-here"} and process.host.copy_alive:
                world.violated(f"recover says {finding}, and the guest is there")


def a_runs(world: World) -> bool:
    """Whether the source's copy runs."""
    return world.a.copy is not None and world.a.copy.at is At.RUN


def _undone_there(world: World) -> None:
    """Nothing was said to be left: so nothing is."""
    b = world.b
    if world.faults.spoilt("record"):
        return
    if rows(world.a, "source") != [("back", True)]:
        world.violated(f"rolled back without a word, and the source is {rows(world.a, 'source')}")
    if any(record != "never" or not clean for record, clean in rows(b, "target")):
        world.violated(f"rolled back without a word, and the target is {rows(b, 'target')}")
    if b.copy_alive is not None or b.disk is not None:
        world.violated("rolled back without a word, and something is left on the target")


def before_recovery(world: World) -> None:
    """An agent that was not killed has decided, and undone what it made, without being asked."""
    b = world.b
    agents = [process for process in b.processes if process.name == "agent"]
    if not all(p.ended for p in agents) or {"io-b", "full-b", "readonly-b"} & {*world.faults.came}:
        return
    if any(record == "open" for record, _ in rows(b, "target")):
        world.violated("an agent has ended by itself, and left it undecided")


def _bug(error: BaseException | None) -> BaseException | None:
    while error is not None and not isinstance(error, InternalError):
        error = error.__cause__
    return error


def _runs_on(world: World, last: Finished) -> None:
    if not last.runs_on:
        return
    host = world.host(last.runs_on)
    if host.name == "b" and not world.released_there(world.a):
        world.violated("it says that b runs the guest, which never ran there")
    if host.name == "a" and not _free_or_dead(world, "a"):
        world.violated("it says that a runs the guest, and it does not")


def _free_or_dead(world: World, name: str) -> bool:
    """Whether the guest runs there, or did until it, its machine or its host ended."""
    copy = world.host(name).copy
    return (copy is not None and copy.at in FREE) or world.guest.ended or world.guest.killed


def _means(world: World, status: int, said: str) -> None:
    a, ran_there = world.a.copy, "b" in world.guest.let_run
    if world.checkpoint:
        if ran_there:
            world.violated("a checkpoint was let run")
        if status in {0, 4} and not _free_or_dead(world, "a"):
            world.violated(f"status {status}, and the guest does not run on: {said}")
    elif status in {0, 5}:
        if not world.released_there(world.a):
            world.violated(f"status {status}, and the target never ran it")
        if status == 0 and a is not None and a.alive:
            world.violated("status 0, and the source still has a copy")
    elif status in {1, 2, 3, 4}:
        if ran_there:
            world.violated(f"status {status} after the target ran it: {said}")
        elif not _free_or_dead(world, "a"):
            world.violated(f"status {status}, and the guest does not run on the source: {said}")
    elif status == 7 and not (world.guest.ended or world.guest.killed):
        world.violated(f"status 7, and the guest has not ended: {said}")
    if status in {1, 2, 3}:
        records = [record for record, _ in rows(world.a, "source")]
        if records and not world.faults.spoilt("record"):
            world.violated(f"status {status} ('nothing was begun') with a record {records}: {said}")


def _left_behind(world: World, process: Process) -> None:
    # What `asyncio.run` would cancel, with the domain's lock free already.
    tasks = [task for task in process.tasks if not task.done() and task is not process.main]
    if tasks:
        names = sorted({str(getattr(task.get_coro(), "__qualname__", "?")) for task in tasks})
        world.violated(f"{process} leaves tasks behind: {', '.join(names)}")


def rows(host: Any, role: str) -> list[tuple[str, bool]]:
    """What a host's journal says of its part."""
    found = host.journal.database.execute(
        "SELECT record, clean FROM decisions WHERE role=?", (role,)
    ).fetchall()
    return [(row[0], bool(row[1])) for row in found]


def at_the_end(world: World) -> None:
    """All is over and recovered: one copy, where both journals say, and nothing is left."""
    guest, (a, b) = world.guest, world.hosts
    guest.write()
    source, target = rows(a, "source"), rows(b, "target")
    for host, found in ((a, source), (b, target)):
        for record, clean in found:
            ended = {"back", "gone"} if host is a else {"never", "owns", "fenced"}
            if record not in ended or not clean:
                world.violated(f"{host.name} is not settled: {record}, clean {clean}")
    gone = any(record == "gone" for record, _ in source)
    if gone != any(record == "owns" for record, _ in target):
        world.violated(f"the journals do not agree: {source}, {target}")
    owner, other = (b, a) if gone else (a, b)
    running = guest.running()
    if len(running) > 1:
        world.violated("two copies run at the end")
    if any(copy.host is not owner for copy in running):
        world.violated(f"it runs on {running[0].host.name} and belongs to {owner.name}")
    if not running and not (guest.ended or guest.killed or owner.lost_incoming):
        world.violated(f"no copy runs; {owner.name} has {owner.copy and owner.copy.at}")
    if running and guest.paused and running[0].at is not At.PAUSED:
        world.violated("a guest that its user had paused runs")
    if guest.mirror is not None and a.copy_alive is not None:
        world.violated("a disk's mirror is left")
    _owned(world, owner)
    _tidy(world, other)
    _nothing_held(world)
    _nothing_wrong(world)


def _owned(world: World, owner: Any) -> None:
    guest = world.guest
    if owner.disk != guest.writes:
        world.violated(f"writes are lost: {owner.disk} of {guest.writes} on {owner.name}")
    if owner.tpm is None:
        world.violated(f"the TPM is lost on {owner.name}")
    if not owner.defined:
        world.violated(f"{owner.name} does not know the domain that is its")
    if owner.copy is not None and owner.copy.at in INCOMING:
        world.violated(f"{owner.name} still has a half-built machine")
    if owner.thing != "in" and guest.running() and not owner.excused_thing:
        world.violated(f"the thing is {owner.thing!r} on {owner.name}")


def _tidy(world: World, other: Any) -> None:
    if other.copy is not None and other.copy.alive:
        world.violated(f"a copy is left on {other.name}: {other.copy.at}")
    if other.disk is not None:
        world.violated(f"a disk is left on {other.name}")
    if other is world.a and other.tpm is not None:
        world.violated(f"the TPM is left on {other.name}")


def _nothing_held(world: World) -> None:
    if world.locks.locked:
        world.violated(f"locks are held: {list(world.locks.locked)}")
    for host in world.hosts:
        if host.deadmen:
            world.violated(f"a deadman is left on {host.name}")
        made = host.journal.database.execute(
            "SELECT role, kind FROM ledger WHERE state='made'"
        ).fetchall()
        if made:
            world.violated(f"the ledger of {host.name} has {[tuple(row) for row in made]}")


def _nothing_wrong(world: World) -> None:
    for process in world.loop.processes:
        if process.complaints:
            world.violated(f"{process} complains: {process.complaints[0]}")
        if process.name != "source" and not isinstance(process.error, EntourageError | None):
            world.violated(f"{process} raised {process.error!r}")
        for task in process.tasks:
            if process.alive and task.done() and task._log_traceback:  # type: ignore[attr-defined]
                error = task.exception()
                world.violated(f"{process}: nobody asked for the error {error!r}")
    internal = [line for line in world.log if "internal error" in line]
    if internal:
        world.violated(f"logged: {internal[0]}")
