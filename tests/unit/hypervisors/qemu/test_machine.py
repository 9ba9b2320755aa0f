"""How a migration of a QEMU machine is given up: what QEMU is told, by where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.base import Ticket
from entourage.hypervisors.qemu.handle import Handle
from entourage.hypervisors.qemu.machine import QemuMachine
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.qmp import Monitor
from entourage.hypervisors.qemu.record import Running
from tests.unit.hypervisors.qemu.test_qmp import FakeQmp


class Migrating(FakeQmp):
    """A QEMU whose migration stands somewhere, and ends when it is cut off or cancelled."""

    def __init__(self, path: Path, status: str) -> None:
        super().__init__(path)
        self.status = status
        self.answers |= {
            "query-block-jobs": lambda _: [],
            "query-migrate": lambda _: {"status": self.status},
            "migrate-continue": lambda _: self._becomes("device"),
            "migrate_cancel": lambda _: self._becomes("cancelled"),
            "yank": lambda _: self._becomes("failed"),
        }

    def _becomes(self, status: str) -> dict[str, Any]:
        self.status = status
        self.say("MIGRATION", status=status)
        return {}

    @property
    def ended_by(self) -> list[str]:
        return [name for name, _ in self.commands if name in {"yank", "migrate_cancel"}]


def running() -> Running:
    domain = Domain(name="web", uuid="5b6e6d0e-0000-4000-8000-000000000001", memory=1 << 26)
    return Running(domain=domain, pid=0, began=0, marker="")


@pytest.mark.parametrize(
    ("stands", "proceeds", "ended_by"),
    [
        ("active", False, "migrate_cancel"),
        ("pre-switchover", False, "migrate_cancel"),
        # From here on QEMU may let the guest run without its disks when it is cancelled.
        ("pre-switchover", True, "yank"),
        ("device", False, "yank"),  # begun by a process before this one
    ],
)
async def test_what_sends_its_last_is_cut_off_and_not_cancelled(
    tmp_path: Path,
    stands: str,
    proceeds: bool,  # noqa: FBT001 - a case
    ended_by: str,
) -> None:
    qemu = Migrating(tmp_path / "qmp.sock", stands)
    async with qemu.serving():
        monitor = await Monitor.connect(qemu.path)
        where = Places(tmp_path, tmp_path, tmp_path / "log")
        machine = QemuMachine(Handle(monitor, None, running(), where, was_running=True))
        if proceeds:
            qemu.say("MIGRATION", status=stands)
            await machine.continue_switchover()
        await machine.abort()
        assert qemu.ended_by == [ended_by]
        assert ("cont", {}) in qemu.commands
        await machine.close()


@pytest.mark.parametrize(
    "uri",
    [
        *("exec:touch /tmp/x", "tcp:b", "tcp:b:", "tcp:b:0", "tcp:b:65536", "tcp::49152"),
        *("unix:/run/x", "fd:memory", "tcp:b:49152,reconnect=1", "tcp:b:49152 ", "tcp:[]:1", ""),
    ],
)
async def test_memory_goes_to_a_tcp_port_and_to_nothing_else(tmp_path: Path, uri: str) -> None:
    """A target that answers ``exec:…`` would have the source's QEMU run that."""
    qemu = FakeQmp(tmp_path / "qmp.sock")
    async with qemu.serving():
        monitor = await Monitor.connect(qemu.path)
        where = Places(tmp_path, tmp_path, tmp_path / "log")
        machine = QemuMachine(Handle(monitor, None, running(), where, was_running=True))
        with pytest.raises(HypervisorError, match="no TCP port"):
            await machine.start(Ticket(uri=uri), live=True)
        await machine.close()
    assert "migrate" not in [name for name, _ in qemu.commands]


@pytest.mark.parametrize(
    ("status", "why", "was_running", "goes_on"),
    [
        ("io-error", "nospace", True, True),
        ("io-error", "failed", True, False),  # its disk, which is its user's to mend
        ("running", "ok", True, False),
        ("io-error", "nospace", False, False),
    ],
)
async def test_a_guest_that_full_storage_has_stopped_is_let_go_on(
    tmp_path: Path,
    status: str,
    why: str,
    was_running: bool,  # noqa: FBT001 - a case
    goes_on: bool,  # noqa: FBT001 - a case
) -> None:
    """The save that has filled it is removed by then."""
    qemu = FakeQmp(tmp_path / "qmp.sock")
    qemu.answers["query-status"] = lambda _: {"status": status, "running": status == "running"}
    qemu.answers["query-block"] = lambda _: [{"device": ""}, {"io-status": why}]
    async with qemu.serving():
        monitor = await Monitor.connect(qemu.path)
        where = Places(tmp_path, tmp_path, tmp_path / "log")
        handle = Handle(monitor, None, running(), where, was_running=was_running)
        handle.gone = False
        machine = QemuMachine(handle)
        await machine.go_on()
        await machine.close()
    assert (("cont", {}) in qemu.commands) is goes_on
