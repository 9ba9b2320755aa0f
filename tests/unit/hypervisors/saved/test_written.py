"""Saves whose memory a hypervisor writes and reads itself."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts import digests
from entourage.hosts.resources import MemoryLedger
from entourage.hosts.turns import HEAD, Turn
from entourage.hypervisors.base import DataPlane, Plan, Ticket
from entourage.hypervisors.reach import image_of_save
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.hypervisor import SavedHypervisor
from entourage.hypervisors.saved.incoming import SavingIncoming
from entourage.hypervisors.saved.measuring import Measuring
from entourage.hypervisors.saved.place import Place
from entourage.hypervisors.saved.written import SentMachine, WrittenFile, WrittenMachine
from entourage.hypervisors.values import (
    GOES_BACK,
    KEEPS,
    KEEPS_LATE,
    RESTORES,
    LocalData,
    RestorePlan,
    SavePlan,
)
from entourage.settings.model import PathSettings, Settings
from tests.unit.eventually import eventually

UUID = "8053c674-0c34-4fbd-9f88-29821824241c"
DOMAIN = Domain(name="web1", uuid=UUID, memory=1 << 20)
PLAN = Plan(msgspec.msgpack.encode(SavePlan(hypervisor="qemu:///system")))


async def saved(tmp_path: Path, said: bytes, *, writes: bool = True) -> SavingIncoming:
    """Have a hypervisor write memory, say something about it, and end."""
    local = LocalData(socket=str(tmp_path / "run" / "m.sock"), generation=4, paused=False)
    plane = DataPlane(
        address="", ports=(1, 2), secret=None, local=local, host=str(tmp_path / "saved")
    )
    incoming = SavingIncoming(
        DOMAIN, tmp_path / "saved", MemoryLedger(), {"qemu": "7.2"}, tmp_path / "state"
    )
    await incoming.build(DOMAIN, plane, PLAN)
    ticket = await incoming.listen()
    file = Path(image_of_save(plane, UUID, ticket.cookie))
    assert file == manifests.partial(tmp_path / "saved", DOMAIN) / manifests.MEMORY
    if writes:
        file.write_bytes(b"LibvirtQemudSave")
    with socket.socket(socket.AF_UNIX) as source:
        await asyncio.to_thread(source.connect, ticket.uri.removeprefix("unix:"))
        await asyncio.to_thread(source.sendall, said)
    try:
        await incoming.landed()
    finally:
        await incoming.close()
    return incoming


async def test_what_is_said_about_it_is_kept(tmp_path: Path) -> None:
    incoming = await saved(tmp_path, b"its XML")
    await incoming.run(paused=False)
    manifest = manifests.read_manifest(tmp_path / "saved")
    assert (manifest.hypervisor, manifest.kept) == ("qemu:///system", b"its XML")
    assert (tmp_path / "saved" / "memory").stat().st_mode & 0o777 == 0o600
    assert manifest.memory.size == len(b"LibvirtQemudSave")


async def test_its_digest_is_made_while_the_hypervisor_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def again(_: Path) -> str:
        raise AssertionError

    monkeypatch.setattr(digests, "sha256", again)
    turns = (Turn(0, b"part", b"save"),)
    said = SavePlan(hypervisor="qemu:///system", turns=turns)
    path = tmp_path / "memory"
    measuring = Measuring(path, WrittenFile(Plan(msgspec.msgpack.encode(said)), path), far=False)
    await measuring.begin()
    with path.open("wb", buffering=0) as file:
        file.write(b"part" + b"x" * (2 * HEAD))
        await eventually(lambda: measuring.passed > HEAD)
        file.write(b"y")
        os.pwrite(file.fileno(), b"save", 0)
    found = await measuring.finish()
    await measuring.end()
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("said", "writes", "reason"),
    [(b"", True, "before its file was whole"), (b"its XML", False, "no such file")],
)
async def test_what_is_not_whole_is_no_save(
    tmp_path: Path, *, said: bytes, writes: bool, reason: str
) -> None:
    with pytest.raises(HypervisorError, match=f"(?i){reason}"):
        await saved(tmp_path, said, writes=writes)
    assert not (tmp_path / "saved").exists()


async def test_it_is_restored_from_where_it_is(tmp_path: Path) -> None:
    incoming = await saved(tmp_path, b"its XML")
    await incoming.run(paused=False)
    paths = PathSettings(state=str(tmp_path / "state"), run=str(tmp_path / "run"))
    hypervisor = SavedHypervisor(Settings(paths=paths), str(tmp_path / "saved"))
    machine = await hypervisor.machine("web1")
    assert (await machine.facts())[RESTORES] == "yes"
    went_on = manifests.read_manifest(tmp_path / "saved")
    later = WrittenMachine(
        tmp_path / "saved",
        msgspec.structs.replace(went_on, checkpoint=True),
        "",
        Place(tmp_path / "saved", UUID, tmp_path / "state"),
    )
    assert (await later.facts())[RESTORES] == GOES_BACK
    plan = msgspec.msgpack.decode(await machine.plan(DOMAIN), type=RestorePlan)
    assert plan == RestorePlan(file=str(tmp_path / "saved" / "memory"), kept=b"its XML")
    await machine.arm(DataPlane(address="", ports=(1, 2), secret=None))
    await machine.start(Ticket(uri=f"file:{plan.file}"), live=False)
    assert await machine.landed() == b""
    with pytest.raises(HypervisorError, match="stays where it is"):
        await machine.start(Ticket(uri="unix:/run/other.sock"), live=False)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("/backup/web1", b"/etc/passwd"),
        ("/backup/web1", b"/backup/web1/memory"),
        ("b", f"b.{UUID}.partial/memory".encode()),
    ],
)
def test_no_other_file_is_written_into(host: str, said: bytes) -> None:
    plane = DataPlane(address="", ports=(1, 2), secret=None, host=host)
    with pytest.raises(HypervisorError, match="not into the save"):
        image_of_save(plane, UUID, said)


async def test_what_is_sent_is_kept_with_what_it_needs(tmp_path: Path) -> None:
    """Its manifest is of a format that older ones refuse; it is sent again, as it came."""
    local = LocalData(socket=str(tmp_path / "run" / "m.sock"), generation=4, paused=False)
    plane = DataPlane(
        address="", ports=(1, 2), secret=None, local=local, host=str(tmp_path / "saved")
    )
    incoming = SavingIncoming(DOMAIN, tmp_path / "saved", MemoryLedger(), {}, tmp_path / "state")
    assert KEEPS in await incoming.offers()
    said = SavePlan(hypervisor="qemu:///system", sends=True, kept=b"its XML")
    await incoming.build(DOMAIN, plane, Plan(msgspec.msgpack.encode(said)))
    ticket = await incoming.listen()
    assert ticket.cookie == b""
    with socket.socket(socket.AF_UNIX) as source:
        await asyncio.to_thread(source.connect, local.socket)
        await asyncio.to_thread(source.sendall, b"stream")
    await incoming.landed()
    await incoming.run(paused=False)
    await incoming.close()
    manifest = manifests.read_manifest(tmp_path / "saved")
    assert (manifest.format, manifest.sent, manifest.is_written) == (2, True, False)
    assert (tmp_path / "saved" / "memory").read_bytes() == b"stream"
    paths = PathSettings(state=str(tmp_path / "state"), run=str(tmp_path / "run"))
    machine = await SavedHypervisor(Settings(paths=paths), str(tmp_path / "saved")).machine("web1")
    assert isinstance(machine, SentMachine)
    assert not isinstance(machine, WrittenMachine)
    assert (await machine.facts())[RESTORES] == "yes"
    plan = msgspec.msgpack.decode(await machine.plan(DOMAIN), type=RestorePlan)
    assert plan == RestorePlan(file="", kept=b"its XML")


async def test_what_is_said_late_is_waited_for(tmp_path: Path) -> None:
    """No save is whole without it; what was not announced is not taken."""
    local = LocalData(socket=str(tmp_path / "run" / "m.sock"), generation=4, paused=False)
    plane = DataPlane(
        address="", ports=(1, 2), secret=None, local=local, host=str(tmp_path / "saved")
    )
    incoming = SavingIncoming(DOMAIN, tmp_path / "saved", MemoryLedger(), {}, tmp_path / "state")
    assert (await incoming.offers())[KEEPS] == KEEPS_LATE
    said = SavePlan(hypervisor="qemu:///system", sends=True, later=True)
    await incoming.build(DOMAIN, plane, Plan(msgspec.msgpack.encode(said)))
    await incoming.listen()
    with socket.socket(socket.AF_UNIX) as source:
        await asyncio.to_thread(source.connect, local.socket)
        await asyncio.to_thread(source.sendall, b"stream")
    written: Any = incoming._written  # pyright: ignore[reportPrivateUsage]
    waits, said_of = asyncio.Event(), written.said

    async def seen() -> None:
        waits.set()
        await said_of()

    written.said = seen
    landing = asyncio.create_task(incoming.landed())
    await waits.wait()
    assert not landing.done()
    incoming.accept_cookie(b"its XML")
    await landing
    incoming.accept_cookie(b"another")
    await incoming.run(paused=False)
    await incoming.close()
    manifest = manifests.read_manifest(tmp_path / "saved")
    assert (manifest.format, manifest.sent, manifest.kept) == (2, True, b"its XML")


async def test_a_file_is_of_the_format_that_older_ones_read(tmp_path: Path) -> None:
    incoming = await saved(tmp_path, b"its XML")
    await incoming.run(paused=False)
    manifest = manifests.read_manifest(tmp_path / "saved")
    assert (manifest.format, manifest.sent, manifest.is_written) == (1, False, True)
