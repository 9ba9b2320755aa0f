from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from entourage.devices.base import AnyController, Controller, Here, Options
from entourage.devices.tool.controller import ExternalController, Tooled, tool_for
from entourage.domain import Block, Device, Domain, External, Net, Pci, Tpm, Usb
from entourage.errors import DeviceError, HypervisorError
from entourage.events import AnyEvent, ToolSaid
from entourage.hypervisors.base import Machine
from entourage.settings.model import MigrationSettings, Settings, ToolSettings
from entourage.steps import Refusal, Step

TPM = Tpm(id="tpm0")
FPGA = External(id="fpga0", type="fpga", subtype="x7")


class BuiltIn(Controller[Device]):
    """Writes down what it is asked, and fails or refuses where it is told to."""

    device_class = "tpm"
    settles = True
    recovers_first = True

    def __init__(self, device: Device = TPM) -> None:
        super().__init__(device)
        self.asked: list[str] = []
        self.refusals: Sequence[Refusal] = ()
        self.fails_in = ""

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what == self.fails_in:
            raise HypervisorError(f"{what} went wrong")

    def memo(self) -> dict[str, Any]:
        return {"mine": 1}

    def recall(self, memo: dict[str, Any]) -> None:
        self.asked.append(f"recall {memo}")

    async def test(self, here: Here) -> Sequence[Refusal]:
        self._ask("test")
        return self.refusals

    async def prepare(self, here: Here) -> None:
        self._ask("prepare")

    async def connect(self, here: Here) -> None:
        self._ask("connect")

    async def transfer(self, here: Here) -> None:
        self._ask("transfer")

    async def sync(self, here: Here) -> None:
        self._ask("sync")

    async def recover(self, here: Here, last_good: Step) -> None:
        self._ask(f"recover {last_good.value}")

    async def let_go(self, here: Here) -> None:
        self._ask("let_go")

    def progress(self, here: Here) -> tuple[int, int]:
        return (1, 2)

    async def prepare_there(self, there: Any, request: Any) -> Any:
        return ("prepare_there", there, request)

    async def arrived(self, there: Any) -> None:
        self._ask("arrived")


NO_WAY = Refusal("tpm/tpm0", "a", "QEMU cannot", no_way=True)
OTHER = Refusal("tpm/tpm0", "b", "no room")


class Site:
    """A tool that writes down its calls, and what a controller works with."""

    def __init__(self, tmp_path: Path) -> None:
        self.log = tmp_path / "calls"
        self.program = tmp_path / "tool"
        self.events: list[AnyEvent] = []
        self.controllers: list[AnyController] = []
        self.write("")

    def write(self, body: str) -> None:
        self.program.write_text(f'#!/bin/sh\necho "$*" >>{self.log}\n{body}\n')
        self.program.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def steps(self) -> list[str]:
        return [
            call.split("-step ")[1][0] + (" recover" if call.endswith("-recover") else "")
            for call in self.calls
        ]

    def here(self, **tool: Any) -> Here:
        domain = Domain(name="web 1", memory=1 << 20, uuid="u1")
        return Here(
            migration="m1",
            source="a",
            target="b",
            machine=cast("Machine", SimpleNamespace(domain=domain)),
            settings=Settings(
                tool=msgspec.structs.replace(ToolSettings(timeout=10.0), **tool),
                migration=MigrationSettings(max_blackout=5.0),
            ),
            options=Options(),
            peer=cast("Any", None),
            emit=self.events.append,
            now=lambda: 1.5,
        )

    def tooled(self, inner: AnyController | None = None) -> Tooled:
        controller = Tooled(inner or BuiltIn(), str(self.program))
        self.controllers.append(controller)
        return controller

    def external(self) -> ExternalController:
        controller = ExternalController(FPGA, str(self.program))
        self.controllers.append(controller)
        return controller


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site]:
    made = Site(tmp_path)
    yield made
    for controller in made.controllers:  # as the engine does; what is armed ends
        await controller.recover(made.here(), Step.NONE)


async def all_steps(controller: AnyController, here: Here) -> None:
    assert not await controller.test(here)
    await controller.prepare(here)
    await controller.connect(here)
    await controller.transfer(here)
    await controller.sync(here)


