"""Takes all devices of a domain through the four steps concurrently, with deadlines and recovery.

It knows for each device the last step that it finished, which is what its recovery is told.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from entourage.clock import within
from entourage.devices.base import AnyController, Here
from entourage.devices.registry import controller_class
from entourage.devices.tool.controller import ExternalController, Tooled, tool_for
from entourage.domain import Domain
from entourage.errors import (
    DeadlineError,
    DeviceError,
    EntourageError,
    InternalError,
    plain_words,
    what_to_do,
)
from entourage.events import (
    DeviceRecovered,
    DeviceStepDone,
    DeviceStepStarted,
    Listener,
    StepDone,
    StepStarted,
)
from entourage.settings.model import MigrationSettings, Settings
from entourage.steps import Planned, Refusal, Step


def source_controllers(
    domain: Domain, settings: Settings, tool: str | None = None, *, saved: bool = False
) -> list[AnyController]:
    """A controller for each device of a domain that is to leave this host.

    Args:
        domain: The running configuration.
        settings: This host's: they may name external tools.
        tool: One for every class, from the command line.
        saved: It is saved in a directory, or restored from one.
    """
    controllers: list[AnyController] = []
    for device in domain.devices:
        kind = controller_class(device, saved=saved)
        command = tool_for(device, settings, tool)
        if kind is None:
            controllers.append(ExternalController(device, command))
        elif command:
            controllers.append(Tooled(kind(device), command))
        else:
            controllers.append(kind(device))
    return controllers


class DeviceSteps:
    """All devices of one migration, on the source.

    Args:
        controllers: One for each device.
        here: Makes what a controller works with, for the half (``prepare``, …) under way; and what
            to call once it has settled.
        timeouts: How long a device may take.
        emit: Takes the events.
        now: Their ``at``.
    """

    def __init__(
        self,
        controllers: Sequence[AnyController],
        here: Callable[[AnyController, str, Callable[[], None]], Here],
        timeouts: MigrationSettings,
        emit: Listener,
        now: Callable[[], float],
    ) -> None:
        self.controllers = tuple(controllers)
        self._make_here = here
        self._timeouts = timeouts
        self._emit = emit
        self._now = now
        self._finished: dict[str, Step] = {}
        self._began: set[str] = set()
        self._settled = asyncio.Event()

    async def test(self) -> list[Refusal]:
        """Step 0: every refusal of every device. A device that fails to answer refuses."""
        found: list[Refusal] = []

        async def ask(controller: AnyController) -> None:
            label = controller.device.label
            here = self._here(controller, "test")
            try:
                async with self._device(controller, Step.TEST, self._timeouts.test_timeout):
                    refusals = await controller.test(here)
            except EntourageError as error:
                found.append(Refusal(label, error.host, error.message, error.remedy))
            else:
                found.extend(refusals)

        async with self._step(Step.TEST), asyncio.TaskGroup() as group:
            for controller in self.controllers:
                group.create_task(ask(controller))
        return found

    def planned(self, refused: Collection[str]) -> list[tuple[str, Planned]]:
        """After ``test``: what will be done with each device that is not refused, by label."""
        return [
            (controller.device.label, controller.planned(self._here(controller, "test")))
            for controller in self.controllers
            if controller.device.label not in refused
        ]

    async def prepare(self, build: Callable[[], Awaitable[None]]) -> None:
        """Step 1: ``prepare`` of every device, then ``build``, then ``connect`` of every device."""
        made = asyncio.Barrier(len(self.controllers) + 1)
        built = asyncio.Event()

        async def one(controller: AnyController) -> None:
            self._began.add(controller.device.label)
            async with self._device(controller, Step.PREPARE, self._timeouts.prepare_timeout):
                await controller.prepare(self._here(controller, "prepare"))
                await made.wait()
                await built.wait()
                await controller.connect(self._here(controller, "connect"))

        async with self._step(Step.PREPARE), asyncio.TaskGroup() as group:
            for controller in self.controllers:
                group.create_task(one(controller))
            await made.wait()
            await build()
            built.set()

    async def transfer(self) -> None:
        """Step 2: the guest has stopped. ``settled`` returns once the last memory may follow."""
        unsettled = {c.device.label for c in self.controllers if c.settles}

        def settle(label: str) -> None:
            unsettled.discard(label)
            if not unsettled:
                self._settled.set()

        async def one(controller: AnyController) -> None:
            settled = functools.partial(settle, controller.device.label)
            async with self._device(controller, Step.TRANSFER, None):
                await controller.transfer(self._here(controller, "transfer", settled))
            settled()

        settle("")
        async with self._step(Step.TRANSFER), asyncio.TaskGroup() as group:
            for controller in self.controllers:
                group.create_task(one(controller))

    async def settled(self) -> None:
        """Wait until the last memory may follow: what the disks still had is on the target."""
        await self._settled.wait()

    async def sync(self) -> None:
        """Step 3: when this returns, every device's state is complete on the target."""

        async def one(controller: AnyController) -> None:
            async with self._device(controller, Step.SYNC, None):
                await controller.sync(self._here(controller, "sync"))

        async with self._step(Step.SYNC), asyncio.TaskGroup() as group:
            for controller in self.controllers:
                group.create_task(one(controller))

    async def recover_first(self) -> list[str]:
        """Put back what the guest cannot run without; returns what could not be put back."""
        first = [c for c in self.controllers if c.recovers_first]
        return await self._recover(first, self._timeouts.recover_first_timeout)

    async def recover(self) -> list[str]:
        """Put all others back, at once; one that fails stops no other.

        Returns:
            What could not be put back, each a sentence.
        """
        rest = [c for c in self.controllers if not c.recovers_first]
        return await self._recover(rest, self._timeouts.recover_timeout)

    async def let_go(self) -> list[str]:
        """The domain runs on the target: free what it held here; returns what could not be."""

        async def one(controller: AnyController) -> str:
            try:
                remedy = "see what keeps it, or raise migration.recover-timeout"
                async with within(self._timeouts.recover_timeout, "that", remedy):
                    await controller.let_go(self._here(controller, "let_go"))
            except (EntourageError, OSError) as error:
                return f"{controller.device.label} is not cleaned up: {plain_words(error)}"
            return ""

        problems = await asyncio.gather(*map(one, self.controllers))
        return [problem for problem in problems if problem]

    def progress(self) -> list[tuple[str, int, int]]:
        """Label, bytes done and bytes in total of every device that copies something."""
        return [
            (controller.device.label, *progress)
            for controller in self.controllers
            if (progress := controller.progress(self._here(controller, "prepare")))[1]
        ]

    def reattach(self, finished: Step, memos: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore the state of another process: every device had finished step ``finished``."""
        for controller in self.controllers:
            label = controller.device.label
            controller.recall(dict(memos.get(label, {})))
            self._finished[label] = finished
            if finished > Step.TEST or memos.get(label):  # see Controller.undoes_prepare
                self._began.add(label)

    def as_there(self, domain: Domain) -> Domain:
        """The domain's configuration for the target, with each controller's changes."""
        for controller in self.controllers:
            if controller.left_out:
                domain = domain.without_device(controller.device.label)
            else:
                domain = domain.with_device(controller.target_device)
        return domain

    def unfinished(self) -> list[str]:
        """The devices that have not come through SYNC."""
        labels = [controller.device.label for controller in self.controllers]
        return [label for label in labels if self._finished.get(label) is not Step.SYNC]

    def _here(
        self, controller: AnyController, half: str, settled: Callable[[], None] = lambda: None
    ) -> Here:
        return self._make_here(controller, half, settled)

    async def _recover(self, controllers: Sequence[AnyController], patience: float) -> list[str]:
        async def one(controller: AnyController) -> str:
            label = controller.device.label
            told = self._finished[label]
            start, problem = self._now(), ""
            remedy = "see what keeps it, or raise migration.recover-timeout"
            try:
                async with within(patience, "recovery", remedy):
                    await controller.recover(self._here(controller, "recover"), told)
            except (EntourageError, OSError) as error:
                problem = plain_words(error)
            except Exception as error:  # noqa: BLE001 - a plugin's bug must not stop the others
                problem = f"recovery failed: {error!r}"
            self._emit(
                DeviceRecovered(
                    at=self._now(),
                    device=label,
                    last_good=told,
                    seconds=self._now() - start,
                    error=problem,
                )
            )
            return f"{label}: {problem}" if problem else ""

        began = [c for c in controllers if c.device.label in self._began]
        self._began -= {c.device.label for c in began}  # never told twice
        return [problem for problem in await asyncio.gather(*map(one, began)) if problem]

    @asynccontextmanager
    async def _step(self, step: Step) -> AsyncGenerator[None]:
        start = self._now()
        self._emit(StepStarted(at=start, step=step))
        yield
        self._emit(StepDone(at=self._now(), step=step, seconds=self._now() - start))

    @asynccontextmanager
    async def _device(
        self, controller: AnyController, step: Step, patience: float | None
    ) -> AsyncGenerator[None]:
        """Run one device's step: emit its events, apply its deadline, name it in errors."""
        label = controller.device.label
        start = time.monotonic()
        self._emit(DeviceStepStarted(at=self._now(), device=label, step=step))
        problem = "given up, because something else failed"
        limit = asyncio.timeout(patience)
        try:
            async with limit:
                yield
            problem = ""
            self._finished[label] = step
        except EntourageError as error:
            problem = error.message
            error.device = error.device or label
            raise
        except OSError as error:
            if limit.expired():
                problem = f"step {step.value} ({step.name}) did not end within {patience:g} s"
                remedy = f"see what keeps it, or raise migration.{step.name.lower()}-timeout"
                raise DeadlineError(problem, device=label, remedy=remedy) from error
            problem = plain_words(error)
            raise DeviceError(problem, device=label, remedy=what_to_do(error)) from error
        except Exception as error:  # noqa: BLE001 - raised again, as a bug
            bug = InternalError(error)
            problem = f"its controller has {bug.message}"
            raise DeviceError(problem, device=label, remedy=bug.remedy) from bug
        finally:
            seconds = time.monotonic() - start
            self._emit(
                DeviceStepDone(
                    at=self._now(), device=label, step=step, seconds=seconds, error=problem
                )
            )
