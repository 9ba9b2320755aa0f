"""The example of docs/devices.md: a controller that another package would bring, and its test."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entourage.devices.base import Controller, Here, There
from entourage.domain import External
from entourage.errors import DeviceError
from entourage.hosts.resources import place
from entourage.steps import Refusal
from tests.unit.devices.test_harness import TwoHosts, domain_with, names

# --- the example ---


class Licence(msgspec.Struct, frozen=True):
    """What the two halves say to each other: a path and, once the guest has stopped, a content."""

    path: str
    content: bytes = b""


class LicenceController(Controller[External]):
    """A licence file that may be on one host at a time, the one that runs the guest."""

    device_class = "external"

    @property
    def path(self) -> Path:
        """Where it is, on both hosts: the device's ``subtype``."""
        return Path(self.device.subtype or "/etc/licence")

    async def test(self, here: Here) -> list[Refusal]:
        """On the source, step 0: can it move? Touches nothing, and asks the target."""
        if not self.path.is_file():
            return [Refusal(self.device.label, here.source, f"there is no {self.path}")]
        return await here.peer(Licence(str(self.path)), list[Refusal])

    async def test_there(self, there: There, request: Any) -> list[Refusal]:
        """On the target, step 0: what arrives is checked like anything that comes from outside."""
        path = Path(msgspec.convert(request, Licence).path)
        if os.path.lexists(path):
            remedy = "remove it there"
            return [Refusal(self.device.label, there.host, f"{path} is there already", remedy)]
        return []

    async def transfer(self, here: Here) -> None:
        """Step 2: the guest has stopped, so nobody changes the licence any more."""
        await here.peer(Licence(str(self.path), self.path.read_bytes()), type(None))

    async def transfer_there(self, there: There, request: Any) -> None:
        """Note first, then make: whatever happens now, the agent knows what to undo."""
        licence = msgspec.convert(request, Licence)
        final = Path(licence.path)
        scratch = final.with_name(f".{final.name}.{there.migration}")
        there.ledger.record("scratch", path=str(scratch))
        scratch.write_bytes(licence.content)
        try:
            place(scratch, final, there.ledger)  # never over something that is there
        except FileExistsError as error:
            raise DeviceError(f"{final} has come into being meanwhile") from error

    async def let_go(self, here: Here) -> None:
        """The guest runs on the target, for good: only now does the source give its own up."""
        self.path.unlink(missing_ok=True)


# --- its test ---


@pytest.fixture
def licence(tmp_path: Path) -> Path:
    made = tmp_path / "etc" / "licence"
    made.parent.mkdir()
    made.write_bytes(b"\x00valid\xff")
    return made


def hosts_for(licence: Path, tmp_path: Path) -> tuple[TwoHosts, LicenceController]:
    device = External(id="cad", type="licence", subtype=str(licence))
    hosts = TwoHosts(domain_with(external=(device,)), tmp_path / "b")
    hosts.mkdir(licence.parent)
    return hosts, LicenceController(device)


async def test_it_moves(licence: Path, tmp_path: Path) -> None:
    hosts, controller = hosts_for(licence, tmp_path)
    assert await hosts.test(controller) == []
    here = hosts.here(controller.transfer_there)
    await controller.transfer(here)
    assert licence.exists()
    await controller.let_go(here)
    assert not licence.exists()
    assert hosts.on_target(licence).read_bytes() == b"\x00valid\xff"


async def test_it_goes_back(licence: Path, tmp_path: Path) -> None:
    hosts, controller = hosts_for(licence, tmp_path)
    await controller.transfer(hosts.here(controller.transfer_there))
    assert await hosts.ledger.undo() == []  # as the agent does
    assert names(hosts.on_target(licence).parent) == []
    assert licence.exists()


async def test_it_is_refused(licence: Path, tmp_path: Path) -> None:
    hosts, controller = hosts_for(licence, tmp_path)
    mine = hosts.on_target(licence)
    mine.write_text("another")
    (refusal,) = await hosts.test(controller)
    assert str(refusal) == f"external/cad on b: {mine} is there already (remove it there)"
    with pytest.raises(DeviceError, match="come into being"):
        await controller.transfer(hosts.here(controller.transfer_there))
    assert await hosts.ledger.undo() == []
    assert mine.read_text() == "another"
    licence.unlink()
    (refusal,) = await hosts.test(controller)
    assert refusal.host == "a"


def test_the_documentation_shows_this_very_code() -> None:
    code = Path(__file__).read_text(encoding="utf-8")
    example = code.split("# --- the example ---")[1].split("# --- its test ---")[0].strip()
    docs = Path(__file__).parents[3] / "docs" / "devices.md"
    shown = re.findall(r"```python\n(.*?)```", docs.read_text(encoding="utf-8"), re.DOTALL)
    assert any(example in block for block in shown)