async def test_both_go_through_the_steps(site: Site) -> None:
    inner = BuiltIn()
    controller = site.tooled(inner)
    await all_steps(controller, site.here())
    await controller.let_go(site.here())
    assert inner.asked == ["test", "prepare", "connect", "transfer", "sync", "let_go"]
    assert site.calls == [f"-type vtpm -step {step} -host b -domname web 1" for step in (1, 2, 3)]
    assert controller.settles
    assert controller.recovers_first
    assert controller.device_class == "tpm"
    assert controller.progress(site.here()) == (1, 2)
    assert controller.planned(site.here()).action == "with-memory"
    assert controller.planned(site.here()).tool


async def test_where_there_is_no_way_the_tool_takes_its_place(site: Site) -> None:
    inner = BuiltIn()
    inner.refusals = (NO_WAY, OTHER)
    controller = site.tooled(inner)
    assert await controller.test(site.here()) == [OTHER]
    inner.refusals = (NO_WAY,)
    await all_steps(controller, site.here())
    await controller.recover(site.here(), Step.SYNC)
    assert inner.asked == ["test", "test"]
    assert site.steps == ["1", "2", "3", "3 recover"]
    assert not controller.settles


async def test_the_tool_is_called_at_step_0_where_asked_for(site: Site) -> None:
    here = site.here(call_at_test=True, subtypes={"tpm": "-ha"})
    await all_steps(site.tooled(), here)
    assert site.steps == ["0", "1", "2", "3"]
    assert site.calls[0] == "-type vtpm -step 0 -host b -domname web 1 -subtype -ha"
    site.write("echo Error: not today; exit 1")
    (refusal,) = await site.tooled().test(here)
    assert (refusal.device, refusal.host) == ("tpm/tpm0", "a")
    assert "it said: Error: not today, in step 0 (TEST)" in refusal.reason
    assert "try it by hand" in refusal.remedy
    assert not refusal.no_way


async def test_as_a_later_xend_did_error_is_a_failure_of_tpms_alone(site: Site) -> None:
    here = site.here(as_xend="3.0.4")
    site.write("echo Error: so it says")
    (refusal,) = await site.tooled().test(here)  # it was called at step 0
    assert "it said: Error: so it says" in refusal.reason
    fpga = ExternalController(FPGA, str(site.program))
    assert await fpga.test(here) == []
    site.write("exit 3")
    (refusal,) = await fpga.test(here)
    assert "status 3" in refusal.reason


async def test_a_tool_that_cannot_be_run_is_a_refusal(site: Site) -> None:
    inner = BuiltIn()
    inner.refusals = (NO_WAY,)
    site.program.unlink()
    (refusal,) = await site.tooled(inner).test(site.here())
    assert refusal.reason == f"its external tool: {site.program} does not exist"
    assert "correct the setting" in refusal.remedy


async def test_what_it_prints_is_an_event(site: Site) -> None:
    site.write("echo step $4")
    controller = site.tooled()
    await all_steps(controller, site.here())
    await controller.recover(site.here(), Step.TRANSFER)
    assert site.events == [
        ToolSaid(at=1.5, device="tpm/tpm0", step=step, line=f"step {step.value}")
        for step in (Step.PREPARE, Step.TRANSFER, Step.SYNC, Step.TRANSFER)
    ]


@pytest.mark.parametrize("failing", [1, 2, 3])
async def test_a_tool_that_fails_fails_the_step(site: Site, failing: int) -> None:
    site.write(f'[ "$4" = {failing} ] && [ "$9" != -recover ] && exit 1; exit 0')
    controller = site.tooled()
    with pytest.raises(DeviceError, match=rf"status 1, in step {failing} "):
        await all_steps(controller, site.here())
    await controller.recover(site.here(), Step(failing - 1))
    assert site.steps == [*map(str, range(1, failing + 1)), f"{failing - 1} recover"]


async def test_a_failure_of_the_built_in_one_ends_the_tool(site: Site) -> None:
    site.write("[ $4 = 2 ] && exec sleep 1000; exit 0")
    inner = BuiltIn()
    inner.fails_in = "transfer"
    async with asyncio.timeout(5):
        with pytest.raises(HypervisorError, match="transfer went wrong"):
            await all_steps(site.tooled(inner), site.here())


async def test_recovery_of_one_never_stops_the_other(site: Site) -> None:
    inner = BuiltIn()
    controller = site.tooled(inner)
    await all_steps(controller, site.here())
    inner.fails_in = "recover 1"
    site.write("sleep 0.05; exit 4")
    with pytest.raises(DeviceError, match=r"status 4.*; .*recover 1 went wrong"):
        await controller.recover(site.here(), Step.PREPARE)
    assert site.steps == ["1", "2", "3", "1 recover"]
    inner.fails_in = ""
    with pytest.raises(DeviceError, match="status 4"):
        await controller.recover(site.here(), Step.PREPARE)
    assert inner.asked[-2:] == ["recover 1", "recover 1"]


