"""The source's six operations and the target's streams together; small programs in the place of xl.

All else is real: the transport under xl, the processes that ssh would start, pipes and sockets.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.base import DataPlane, Ticket
from entourage.hypervisors.xen import looks
from entourage.hypervisors.xen import machine as machine_module
from entourage.hypervisors.xen.arrivals import Arrivals
from entourage.hypervisors.xen.handle import Handle
from entourage.hypervisors.xen.intake import Intake
from entourage.hypervisors.xen.machine import XenMachine
from entourage.hypervisors.xen.receiver import Said
from entourage.hypervisors.xen.streams import TransportEnd
from entourage.hypervisors.xen.xenstore import XenStore
from entourage.settings.model import PathSettings, Settings
from tests.unit.eventually import eventually
from tests.unit.hypervisors.xen.sends import MIB, Store, did, installed, kill

UUID = "3e5948d6-8285-4068-8236-a0e7729aaa7a"
PATIENCE = 20.0


@dataclass
class Scene:
    """A domain on its way."""

    machine: XenMachine
    arrivals: Arrivals
    at: Path

    def did(self) -> set[str]:
        """Return what xl has done to the source's copy."""
        return did(self.at)

    @property
    def stream(self) -> TransportEnd:
        """The engine's end of the transport."""
        return self.machine._migrating.stream  # pyright: ignore[reportPrivateUsage]

    async def begin(self) -> None:
        """Go to the moment at which all is on the target and nobody was told so."""
        machine = self.machine
        await machine.arm(DataPlane(address="", ports=(1, 2), secret=None, host="b"))
        machine.carrying.carry(machine.domain.block[0], top_only=False)
        plan = await machine.plan(machine.domain)
        assert msgspec.msgpack.decode(plan) == {
            "parameters": {"disks": ["xvda"]}
        }  # the target takes no other
        await machine.start(Ticket(uri=str(self.arrivals.path), cookie=b"some secret"), live=True)
        assert await machine.stopped() > 0
        assert await machine.landed() == b""
        await self.arrivals.intake.reaches(Said.READY)
        assert self.did() == {"suspended"}


