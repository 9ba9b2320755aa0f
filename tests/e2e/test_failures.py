"""Every device fails in every step, on either host; and the guest never notices."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.guest import disk_sequences
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.ending import Ending, ends
from tests.e2e.failing import KINDS, STEPS, Fault, fail, fails_in_device
from tests.e2e.faults.matrix import POINTS
from tests.e2e.silent import Silence, interrupted, left_alone
from tests.e2e.world import EMULATED, GADGET, KEPT, World

DEVICES = {
    "block": "block/disk0",
    "net": "net/net0",
    "tpm": "tpm/tpm0",
    "usb": "usb/tablet",
    "pci": "pci/rng",
    "external": "external/gadget0",
}
CASES = [
    *((cls, half, side) for half in STEPS for cls in DEVICES for side in ("source", "target")),
    ("block", "connect", "source"),
    ("block", "connect", "target"),
]


# Those that `make test` tries: two of each step, and each class but usb's and pci's, whose emulated
# devices go the way of a NIC's.
CORE = {
    *(("block", "prepare", "source"), ("net", "prepare", "target")),
    *(("net", "transfer", "source"), ("tpm", "transfer", "target")),
    *(("tpm", "sync", "source"), ("external", "sync", "target")),
    ("block", "connect", "target"),
}
FAULTS = [
    pytest.param(
        fault := Fault(*case, KINDS[number % len(KINDS)]),
        id=str(fault),
        marks=() if case in CORE else pytest.mark.matrix,
    )
    for number, case in enumerate(CASES)
]
TEST, ARMED, OPENED = POINTS["test"], POINTS["armed"], POINTS["opened"]
PREPARE = "source.step-started.1"
PRE_COPY = "source.policy-changed"  # its first stage: memory is on its way
MIRRORED = "source.step-done.1"  # the disks are the same: each write goes to both
BLACKOUT = "source.step-started.2"
LANDED = "source.memory-landed"
LET_RUN = "target.before.let-run"
SLOWLY = ("--bandwidth", "4MiB/s")
ENDINGS = [
    Ending("poweroff", PRE_COPY),
    *(
        pytest.param(case, marks=pytest.mark.matrix)
        for case in (
            *(Ending("poweroff", point) for point in (ARMED, OPENED, PREPARE, MIRRORED)),
            *(Ending("crash", point) for point in (ARMED, PREPARE, MIRRORED, PRE_COPY, BLACKOUT)),
        )
    ),
]
# Every point before the stop; `make test` tries one.
SILENCES = [
    Silence(PRE_COPY),
    *(
        pytest.param(case, marks=pytest.mark.matrix)
        for case in (
            Silence(TEST, undoes=False),
            Silence(TEST, "data", undoes=False),
            Silence(ARMED),
            Silence(OPENED),
            Silence(PREPARE),
            Silence(PREPARE, "data"),
            Silence("source.device-step-started.1.block/disk0"),
            Silence(MIRRORED),
            Silence(MIRRORED, "data"),
            Silence(PRE_COPY, "data"),
        )
    ),
]


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    with Observer.start(lab) as seen:
        world = World.begin(lab, seen, extra=EMULATED + GADGET)
        yield world
        world.end()


@pytest.mark.parametrize("side", ["source", pytest.param("target", marks=pytest.mark.matrix)])
def test_fault_of_all_at_test(world: World, side: str) -> None:
    """Whatever cannot answer at TEST is a refusal, and all of them come at once."""
    half = "test" if side == "source" else "test_there"
    options, env = fail(f"every {half} error", side)
    run = world.migrate(*options, env=env)
    world.stayed(run, status=3)
    assert set(run.refusals) == set(DEVICES.values())
    assert all("this fault is injected" in reason for reason in run.refusals.values()), str(run)
    assert run.recovered == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_a_device(world: World, fault: Fault) -> None:
    fails_in_device(world, DEVICES, fault)


def test_fault_at_rest_on_the_target(world: World) -> None:
    """A TPM that cannot be synced before GO is a reason to go back."""
    options, env = fail("tpm persist error", "target")
    run = world.migrate(*options, env=env)
    world.stayed(run)
    assert "this fault is injected" in run.finished["message"], str(run)


def test_fault_in_a_recovery(world: World) -> None:
    """It is reported, and stops no other; the guest runs."""
    run = world.migrate("--tool", "sh -c 'exit 1'", env={"FAULT": "net recover error"})
    assert run.status == 4
    assert any("this fault is injected" in one for one in run.finished["problems"]), str(run)
    errors = {one["device"]: one["error"] for one in run.of("device-recovered")}
    assert set(errors) == set(DEVICES.values())
    assert [label for label, error in errors.items() if error and "injected" in error] == [
        "net/net0"
    ]
    world.is_as_before()


def test_the_memory_stream_is_cut(world: World) -> None:
    """Reset during pre-copy, while ssh lives."""
    with world.under(PRE_COPY, options=SLOWLY) as under:
        under.wait(PRE_COPY)
        world.lab.cut("a", "b", how="reset", traffic="data")
        run = under.end()
        world.lab.mend("a", "b")
    world.stayed(run)
    assert not run.of("guest-stopped"), str(run)


def test_the_link_is_cut(world: World) -> None:
    """Only ssh: the agent undoes by itself what it made."""
    with world.under(PRE_COPY, options=SLOWLY) as under:
        under.wait(PRE_COPY)
        world.lab.cut("a", "b", how="reset", traffic="ssh")
        run = under.end()
        world.lab.mend("a", "b")
    assert run.status == 4, str(run)
    assert run.finished["runs_on"] == world.here.name
    world.is_as_before()


@pytest.mark.parametrize(
    "point",
    [PRE_COPY, *(pytest.param(other, marks=pytest.mark.matrix) for other in (BLACKOUT, LANDED))],
)
def test_the_targets_qemu_is_killed(world: World, point: str) -> None:
    noticed = "target.before.flush-never"
    options = SLOWLY if point == PRE_COPY else ()
    with world.under(point, options=options, on_target=[noticed]) as under:
        under.wait(point)
        world.kill(world.there, "qemu-system-x86_64")
        under.wait(noticed)
        run = under.end()
    world.stayed(run)
    assert run.finished["message"], str(run)


@pytest.mark.parametrize("point", [PRE_COPY, pytest.param(BLACKOUT, marks=pytest.mark.matrix)])
def test_the_targets_swtpm_is_killed(world: World, point: str) -> None:
    # QEMU notices when it hands the TPM's state over: at the very end.
    options = ("--bandwidth", "100MiB/s") if point == PRE_COPY else ()
    with world.under(point, options=options) as under:
        under.wait(point)
        world.kill(world.there, "swtpm")
        run = under.end()
    world.stayed(run)


@pytest.mark.parametrize("case", ENDINGS, ids=str)
def test_the_guest_ends_while_it_moves(world: World, case: Ending) -> None:
    ends(world, case, options=SLOWLY if case.point != BLACKOUT else ())


def test_the_target_cannot_start_the_machine(world: World) -> None:
    """What was there at TEST is gone when the machine is built."""
    qemu = "/usr/bin/qemu-system-x86_64"
    with world.under("source.step-started.1") as under:
        under.wait("source.step-started.1")
        world.there.run(["mv", qemu, f"{qemu}.away"])
        try:
            run = under.end()
        finally:
            world.there.run(["mv", f"{qemu}.away", qemu])
    world.stayed(run)
    assert "qemu" in run.finished["message"].lower(), str(run)


def test_no_port_is_free_there(world: World) -> None:
    listener = world.there.socket()
    with listener:
        listener.bind(("0.0.0.0", 50999))  # noqa: S104 - all that QEMU could want
        listener.listen()
        run = world.migrate("--ports", "50999-50999")
    world.stayed(run, status=3)
    assert "no port from 50999 to 50999 is free" in run.refusals["domain"]


@pytest.mark.matrix
def test_the_copy_dies_as_it_is_released(world: World) -> None:
    """GO stands on the target's disk, so the domain is the target's: off, and whole."""
    with world.under(on_target=[LET_RUN]) as under:
        under.wait(LET_RUN)
        world.kill(world.there, "qemu-system-x86_64")
        run = under.end()
    assert run.status == 5, str(run)
    assert run.finished["runs_on"] == world.there.name, str(run)
    assert any("entourage start" in problem for problem in run.finished["problems"]), str(run)
    acked = world.seen.acked()
    world.here, world.there = world.there, world.here
    records = disk_sequences(world.here.path(world.disks[0].path))
    assert records.last >= acked["vda"]
    assert records.missing == ()
    assert not world.there.wait_clean(world.clean[world.there.name], ignore=KEPT)
    world.start_again()


def test_the_blackouts_budget_runs_out(world: World) -> None:
    """A tool that never ends, in step 2."""
    mark = world.seen.mark()
    tool = world.tool('[ "$step$recover" != 2no ] || exec sleep 60')
    run = world.migrate("--tool", str(tool), "--max-blackout", "1s")
    world.stayed(run)
    assert world.seen.longest_gap(mark).seconds < 5
    [resumed] = run.of("guest-resumed")
    assert 1 <= resumed["blackout"] < 3


@pytest.mark.parametrize(
    ("signal", "point"),
    [
        ("INT", "source.device-step-started.1.block/disk0"),
        pytest.param("TERM", PRE_COPY, marks=pytest.mark.matrix),
        pytest.param("HUP", "source.guest-stopped", marks=pytest.mark.matrix),
        pytest.param("INT", "source.step-done.3", marks=pytest.mark.matrix),
        ("TERM", LANDED),
    ],
)
def test_interrupted_before_go(world: World, signal: str, point: str) -> None:
    """It rolls back; and the second Ctrl-C does not tear that."""
    with world.under(point, "source.rollback-started") as under:
        under.wait(point)
        under.signal(signal)
        under.pass_on(point)
        under.wait("source.rollback-started")
        under.signal(signal)
        run = under.end()
    world.stayed(run)
    assert not run.of("go-sent")
    assert "given up" in run.finished["message"], str(run)


@pytest.mark.parametrize("case", SILENCES, ids=str)
def test_interrupted_while_the_link_is_silent(world: World, case: Silence) -> None:
    """Nobody waits for a host that says nothing: the guest has not noticed, and the prompt is back.

    What the target made is undone by its agent, once that has found the link silent.
    """
    interrupted(world, case, options=SLOWLY)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "case",
    [
        *(Silence(point) for point in (OPENED, PREPARE, MIRRORED, PRE_COPY)),
        Silence(PREPARE, "data"),
    ],
    ids=str,
)
def test_the_link_falls_silent(world: World, case: Silence) -> None:
    """Nobody says anything: it goes back by itself, and the guest has not noticed."""
    left_alone(world, case, options=SLOWLY)


@pytest.mark.parametrize(
    "signal", ["INT", *(pytest.param(other, marks=pytest.mark.matrix) for other in ("TERM", "HUP"))]
)
def test_interrupted_after_go(world: World, signal: str) -> None:
    """It completes; and the second Ctrl-C does not tear that."""
    with world.under("source.go-sent", "source.before.flush-gone") as under:
        for point in ("source.go-sent", "source.before.flush-gone"):
            under.wait(point)
            under.signal(signal)
            under.pass_on(point)
        run = under.end()
    world.moved(run)


def test_fault_and_then_it_moves(world: World) -> None:
    """After all of that, nothing on either host is in the way."""
    world.moved(world.migrate())
