"""Two hosts for the unit tests of controllers: real files, and a fake hypervisor that says so.

The target's file tree is a directory: what the source calls ``/srv/x`` is ``ROOT/srv/x`` there.
Storage that both see is a symbolic link in that tree. End-to-end tests use a real QEMU.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from entourage.devices.base import AnyController, Here, Options, There
from entourage.devices.block import storage
from entourage.devices.block.controller import BlockController, Placement
from entourage.domain import Block, Domain, Net, Tpm
from entourage.errors import HypervisorError
from entourage.events import AnyEvent, Warned
from entourage.hosts.allowed import Allowed
from entourage.hosts.resources import MemoryLedger
from entourage.hypervisors.base import Export, Incoming, Machine, TpmFacts
from entourage.hypervisors.seams import Changed, DiskCopy, GuestAgent, IncomingSeams, MachineSeams
from entourage.settings.model import AgentSettings, Settings
from entourage.steps import Refusal

MIRRORS = frozenset({DiskCopy.MIRROR, DiskCopy.MIRROR_READONLY})
CARRIES_RAW = frozenset({DiskCopy.CARRY_RAW})
CARRIES = frozenset({DiskCopy.CARRY})
"""What a hypervisor can do whose carrier copies disks by itself."""
SWTPM = TpmFacts(program="swtpm", version=(0, 7, 1), capabilities=frozenset({"tpm-2.0", "tpm-1.2"}))


@dataclasses.dataclass
class FakeMachine(MachineSeams):
    """A fake: it moves nothing, and notes what it was asked for.

    Attributes:
        copies: How it copies disks.
        lacks: The names of the other seams that it has not.
        objects_to: The disks that its carrier cannot copy.
        leaves_out: The media that it does without.
    """

    domain: Domain
    copies: frozenset[DiskCopy] = MIRRORS
    lacks: frozenset[str] = frozenset()
    objects_to: frozenset[str] = frozenset()
    leaves_out: frozenset[str] = frozenset()
    swtpm: TpmFacts = SWTPM
    calls: list[tuple[str, str]] = dataclasses.field(default_factory=list[tuple[str, str]])
    fails: str = ""
    agent: GuestAgent | None = None

    @property
    def guest_agent(self) -> GuestAgent | None:
        return self.agent

    def note(self, call: str, label: str) -> None:
        self.calls.append((call, label))
        if self.fails == call:
            raise HypervisorError(f"the fake was told to fail at {call}")

    @property
    def mirroring(self) -> FakeMirroring | None:
        ways = self.copies & MIRRORS
        return FakeMirroring(self, ways) if ways else None

    @property
    def carrying(self) -> FakeCarrying | None:
        ways = sorted(self.copies - MIRRORS)
        return FakeCarrying(self, ways[0]) if ways else None

    @property
    def announcing(self) -> FakeMachine | None:
        return None if "announcing" in self.lacks else self

    @property
    def tpm(self) -> FakeMachine | None:
        return None if "tpm" in self.lacks else self

    async def announce(self, nets: Sequence[Net]) -> None:
        self.note("announce", nets[0].label)

    async def facts(self) -> TpmFacts:
        return self.swtpm

    @property
    def stays(self) -> bool:
        return "erasing" in self.lacks

    async def erase(self, tpm: Tpm) -> None:
        self.note("erase_tpm", tpm.label)


@dataclasses.dataclass
class FakeMirroring:
    """What the fake does where it mirrors disks."""

    machine: FakeMachine
    ways: frozenset[DiskCopy]

    def objections(self, disk: Block) -> list[tuple[str, str]]:
        return [("the fake cannot", "ask another")] if disk.id in self.machine.objects_to else []

    async def mirror(self, disk: Block, export: Export, *, top_only: bool) -> None:
        self.machine.note("mirror-top" if top_only else "mirror", f"{disk.label} to {export.name}")

    async def changed(self, disk: Block, mark: str) -> Changed | None:
        return None

    async def kept(self) -> None:
        self.machine.note("kept", "")

    def progress(self, disk: Block) -> tuple[int, int]:
        return (1, 2) if disk.format else (0, 0)

    async def complete(self, disk: Block) -> None:
        self.machine.note("complete_mirror", disk.label)

    async def cancel(self, disk: Block) -> None:
        self.machine.note("cancel_mirror", disk.label)


@dataclasses.dataclass
class FakeCarrying:
    """What the fake does where its carrier copies disks."""

    machine: FakeMachine
    way: DiskCopy

    def objections(self, disk: Block) -> list[tuple[str, str]]:
        return [("the fake cannot", "ask another")] if disk.id in self.machine.objects_to else []

    def may_leave_out(self, disk: Block) -> bool:
        return disk.id in self.machine.leaves_out

    def carry(self, disk: Block, *, top_only: bool) -> None:
        self.machine.note("carry-top" if top_only else "carry", disk.label)

    def progress(self, disk: Block) -> tuple[int, int]:
        return (1, 2) if disk.format else (0, 0)


@dataclasses.dataclass
class FakeIncoming(IncomingSeams):
    """A fake: it builds nothing, and notes what it was asked for."""

    copies: frozenset[DiskCopy] = MIRRORS
    lacks: frozenset[str] = frozenset()
    running: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    swtpm: TpmFacts = SWTPM
    calls: list[tuple[str, str]] = dataclasses.field(default_factory=list[tuple[str, str]])
    agent: GuestAgent | None = None
    is_save: bool = False

    @property
    def guest_agent(self) -> GuestAgent | None:
        return self.agent

    @property
    def takes(self) -> frozenset[DiskCopy]:
        return self.copies

    @property
    def exports(self) -> FakeIncoming | None:
        return self if self.copies & MIRRORS else None

    @property
    def announcing(self) -> FakeIncoming | None:
        return None if "announcing" in self.lacks else self

    @property
    def tpm(self) -> FakeIncoming | None:
        return None if "tpm" in self.lacks else self

    async def networks(self) -> dict[str, str]:
        return self.running

    async def export(self, disk: Block) -> Export:
        self.calls.append(("export", disk.path))
        return Export(host="b", port=1, name=disk.path)

    async def announce(self, nets: Sequence[Net]) -> None:
        self.calls.append(("announce", f"{nets[0].label} on {nets[0].bridge}"))

    async def facts(self) -> TpmFacts:
        return self.swtpm

    async def sync(self, tpm: Tpm) -> None:
        self.calls.append(("sync_tpm", tpm.label))


class TwoHosts:
    """A source and a target, and the link between them.

    Attributes:
        root: The target's file tree.
        machine, incoming: The fakes.
        ledger: What the target noted.
        events: What the source emitted.
    """

    def __init__(self, domain: Domain, root: Path, *, blockers: Sequence[Refusal] = ()) -> None:
        self.root = root
        self.machine = FakeMachine(domain)
        self.incoming = FakeIncoming()
        self.ledger = MemoryLedger()
        self.events: list[AnyEvent] = []
        self.options = Options()
        self.settings = Settings()
        self.blockers = tuple(blockers)
        self.there = There(
            migration="m1",
            host="b",
            domain=domain,
            incoming=cast("Incoming", self.incoming),
            ledger=self.ledger,
            settings=self.settings,
            run_dir=str(root / "run"),
            state_dir=str(root / "state"),
            allowed=Allowed(
                AgentSettings(image_directories=("/",), devices=("*",), believe_shared=True)
            ),
            source="a",
        )

    def on_target(self, path: Path | str) -> Path:
        """Where the target has what the source calls ``path``."""
        return self.root / str(path).lstrip("/")

    def share(self, directory: Path) -> None:
        """Let the target see a directory of the source's, at the same path."""
        link = self.on_target(directory)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(directory)

    def mkdir(self, directory: Path) -> Path:
        """Make a directory of that name on the target."""
        made = self.on_target(directory)
        made.mkdir(parents=True, exist_ok=True)
        return made

    def here(self, half: Callable[[There, Any], Any]) -> Here:
        """What a source half is given; ``half`` is what its ``peer`` runs."""

        async def peer(request: Any, reply: type[Any]) -> Any:
            plain = msgspec.msgpack.decode(msgspec.msgpack.encode(request))
            answer = await half(self.there, self._rooted(plain))
            plain = msgspec.msgpack.decode(msgspec.msgpack.encode(answer))
            return msgspec.convert(plain, reply)

        return Here(
            migration="m1",
            source="a",
            target="b",
            machine=cast("Machine", self.machine),
            settings=self.settings,
            options=self.options,
            peer=peer,
            emit=self.events.append,
            now=lambda: 0.0,
            blockers=self.blockers,
        )

    def _rooted(self, value: Any) -> Any:
        """The request with its paths in the target's tree."""
        if isinstance(value, list):
            return [self._rooted(item) for item in cast("list[Any]", value)]
        if not isinstance(value, dict):
            return value
        return {
            key: str(self.on_target(item))
            if key in {"path", "backing"} and item
            else self._rooted(item)
            for key, item in cast("dict[str, Any]", value).items()
        }

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warned)]

    async def test(self, controller: AnyController) -> list[Refusal]:
        return list(await controller.test(self.here(controller.test_there)))

    async def prepare(self, controller: AnyController) -> None:
        self._open(controller)
        await controller.prepare(self.here(controller.prepare_there))

    def _open(self, controller: AnyController) -> None:
        """Tell the target of the device as it is to be there, with its paths in its tree."""
        device = controller.target_device
        if isinstance(device, Block) and not device.path.startswith("/dev/"):
            device = msgspec.structs.replace(device, path=str(self.on_target(device.path)))
        self.there.domain = self.there.domain.with_device(device)

    async def connect(self, controller: AnyController) -> None:
        self._open(controller)
        await controller.connect(self.here(controller.connect_there))