@pytest.fixture
def place() -> Generator[Path]:
    """A directory whose name leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="xen.") as made:
        yield Path(made)


@pytest.fixture
async def scene(place: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Scene]:
    xl = installed(place, monkeypatch)

    def ssh(host: str, settings: Settings, remote: Sequence[str]) -> list[str]:
        assert host == "b"
        assert settings.paths.run.startswith(str(place))
        return [sys.executable, "-m", "entourage", *remote]

    monkeypatch.setattr(machine_module, "ssh_command", ssh)
    (place / "here").write_bytes(os.urandom(MIB))
    (place / "there").write_bytes(bytes(MIB))
    domain = Domain(
        name="web1",
        uuid=UUID,
        memory=MIB,
        block=(Block(id="xvda", path=str(place / "here")),),
    )
    paths = PathSettings(run=str(place / "run"), log=str(place / "log"))
    settings = msgspec.structs.replace(Settings(), paths=paths)
    store = cast("XenStore", Store(xl))
    config: dict[str, Any] = json.loads("{}")
    one = Handle(store, 7, domain, config, place / "log" / "web1.log")
    machine = XenMachine(one, settings)
    intake = Intake(f"test.{os.getpid()}.{place.name}", place / "there.log", place / "n")

    async def look(config: dict[str, Any]) -> None:
        assert config == {"disks": [], "nics": []}

    arrivals = Arrivals(place / "s", b"some secret", intake, {"xvda": str(place / "there")}, look)
    await arrivals.listen()
    yield Scene(machine, arrivals, xl.parent)
    await machine.close()
    await intake.end(5)
    await arrivals.close()


async def test_a_domain_goes_over_with_its_disk(scene: Scene, place: Path) -> None:
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        assert (place / "here").read_bytes() == (place / "there").read_bytes()
        await scene.machine.disarm_deadman()
        assert scene.did() == {"suspended", "renamed"}
        assert await scene.arrivals.intake.go() is Said.RUNS
        await scene.machine.release()
    assert scene.did() == {"suspended", "renamed", "destroyed"}
    assert not (place / "run" / f"xen-{UUID}").exists()


async def test_what_is_given_up_before_ready_is_resumed_by_xl(scene: Scene) -> None:
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        undone = asyncio.create_task(_undo(scene))
        await scene.machine.abort()
        await undone
    assert scene.did() == {"suspended", "resumed"}
    assert scene.arrivals.intake.said is Said.DESTROYED


@pytest.mark.parametrize(
    ("version", "told"), [("4.17.4", True), ("4.19.1-pre", True), ("4.20.0", False), ("5.0", False)]
)
async def test_that_nothing_watches_it_any_more_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, *, version: str, told: bool
) -> None:
    async def info(*_: str) -> dict[str, str]:
        return {"xen_version": version}

    monkeypatch.setattr(looks, "info", info)
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        assert not scene.machine.after_abort
        undone = asyncio.create_task(_undo(scene))
        await scene.machine.abort()
        await undone
    assert ("watches web1 no more" in scene.machine.after_abort) is told


async def test_what_is_given_up_after_go_is_renamed_and_resumed_by_xl(scene: Scene) -> None:
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        await scene.machine.disarm_deadman()
        undone = asyncio.create_task(_undo(scene))
        await scene.machine.abort()
        await undone
    assert scene.did() == {"suspended", "resumed"}


async def test_a_disk_that_is_only_read_is_copied_once(scene: Scene, place: Path) -> None:
    machine = scene.machine
    disk = msgspec.structs.replace(machine.domain.block[0], readonly=True)
    machine._handle.domain = machine.domain.with_device(disk)  # pyright: ignore[reportPrivateUsage]
    before = (place / "here").read_bytes()
    async with asyncio.timeout(PATIENCE):
        await machine.arm(DataPlane(address="", ports=(1, 2), secret=None, host="b"))
        machine.carrying.carry(disk, top_only=False)
        await machine.plan(machine.domain)
        await machine.start(Ticket(uri=str(scene.arrivals.path), cookie=b"some secret"), live=True)
        # It is there, proven, before memory follows; nobody looks at it again in the blackout.
        assert (place / "there").read_bytes() == before
        (place / "here").write_bytes(bytes(MIB))
        await machine.stopped()
        assert await machine.landed() == b""
        assert (place / "there").read_bytes() == before
        undone = asyncio.create_task(_undo(scene))
        await machine.abort()
        await undone


async def _undo(scene: Scene) -> None:
    """As the agent does when it is told to, or has lost its link."""
    await scene.arrivals.intake.end(5)
    await scene.arrivals.close()


async def test_a_transport_that_dies_under_the_stream_ends_the_start(scene: Scene) -> None:
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        kill("hypervisors.xen.transport", str(scene.at.parent))
        with pytest.raises(
            HypervisorError, match=r"stream to the target has ended|xl does not go on"
        ):
            await scene.machine.disarm_deadman()
        await scene.machine.abort()
    assert scene.did() == {"suspended", "resumed"}


async def test_where_xl_dies_libxl_resumes(scene: Scene) -> None:
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        kill(" migrate -s ", str(scene.at.parent))
        with pytest.raises(HypervisorError):
            await scene.machine.disarm_deadman()
        await scene.machine.abort()
    assert scene.did() == {"suspended", "resumed"}


async def test_a_transport_that_dies_after_go_leaves_it_to_the_record(scene: Scene) -> None:
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        await scene.machine.disarm_deadman()
        kill("hypervisors.xen.transport", str(scene.at.parent))
        await scene.stream.gone()
        assert scene.did() == {"suspended", "renamed"}  # nobody has resumed it
        # The target says that it never ran: by libxl then, and by its own name.
        await scene.machine.abort()
    assert scene.did() == {"suspended", "resumed"}


async def test_an_engine_that_dies_before_go_is_no_end_of_the_domain(scene: Scene) -> None:
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        undone = asyncio.create_task(_undo(scene))
        await scene.stream.close()
        await eventually(lambda: "resumed" in scene.did())
        await undone
    assert scene.did() == {"suspended", "resumed"}
