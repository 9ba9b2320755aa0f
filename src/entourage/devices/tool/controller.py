"""The external migration tool, as xend called it since April 2006 (xen commit abd30192c0).

``TOOL -type vtpm -step N -host DST -domname NAME [-subtype S] [-recover]``: it does for a device
what the hypervisor cannot, or what a site wants done beside it. docs/tool.md is the contract for
those who write one; here is what drives it through the steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from entourage.devices.base import AnyController, Controller, Here, There
from entourage.devices.tool.call import ToolCall, check
from entourage.devices.tool.process import ToolProcess
from entourage.domain import TOOL_TYPES, Device, External
from entourage.errors import DeviceError, EntourageError
from entourage.events import ToolSaid
from entourage.settings.model import Settings
from entourage.settings.textfile import printable
from entourage.steps import Planned, Refusal, Step

__all__ = ["ExternalController", "ToolCall", "Tooled", "check", "tool_for"]


def tool_for(device: Device, settings: Settings, override: str | None = None) -> str | None:
    """The command of a device's external tool.

    Args:
        device: The device; its own tool comes first.
        settings: The class's tool, or else the one for every class, comes last.
        override: ``--tool``, for every device that has none of its own.

    Returns:
        The first that is set; None where no tool moves the device.
    """
    of_class: str | None = getattr(settings.tool, device.device_class, None)
    return device.tool or override or of_class or settings.tool.command or None


class _ToolSteps:
    """What a tool does for one device, step by step."""

    def __init__(self, device: Device, command: str) -> None:
        self.device = device
        self.command = command
        self.called = False
        self._armed: dict[Step, ToolProcess] = {}

    async def test(self, here: Here) -> list[Refusal]:
        """Step 0: can it be run at all? It is called only where the settings ask for that."""
        label = self.device.label
        reason = check(self.command)
        if reason:
            remedy = f"install it, or correct the setting {self.command!r}"
            return [Refusal(label, here.source, f"its external tool: {reason}", printable(remedy))]
        if here.settings.tool.calls_at_test:
            try:
                await self.run(here, Step.TEST)
            except DeviceError as error:
                return [Refusal(label, error.host, error.message, error.remedy)]
        return []

    async def prepare(self, here: Here) -> None:
        """Step 1; then what runs within the blackout is made ready before it."""
        await self.run(here, Step.PREPARE)
        for step in (Step.TRANSFER, Step.SYNC):
            call = self._call(here, step)
            self._armed[step] = call.start(self._listener(here, step), armed=True)

    async def run(self, here: Here, step: Step) -> None:
        """One step."""
        self.called = self.called or step > Step.TEST or here.settings.tool.calls_at_test
        settings = here.settings
        # Step 2 has the blackout's own limit, which the engine keeps as well.
        limit = settings.migration.max_blackout if step is Step.TRANSFER else settings.tool.timeout
        armed = self._armed.pop(step, None)
        await self._call(here, step).run(limit, self._listener(here, step), armed)

    async def recover(self, here: Here, last_good: Step) -> None:
        """Tell it to put things back, if it was ever told to do any."""
        await self.dismiss()
        if self.called and last_good is not Step.NONE:
            call = self._call(here, last_good, recover=True)
            await call.run(here.settings.tool.timeout, self._listener(here, last_good))

    async def dismiss(self) -> None:
        """End what waits for a step that will not come."""
        waiting = [self._armed.pop(step) for step in tuple(self._armed)]
        await asyncio.gather(*(process.end() for process in waiting))

    def _call(self, here: Here, step: Step, *, recover: bool = False) -> ToolCall:
        device = self.device
        domain = here.machine.domain
        subtype = here.settings.tool.subtypes.get(device.device_class)
        if isinstance(device, External):
            type_, subtype = device.type, device.subtype or subtype
        else:
            type_ = TOOL_TYPES.get(device.device_class, device.device_class)
        return ToolCall(
            command=self.command,
            type=type_,
            step=step,
            source=here.source,
            target=here.target,
            domain=domain.name,
            subtype=subtype,
            recover=recover,
            device=device.label,
            migration=here.migration,
            uuid=domain.uuid or "",
            error_counts=here.settings.tool.error_counts(device.device_class),
        )

    def _listener(self, here: Here, step: Step) -> Callable[[str], None]:
        def say(line: str) -> None:
            here.emit(ToolSaid(at=here.now(), device=self.device.label, step=step, line=line))

        return say


class Tooled(Controller[Device]):
    """A built-in controller with an external tool beside it.

    In every step both do their part at once. Where the built-in one knows no way to move the
    device (its refusal says so), the tool takes its place: the refusal is lifted, and what the
    built-in one would have done in the steps is left out. Such a tool is done with step 1 before
    the target's machine is built, and so can provide there what that machine opens.

    Args:
        inner: The built-in controller.
        command: The tool.
    """

    def __init__(self, inner: AnyController, command: str) -> None:
        self.inner = inner
        super().__init__(inner.device)
        self._steps = _ToolSteps(inner.device, command)
        self._no_way = False

    @property
    def device_class(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The built-in controller's."""
        return self.inner.device_class

    @property
    def settles(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The built-in controller's, where it has a part."""
        return self.inner.settles and not self._no_way

    @property
    def recovers_first(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The built-in controller's."""
        return self.inner.recovers_first

    @property
    def undoes_prepare(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The built-in controller's, where it has a part."""
        return self.inner.undoes_prepare and not self._no_way

    @property
    def target_device(self) -> Device:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The built-in controller's."""
        return self.inner.target_device

    @target_device.setter
    def target_device(self, device: Device) -> None:
        self.inner.target_device = device

    @property
    def left_out(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The built-in controller's."""
        return self.inner.left_out

    @left_out.setter
    def left_out(self, left_out: bool) -> None:
        self.inner.left_out = left_out

    def memo(self) -> dict[str, Any]:
        """What the built-in one must know, that the tool was called, and who is in charge."""
        return {"inner": self.inner.memo(), "called": self._steps.called, "no-way": self._no_way}

    def recall(self, memo: dict[str, Any]) -> None:
        """Take that up."""
        self._steps.called = bool(memo.get("called"))
        self._no_way = bool(memo.get("no-way"))
        self.inner.recall(memo.get("inner", {}))

    async def test(self, here: Here) -> Sequence[Refusal]:
        """Step 0: what both say against it, but for what the tool is there for."""
        refusals = await self.inner.test(here)
        self._no_way = any(refusal.no_way for refusal in refusals)
        found = [refusal for refusal in refusals if not refusal.no_way]
        if self._no_way:
            found += await self.inner.test_provided(here)
        return found + await self._steps.test(here)

    async def prepare(self, here: Here) -> None:
        """What the target's machine is built upon: the built-in one's part, or else the tool's."""
        await (self._steps if self._no_way else self.inner).prepare(here)

    async def connect(self, here: Here) -> None:
        """The rest of step 1: a tool may be slow, and the machine need not wait for it."""
        if not self._no_way:
            await self._both(self.inner.connect(here), self._steps.prepare(here))

    async def transfer(self, here: Here) -> None:
        """Step 2 of both; the last memory waits for the built-in one's part alone."""

        async def settle() -> None:
            await self.inner.transfer(here)
            here.settled()

        await self._both(settle(), self._steps.run(here, Step.TRANSFER))

    def planned(self, here: Here) -> Planned:
        """The built-in's, with the tool; or the tool's alone."""
        if self._no_way:
            return Planned(action="by-tool", tool=self._steps.command)
        return msgspec.structs.replace(self.inner.planned(here), tool=self._steps.command)

    async def sync(self, here: Here) -> None:
        """Step 3 of both."""
        await self._both(self.inner.sync(here), self._steps.run(here, Step.SYNC))

    async def recover(self, here: Here, last_good: Step) -> None:
        """Both put back what they did; neither waits for the other to have succeeded."""
        parts = [self._steps.recover(here, last_good)]
        if not self._no_way:
            parts.append(self.inner.recover(here, last_good))
        results = await asyncio.gather(*parts, return_exceptions=True)
        errors = [error for error in results if error is not None]
        if len(errors) > 1 and all(isinstance(error, EntourageError | OSError) for error in errors):
            raise DeviceError("; ".join(map(str, errors)), device=self.device.label)
        for error in errors:
            raise error

    async def let_go(self, here: Here) -> None:
        """The built-in controller's."""
        await self.inner.let_go(here)

    def progress(self, here: Here) -> tuple[int, int]:
        """The built-in controller's."""
        return self.inner.progress(here)

    async def test_there(self, there: There, request: Any) -> Any:
        """The built-in controller's; tools run on the source."""
        return await self.inner.test_there(there, request)

    async def prepare_there(self, there: There, request: Any) -> Any:
        """The built-in controller's."""
        return await self.inner.prepare_there(there, request)

    async def connect_there(self, there: There, request: Any) -> Any:
        """The built-in controller's."""
        return await self.inner.connect_there(there, request)

    async def transfer_there(self, there: There, request: Any) -> Any:
        """The built-in controller's."""
        return await self.inner.transfer_there(there, request)

    async def sync_there(self, there: There, request: Any) -> Any:
        """The built-in controller's."""
        return await self.inner.sync_there(there, request)

    async def recover_there(self, there: There, request: Any) -> Any:
        """The built-in controller's."""
        return await self.inner.recover_there(there, request)

    async def persist(self, there: There) -> None:
        """The built-in's."""
        await self.inner.persist(there)

    async def arrived(self, there: There) -> None:
        """The built-in controller's."""
        await self.inner.arrived(there)

    async def finish_arrival(self, there: There) -> None:
        """The built-in controller's."""
        await self.inner.finish_arrival(there)

    async def _both(
        self, inner: Coroutine[Any, Any, None], tool: Coroutine[Any, Any, None]
    ) -> None:
        """Both parts of a step at once; the first that fails ends the other, and is told."""
        if self._no_way:
            inner.close()
            await tool
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(inner)
                group.create_task(tool)
        except BaseExceptionGroup as both:
            raise both.exceptions[0] from None


class ExternalController(Controller[Device]):
    """A device that only an external tool moves, ``[[external]]``; refused where there is none."""

    device_class = "external"

    def __init__(self, device: Device, command: str | None = None) -> None:
        super().__init__(device)
        self._steps = _ToolSteps(device, command) if command else None

    def memo(self) -> dict[str, Any]:
        """That the tool was called."""
        return {"called": bool(self._steps and self._steps.called)}

    def recall(self, memo: dict[str, Any]) -> None:
        """Take that up."""
        if self._steps:
            self._steps.called = bool(memo.get("called"))

    async def test(self, here: Here) -> Sequence[Refusal]:
        """Step 0: there must be a tool."""
        if self._steps:
            return await self._steps.test(here)
        reason = "only an external migration tool can move it, and none is configured"
        remedy = "name one: [tool] external = … in the settings, tool = … at the device, or --tool"
        return [Refusal(self.device.label, here.source, reason, remedy)]

    def planned(self, here: Here) -> Planned:  # noqa: ARG002 - it is the same for all
        """All of it is the tool's."""
        return Planned(action="by-tool", tool=self._steps.command if self._steps else "")

    async def prepare(self, here: Here) -> None:
        """Step 1 of the tool."""
        if self._steps:
            await self._steps.prepare(here)

    async def transfer(self, here: Here) -> None:
        """Step 2 of the tool."""
        if self._steps:
            await self._steps.run(here, Step.TRANSFER)

    async def sync(self, here: Here) -> None:
        """Step 3 of the tool."""
        if self._steps:
            await self._steps.run(here, Step.SYNC)

    async def recover(self, here: Here, last_good: Step) -> None:
        """The tool's own recovery."""
        if self._steps:
            await self._steps.recover(here, last_good)
