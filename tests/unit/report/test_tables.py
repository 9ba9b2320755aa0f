from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console, RenderableType

from entourage.events import (
    AnyEvent,
    CopyProgress,
    DeviceRefused,
    Finished,
    Kind,
    MemoryLanded,
    MigrationPlanned,
    Outcome,
    PlannedDevice,
    RollbackStarted,
    Warned,
)
from entourage.report.ending import ending
from entourage.report.frame import Screen, frame
from entourage.report.lines import Teller
from entourage.report.plan import plan_table
from entourage.report.schema import events_markdown
from entourage.report.table import recovery_table, steps_table
from entourage.report.text import ASCII, bar, clean, escaped, joined
from entourage.report.text import UNICODE as SIGNS
from entourage.report.view import View
from entourage.steps import Refusal, Step
from tests.unit.report.test_samples import (
    refused,
    rolled_back,
    started,
    step,
    success,
    until_stop,
    warned,
)

DOCS = Path(__file__).parents[3] / "docs"
NASTY = "\x1b[2J[bold]web\u202e1\r"


def text_of(*parts: RenderableType | None, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    for part in parts:
        assert part is not None
        console.print(part)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def test_the_steps() -> None:
    assert (
        text_of(steps_table(success()))
        == """\
device         TEST   PREPARE   TRANSFER     SYNC             done
──────────────────────────────────────────────────────────────────
block/disk0   10 ms     8.4 s       8 ms   0.4 ms     all of 2 GiB
net/net0      20 ms     12 ms     0.2 ms   0.1 ms
tpm/tpm0      40 ms     30 ms       1 ms   0.1 ms
memory                                              all of 512 MiB
all           40 ms     8.4 s               16 ms"""
    )


def test_a_disk_that_went_half_way_is_told_as_that() -> None:
    """Its bytes are no bytes that were sent: a hole is done at once."""
    copy = CopyProgress(at=2, what="block/disk0", done=1 << 29, total=1 << 30)
    done = CopyProgress(at=2, what="block/disk0", done=1 << 30, total=1 << 30)
    begun = [started(), *step("block/disk0", Step.PREPARE, 0.0, 2.0)]
    last = text_of(steps_table([*begun, copy]))
    assert "50 % of 1 GiB" in last
    assert "all of 1 GiB" in text_of(steps_table([*begun, copy, done]))
    assert "sent" not in last


def test_all_of_a_disk_is_told_only_once_that_is_known() -> None:
    """Under libvirt TRANSFER begins while its copies still go on."""
    begun = [
        started(),
        *step("block/disk0", Step.PREPARE, 0.0, 2.0),
        CopyProgress(at=2, what="block/disk0", done=1 << 29, total=1 << 30),
        *step("block/disk0", Step.TRANSFER, 2.0, 0.1),
    ]
    back = RollbackStarted(at=3.0, reason="no room", device="block/disk0", host="b")
    assert "50 % of 1 GiB" in text_of(steps_table([*begun, back]))
    assert "all of 1 GiB" in text_of(steps_table([*begun, MemoryLanded(at=3.0), back]))


def test_a_step_that_failed_and_one_that_was_given_up_for_it() -> None:
    lines = text_of(steps_table(rolled_back())).splitlines()
    assert "✗ 30 ms" in next(line for line in lines if line.startswith("tpm"))
    assert "(22 ms)" in next(line for line in lines if line.startswith("net"))


def test_no_table_of_nothing() -> None:
    assert steps_table([started()]) is None
    assert recovery_table(success()) is None


def test_all_refusals_at_once() -> None:
    refusals = [
        Refusal("net/net0", "b", "there is no bridge br0", "--net br0=br1"),
        Refusal("pci/gpu0", "a", "0000:3b:00.0 is the host's own device " * 2, "a tool for pci"),
    ]
    text = text_of(plan_table(None, refusals, source="a", target="b"))
    assert "net/net0   ✗ on b: there is no bridge br0\n             → --net br0=br1\n" in text
    assert max(map(len, text.splitlines())) <= 80


def plan(
    *devices: PlannedDevice,
    ports: tuple[int, ...] = (49152, 49215),
    encrypted: bool | None = True,
) -> Any:
    memory = PlannedDevice(device="memory", action="copied", size=2 << 30)
    return MigrationPlanned(
        at=0.1, devices=(*devices, memory), address="10.0.0.2", ports=ports, encrypted=encrypted
    )


def definition(**more: str) -> PlannedDevice:
    return PlannedDevice(device="definition", **more)  # type: ignore[arg-type]


def test_what_will_be_done_with_each_device() -> None:
    disk = "/var/lib/libvirt/images/web1.qcow2"
    planned = plan(
        PlannedDevice(
            device="block/disk0", action="copied", here=disk, there=disk, size=3 << 30, erased=disk
        ),
        PlannedDevice(
            device="block/disk1", action="copied", here="/a", there="/dev/vg/web1", erased="/a"
        ),
        PlannedDevice(device="block/cd", action="in-place", here="/iso/a.iso", there="/iso/a.iso"),
        PlannedDevice(device="net/net0", action="remade", here="br0", there="br1"),
        PlannedDevice(device="tpm/tpm0", action="with-memory", erased="its state"),
        PlannedDevice(device="usb/usb0", action="replugged", here="1050:0407", there="1-1"),
        PlannedDevice(device="external/x", action="by-tool", tool="/opt/x"),
        PlannedDevice(device="pci/rng", action="with-memory", tool="/opt/y"),
        definition(action="handed-on", here="/x/domain.json", erased="/x/domain.json"),
    )
    refused = [Refusal("net/net1", "b", "there is no bridge br9", "--net br9=br1")]
    table = plan_table(planned, refused, source="a", target="b")
    assert (
        text_of(table)
        == """device        what will be done
────────────────────────────────────────────────────────────────────────────────
block/disk0   /var/lib/libvirt/images/web1.qcow2 is copied, about 3 GiB;
              afterwards it is deleted on a
block/disk1   /a is copied to /dev/vg/web1; afterwards /a is deleted on a
block/cd      /iso/a.iso stays: both hosts see it, or have the same
net/net0      attached to br1 there, br0 here
tpm/tpm0      its state goes with the memory; afterwards it is deleted on a
usb/usb0      1050:0407 is unplugged here, 1-1 is plugged in there
external/x    moved by /opt/x
pci/rng       its state goes with the memory; /opt/y is called beside it
definition    /x/domain.json goes to b; afterwards it is deleted on a
memory        copied, 2 GiB, to 10.0.0.2, TCP ports 49152 to 49215
net/net1      ✗ on b: there is no bridge br9
                → --net br9=br1"""
    )
    for width in (60, 40):
        lines = text_of(table, width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert "--net br9=br1" in "".join(lines)


def test_a_definition_that_the_user_has() -> None:
    left = definition(action="left-here", here="the configuration file")
    text = text_of(plan_table(plan(left), source="a", target="b"))
    assert "stays on a: copy it to b" in text
    assert "deleted" not in text


@pytest.mark.parametrize("ports", [(), (49152, 49215)])
def test_whether_it_is_encrypted(ports: tuple[int, ...]) -> None:
    def said(encrypted: bool | None) -> str:  # noqa: FBT001 - a case
        made = plan(ports=ports, encrypted=encrypted)
        return " ".join(text_of(plan_table(made, source="a", target="b")).split())

    assert "ncrypted" not in said(True).lower()  # noqa: FBT003 - a case
    assert said(False).endswith("UNENCRYPTED")  # noqa: FBT003 - a case
    assert said(None).endswith("encrypted if the target has certificates")


def test_a_way_that_is_closed_is_no_plan_for_the_memory() -> None:
    refused = [Refusal("memory", "b", "no connection to 10.0.0.2:49152", "open it")]
    text = text_of(plan_table(plan(), refused, source="a", target="b"))
    assert "no connection to 10.0.0.2:49152" in text
    assert "copied" not in text
    text = text_of(plan_table(plan(ports=()), source="a", target="b"))
    assert text.endswith("copied, 2 GiB")


def test_the_plan_is_shown_with_what_is_against_it_or_alone() -> None:
    done = Finished(at=1, outcome="can-move", seconds=1, runs_on="a")
    against = DeviceRefused(at=0.2, device="net/net0", host="b", reason="none", remedy="mend")
    no = Finished(at=1, outcome="refused", seconds=1, runs_on="a")
    moved = Finished(at=1, outcome="moved", seconds=1, runs_on="b", blackout=0.1)
    asked = [started(), plan()]
    assert "copied, 2 GiB" in text_of(*ending([*asked, done]))
    assert "copied, 2 GiB" in text_of(*ending([*asked, done], quiet=True))
    text = text_of(*ending([*asked, against, no]))
    assert "copied, 2 GiB" in text
    assert "mend" in text
    assert "copied, 2 GiB" not in text_of(*ending([*asked, moved]))


def test_the_recovery() -> None:
    assert (
        text_of(recovery_table(rolled_back()))
        == """\
device        last good step    time   result
──────────────────────────────────────────────────────
block/disk0   TRANSFER         50 ms   ✓ put back
net/net0      TRANSFER         10 ms   ✓ put back
tpm/tpm0      PREPARE          20 ms   ✗ exit status 1"""
    )


@pytest.mark.parametrize(
    ("kind", "outcome", "says"),
    [
        ("save", "moved", "web1 is saved in /srv/x, in 2 s"),
        ("save", "can-move", "web1 can be saved in /srv/x; nothing was touched"),
        ("save", "refused", "web1 cannot be saved in /srv/x; nothing was touched"),
        ("save", "failed", "web1 was not saved in /srv/x"),
        ("save", "rolled-back", "web1 runs on a, as before"),
        ("save", "clean-up-incomplete", "web1 is saved in /srv/x, in 2 s; not everything"),
        ("restore", "moved", "web1 is restored from /srv/x, in 2 s"),
        ("restore", "rolled-back", "web1 was not restored; /srv/x is as it was"),
        ("save", "in-doubt", "web1 is saved in /srv/x; that is not recorded: type `entourage"),
        ("restore", "in-doubt", "web1 runs on this host; that is not recorded: type `entourage"),
    ],
)
def test_the_end_of_a_save(kind: Kind, outcome: Outcome, says: str) -> None:
    source, target = ("a", "/srv/x") if kind == "save" else ("/srv/x", "this host")
    began = msgspec.structs.replace(started(), kind=kind, source=source, target=target)
    runs_on = {"rolled-back": "a", "in-doubt": target}.get(outcome, "")
    over = Finished(at=2, outcome=outcome, seconds=2, runs_on=runs_on)
    [*_, sentence] = ending([began, over], quiet=True)
    assert says in str(sentence)


def test_what_is_planned_of_a_save() -> None:
    rows = (
        PlannedDevice(device="block/disk0", action="in-place", here="/srv/d", there="/srv/d"),
        PlannedDevice(device="net/net0", action="remade", here="br0", there="br0"),
        PlannedDevice(device="tpm/tpm0", action="with-memory", erased="its state"),
        PlannedDevice(device="memory", action="copied", size=1 << 28),
    )
    made = MigrationPlanned(at=0, devices=rows, address="", ports=(), encrypted=None)

    def text(kind: Kind) -> str:
        return " ".join(text_of(plan_table(made, source="a", target="/s", kind=kind)).split())

    assert "/srv/d stays where it is" in text("save")
    assert "made anew when it is restored" in text("save")
    assert "afterwards it is deleted on a" in text("save")
    assert text("save").endswith("copied, 256 MiB")
    assert "deleted" not in text("restore")
    assert "attached to br0" in text("restore")


def test_the_end_of_each_outcome() -> None:
    def last(*events: AnyEvent) -> str:
        return text_of(*ending(events)).splitlines()[-1]

    assert last(*success()) == "web1 runs on b, moved in 13.1 s; it stood still for 32 ms"
    assert last(*rolled_back()) == "web1 runs on a, as before; it stood still for 34 ms"
    assert last(*refused()) == "web1 cannot move to b; nothing was touched"

    def done(**how: object) -> str:
        told: dict[str, object] = {"at": 1.0, "seconds": 1.0, "runs_on": ""}
        return last(started(), Finished(**(told | how)))  # type: ignore[arg-type]

    assert done(outcome="can-move", runs_on="a") == "web1 can move to b; nothing was touched"
    assert done(outcome="failed") == "web1 was not moved"
    assert "type `entourage recover web1`" in done(outcome="in-doubt")
    unclean = done(outcome="clean-up-incomplete", runs_on="b", problems=("disk0 is left",))
    assert unclean == "web1 runs on b, moved in 1 s; a is not cleaned up"


def test_nothing_is_said_of_what_was_never_begun() -> None:
    assert ending([Finished(at=0, outcome="failed", seconds=0, runs_on="", message="x")]) == []


def test_problems_are_told() -> None:
    assert "Left to be done:\n  tpm/tpm0: exit status 1" in text_of(*ending(rolled_back()))


def test_a_dry_run_shows_its_table_only_when_asked() -> None:
    events = [*until_stop()[:6], Finished(at=1, outcome="can-move", seconds=1, runs_on="a")]
    assert "PREPARE" not in text_of(*ending(events))
    assert "PREPARE" in text_of(*ending(events, verbose=True))


def test_names_cannot_break_the_terminal() -> None:
    nasty = f"block/{NASTY}"
    events: list[AnyEvent] = [
        started(NASTY, (nasty,)),
        *step(nasty, Step.TEST, 0, 1),
        *step(nasty, Step.PREPARE, 0, 1, NASTY),
        RollbackStarted(at=2.0, reason=NASTY, device=nasty, host=NASTY),
        Finished(
            at=3, outcome="rolled-back", seconds=3, runs_on=NASTY, message="", problems=(NASTY,)
        ),
    ]
    refusal = Refusal(NASTY, NASTY, NASTY, NASTY)
    text = text_of(
        *ending(events),
        plan_table(plan(), [refusal], source=NASTY, target=NASTY),
        frame(View.of(events), 3, Screen()),
        width=200,
    )
    assert "\\x1b[2J[bold]web\\u202e1\\r" in text
    assert all(line.isprintable() for line in text.splitlines())
    teller = Teller(verbose=True)
    assert all((teller.tell(event) or "").isprintable() for event in events)


def test_frames_fit_and_say_what_goes_on() -> None:
    events = success()
    for width in (60, 80, 120):
        for count in range(1, len(events)):
            view = View.of(events[:count])
            lines = text_of(frame(view, 12.0, Screen(width, 24)), width=width).splitlines()
            assert max(map(len, lines)) <= width
            assert len(lines) < 24
    assert "⠋ asking the devices" in text_of(frame(View.of(events[:4]), 1.0, Screen()))
    assert "copying memory, round 4" in text_of(frame(View.of(until_stop()[:-2]), 1.0, Screen()))
    assert "cleaning up" in text_of(frame(View.of(events[:-1]), 1.0, Screen()))


def test_a_frame_without_unicode() -> None:
    assert text_of(frame(View.of(rolled_back()), 12.0, Screen(80, 24, ASCII))).isascii()


def test_sixty_four_devices_fit_a_small_terminal() -> None:
    labels = tuple(f"external/dongle{number}" for number in range(64))
    events: list[AnyEvent] = [started("web1", labels)]
    for label in labels:
        events += step(label, Step.TEST, 0, 0.01)
    events += step("external/dongle63", Step.PREPARE, 0, 0.01, "no licence")
    lines = text_of(frame(View.of(events), 1.0, Screen(80, 24))).splitlines()
    assert len(lines) < 24
    assert any("dongle63" in line for line in lines)  # the one that failed
    assert any(line.startswith("and 48 more") for line in lines)


def test_plain_lines() -> None:
    teller = Teller()
    told = [line[11:] for event in rolled_back() if (line := teller.tell(event))]
    assert told == [
        "web1: a -> b, with block/disk0, net/net0 and tpm/tpm0",
        "TEST begins",
        "TEST done in 40 ms",
        "PREPARE begins",
        "PREPARE done in 8.4 s",
        "memory: round 4, dirtied 4 MiB/s",
        "the guest stands still",
        "tpm/tpm0 TRANSFER: Error: no licence",
        "tpm/tpm0 TRANSFER failed: the tool said Error: no licence",
        "net/net0 SYNC failed: given up, because something else failed",
        "going back: the tool said Error: no licence",
        "the guest runs on a; it stood still for 34 ms",
        "block/disk0 is put back (50 ms)",
        "net/net0 is put back (10 ms)",
        "tpm/tpm0 is not put back: exit status 1 (20 ms)",
    ]


def test_warnings_and_verbose_lines() -> None:
    assert "warning: block/disk0 on b: full" in (Teller().tell(warned("full")) or "")
    assert "warning: full" in (Teller().tell(Warned(at=0.0, message="full")) or "")
    verbose = Teller(verbose=True)
    told = "\n".join(filter(None, map(verbose.tell, success())))
    assert "net/net0 TRANSFER 0.2 ms" in told
    assert "convergence stage 1: up to 100 ms of blackout, slowing the guest down" in told


def test_harmless_text() -> None:
    assert clean("plain ü 漢") == "plain ü 漢"
    assert clean("a\nb\tc\x7f") == "a\\nb\\tc\\x7f"
    assert clean("\udc80") == "\\udc80"
    assert escaped("\x9b\u202e", pairs=True) == "\\u009b\\u202e"
    assert escaped("\U000e0001", pairs=True) == "\\udb40\\udc01"
    assert escaped("\U000e0001", pairs=False) == "\\U000e0001"
    assert joined(["a"]) == "a"
    assert joined(["a", "b", "c"]) == "a, b and c"


def test_bars() -> None:
    assert bar(0, 4, SIGNS) == ("", "────")
    assert bar(0.4, 4, SIGNS) == ("━╸", "──")
    assert bar(7, 4, SIGNS) == ("━━━━", "")


def test_the_document_of_events_has_not_drifted() -> None:
    written = (DOCS / "events.md").read_text()
    assert written == events_markdown(), "python -m entourage.report.schema > docs/events.md"