def domain_with(**devices: Any) -> Domain:
    return Domain(name="web1", memory=1 << 28, **devices)


MIB = 1 << 20


def run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))  # noqa: PTH208 - names are what is wanted


def raw(path: Path, size: int = MIB, data: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(data)
        file.truncate(size)
    return path


def qcow2(path: Path, *options: str, size: str = "64M", backing: Path | None = None) -> Path:
    based = ["-b", str(backing), "-F", "qcow2"] if backing else []
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, *based, path, size)
    return path


def two_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be concluded any more from both hosts being this machine."""
    numbers = itertools.count()
    monkeypatch.setattr(storage, "boot_id", lambda: f"boot-{next(numbers)}")


class Move:
    """One disk, and the two hosts it moves between."""

    def __init__(self, tmp_path: Path, path: Path, *others: Block, **fields: Any) -> None:
        self.disk = Block(id="disk0", path=str(path), **fields)
        self.hosts = TwoHosts(domain_with(block=(self.disk, *others)), tmp_path / "b")
        self.controller = BlockController(self.disk)

    def onto(self, path: Path) -> None:
        self.hosts.options = Options(disks={"disk0": str(path)})

    async def test(self) -> list[Refusal]:
        return await self.hosts.test(self.controller)

    async def refusal(self) -> Refusal:
        refusals = await self.test()
        assert len(refusals) == 1, refusals
        assert refusals[0].device == "block/disk0"
        assert refusals[0].remedy
        assert self.controller.placement is Placement.STAY
        assert not self.hosts.ledger.rows
        return refusals[0]

    async def through(self) -> None:
        """TEST, PREPARE and TRANSFER, where nothing is refused."""
        assert await self.test() == []
        await self.hosts.prepare(self.controller)
        await self.hosts.connect(self.controller)
        await self.controller.transfer(self.hosts.here(self.controller.transfer_there))

    async def let_go(self) -> None:
        await self.controller.let_go(self.hosts.here(self.controller.transfer_there))


def test_the_fakes_say_that_they_are_fakes() -> None:
    assert "fake" in str(FakeMachine.__doc__)
    assert "fake" in str(FakeIncoming.__doc__)