async def test_a_tool_that_was_never_called_is_not_told_to_recover(site: Site) -> None:
    inner = BuiltIn()
    controller = site.tooled(inner)
    await controller.test(site.here())
    await controller.recover(site.here(), Step.TEST)
    assert inner.asked == ["test", "recover 0"]
    assert site.calls == []
    called = site.tooled()
    await called.test(site.here(call_at_test=True))
    await called.recover(site.here(call_at_test=True), Step.TEST)
    await called.recover(site.here(call_at_test=True), Step.NONE)
    assert site.steps == ["0", "0 recover"]


async def test_another_process_takes_the_recovery_up(site: Site) -> None:
    first = site.tooled()
    await all_steps(first, site.here())
    inner = BuiltIn()
    second = site.tooled(inner)
    second.recall(first.memo())
    assert inner.asked == ["recall {'mine': 1}"]
    await second.recover(site.here(), Step.PREPARE)
    assert site.steps[-1] == "1 recover"
    untouched = site.tooled()
    untouched.recall({})
    await untouched.recover(site.here(), Step.PREPARE)
    assert site.steps[-2:] == ["3", "1 recover"]


async def test_the_rest_is_the_built_in_controllers(site: Site) -> None:
    inner = BuiltIn()
    controller = site.tooled(inner)
    there = cast("Any", "there")
    assert await controller.prepare_there(there, 7) == ("prepare_there", "there", 7)
    await controller.arrived(there)
    assert inner.asked == ["arrived"]
    for half in ("test", "connect", "transfer", "sync", "recover"):
        with pytest.raises(NotImplementedError):
            await getattr(controller, f"{half}_there")(there, None)
    other = Tpm(id="tpm0", version="1.2")
    inner.target_device = other
    assert controller.target_device is other
    controller.target_device = TPM
    assert inner.target_device is TPM


async def test_a_device_that_only_a_tool_knows(site: Site) -> None:
    controller = site.external()
    await all_steps(controller, site.here(subtypes={"external": "other"}))
    await controller.recover(site.here(), Step.PREPARE)
    assert site.calls[0] == "-type fpga -step 1 -host b -domname web 1 -subtype x7"
    assert site.steps == ["1", "2", "3", "1 recover"]
    again = site.external()
    again.recall(controller.memo())
    await again.recover(site.here(), Step.TEST)
    assert site.steps[-1] == "0 recover"


async def test_a_device_that_only_a_tool_knows_is_refused_without_one(site: Site) -> None:
    controller = ExternalController(FPGA)
    (refusal,) = await controller.test(site.here())
    assert (refusal.device, refusal.host) == ("external/fpga0", "a")
    assert "none is configured" in refusal.reason
    assert "[tool] external" in refusal.remedy
    await controller.recover(site.here(), Step.TEST)


async def test_a_step_2_has_the_time_of_the_blackout(site: Site) -> None:
    site.write("[ $4 = 2 ] && sleep 0.5; exit 0")
    await all_steps(site.tooled(), site.here(timeout=0.4))
    site.write("[ $4 = 3 ] && exec sleep 1000; exit 0")
    with pytest.raises(DeviceError, match=r"within 0.4 s, and was ended, in step 3"):
        await all_steps(site.tooled(), site.here(timeout=0.4))


@pytest.mark.parametrize(
    ("device", "type_"),
    [
        (Block(id="d", path="/d"), "vbd"),
        (Net(id="n", bridge="b"), "vif"),
        (TPM, "vtpm"),
        (Usb(id="u", model="usb-kbd"), "vusb"),
        (Pci(id="p", model="edu"), "pci"),
        (External(id="e", type="fpga"), "fpga"),
    ],
)
async def test_types(site: Site, device: Device, type_: str) -> None:
    await site.tooled(Controller(device)).connect(site.here())
    assert site.calls == [f"-type {type_} -step 1 -host b -domname web 1"]


def test_which_tool() -> None:
    settings = Settings(tool=ToolSettings(command="/all", tpm="/tpm", external="/ext"))
    choose: Callable[..., str | None] = tool_for
    assert choose(TPM, Settings()) is None
    assert choose(TPM, settings) == "/tpm"
    assert choose(FPGA, settings) == "/ext"
    assert choose(Usb(id="u"), settings) == "/all"
    assert choose(TPM, settings, "/typed") == "/typed"
    assert choose(Tpm(id="t", tool="/own"), settings, "/typed") == "/own"
