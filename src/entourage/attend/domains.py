"""Which domains of this host are attended, as their toolstack shows them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from entourage.attend import off as switches
from entourage.attend import shown
from entourage.attend.attended import Attended
from entourage.attend.backoff import Backoff
from entourage.attend.devices import attended_part
from entourage.attend.off import ALL
from entourage.attend.turns import Turns
from entourage.errors import ConfigError, EntourageError, HypervisorError, plain_words
from entourage.hosts.threads import in_thread
from entourage.hypervisors.attended.toolstack import ENDED, Shown, Toolstack
from entourage.journal.lock import lock_holder
from entourage.settings.model import Settings

_log = logging.getLogger(__name__)
_AT_ONCE = 8
"""Domains that are looked at: each takes a thread."""
_SOON, _AT_LAST = 1.0, 60.0  # seconds to the next look, where the last one led to nothing
_CLOSES_WITHIN = 35.0  # seconds: libvirt waits for 30 for what it is at


class Domains:
    """The attended domains of one host, by their UUID.

    Args:
        settings: This host's.
        toolstack: This host's.
        again: Has ``look`` called so many seconds later.
    """

    def __init__(
        self, settings: Settings, toolstack: Toolstack, again: Callable[[str, float], None]
    ) -> None:
        self._again = again
        self._settings = settings
        self._toolstack = toolstack
        self._known: dict[str, Attended] = {}
        self._turns = Turns()
        self.turn = self._turns.of
        self._backoff = Backoff(_SOON, _AT_LAST)
        self._buses = Path(f"{settings.paths.run}-attend")
        self._owner = 0
        self._last: dict[str, shown.LastTry] = {}

    def __len__(self) -> int:
        return len(self._known)

    def open(self) -> None:
        """Make the directory of the buses, and read what an earlier daemon has shown."""
        told = shown.read_all(self._settings)
        self._last = {one.uuid: one.last for one in told if one.last is not None}
        # QEMU's user must get as far as its own socket, and can open no other user's.
        self._buses.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._buses.chmod(0o711)

    async def close(self) -> None:
        """Attend none any more; where nothing may be left behind, none can migrate then."""
        closing = [asyncio.create_task(self._close(one)) for one in self._known.values()]
        if closing:
            await asyncio.wait(closing, timeout=_CLOSES_WITHIN)

    async def _close(self, one: Attended) -> None:
        if self._settings.attend.unattended == "allow":
            with contextlib.suppress(HypervisorError):
                await one.withdraw()
        await one.close()

    def get(self, uuid: str) -> Attended | None:
        """The domain, where it is attended, or about to come."""
        return self._known.get(uuid)

    def expect(self, uuid: str) -> Attended:
        """The domain, which is about to come; in its turn."""
        return self._known.get(uuid) or self._new(uuid)

    def is_busy(self, uuid: str) -> bool:
        """Whether a migration of it is under way."""
        one = self._known.get(uuid)
        return one is not None and one.busy

    @property
    def any_busy(self) -> bool:
        """Whether a migration of any is under way."""
        return any(one.busy for one in self._known.values())

    @property
    def any_stands_still(self) -> bool:
        """Whether the guest of any stands still for its migration."""
        return any(one.stands_still for one in self._known.values())

    async def follow(self) -> AsyncIterator[str]:
        """Look at all domains when the toolstack is (again) there, and yield what then changes."""
        async for uuid in self._toolstack.changes():
            if not uuid:
                await self._look_at_first()
            yield uuid

    async def _look_at_first(self) -> None:
        backoff = Backoff(_SOON, _AT_LAST)
        while True:
            try:
                self._owner = await self._toolstack.owner()
                await self._look_at_all()
                await self._toolstack.clear_notes()
                for each in shown.read_all(self._settings):  # what an earlier daemon has shown
                    if each.uuid not in self._known:
                        shown.left(self._settings, each)
                        await self.look(each.uuid)
            except (EntourageError, OSError, ValueError) as error:
                _log.warning("the domains cannot be looked at: %s", plain_words(error))
                await asyncio.sleep(backoff.pause())
            else:
                return

    async def _look_at_all(self) -> None:
        some = asyncio.Semaphore(_AT_ONCE)

        async def look(uuid: str) -> None:
            async with some:
                await self.look(uuid)

        running = await self._toolstack.running()
        async with asyncio.TaskGroup() as looks:
            for each in {*running, *self._known}:
                looks.create_task(look(each))

    async def look(self, uuid: str) -> None:
        """Attend a domain, or not any more, as it is now; again, later, where that cannot be."""
        async with self.turn(uuid):
            if self.is_busy(uuid):
                return  # it is looked at when that is over
            if lock_holder(Path(self._settings.paths.run), uuid) is not None:
                self._again(uuid, _SOON)  # another command moves it, or settles what was left
                return
            try:
                done = await self._look(uuid)
            except (EntourageError, OSError, ValueError) as error:
                _log.warning("%s cannot be looked at: %s", uuid, plain_words(error))
                done = False
            if done:
                self._backoff.reset(uuid)
            else:
                self._again(uuid, self._backoff.pause(uuid))

    async def _look(self, uuid: str) -> bool:
        """Look, in its turn; False where it must be looked at again."""
        one, seen = self._known.get(uuid), await self._toolstack.shown(uuid)
        if seen is Shown.HELD:
            return True  # it is told when that is over
        if seen in ENDED:
            if one is not None:
                await self._drop(one)
                await self._toolstack.clear_notes()
            if seen is Shown.ABSENT:  # another one may have its name
                shown.forget(self._settings, uuid)
            return True
        name, problem, domain = uuid, "", None
        try:
            whole = await self._toolstack.read(uuid)
            name, domain = whole.name, attended_part(whole, self._settings)
        except ConfigError as error:
            problem = str(error)
        except HypervisorError:
            if one is None:
                return True  # nothing says that it has anything for us
            raise
        if domain is not None and not domain.devices and one is None:
            return True
        if await self._toolstack.migrates(uuid):
            return False  # until then libvirt would let nobody change it
        if domain is not None and not domain.devices:
            if one is not None:
                await one.withdraw()
                await self._drop(one)
            return True
        one = one or self._new(uuid)
        one.domain = domain or one.domain
        return await self._attend(one, name, problem)

    async def _attend(self, one: Attended, name: str, problem: str) -> bool:
        done, is_off = True, switches.read(self._settings).has(name)
        try:
            if is_off:
                await one.withdraw()
            elif not problem:
                await one.open()
                await one.announce(guard=self._settings.attend.unattended == "refuse")
        except HypervisorError as error:
            problem, done = str(error), False
        if problem and problem != one.problem:
            _log.error("%s is not attended: %s", name, problem)
        one.problem = problem
        shown.write(self._settings, one.shown(name, is_off=is_off))
        return done

    async def left_out(self, uuid: str) -> None:
        """A domain that was expected did not come."""
        async with self.turn(uuid):
            one = self._known.get(uuid)
            if one is not None and not one.busy and one.domain is None:
                await self._drop(one)

    def _new(self, uuid: str) -> Attended:
        one = Attended(uuid, self._toolstack, self._buses / f"{uuid}.sock", self._owner)
        one.last = self._last.get(uuid)
        self._known[uuid] = one
        return one

    async def _drop(self, one: Attended) -> None:
        self._known.pop(one.uuid, None)
        self._last.pop(one.uuid, None)
        await one.close()
        name = one.domain.name if one.domain is not None else one.uuid
        shown.left(self._settings, one.shown(name))

    async def switch(self, name: str, *, off: bool) -> str:
        """Attend a domain no more, or again; what was done, as a sentence.

        Raises:
            ConfigError, OSError: What was switched before cannot be read, or this not be written.
        """
        async with self.turn(ALL):  # of two at once, one would undo the other
            now = switches.read(self._settings).switched(name, off=off)
            await in_thread(switches.write, self._settings, now)
        await self._look_at_all()
        what = "all domains" if name == ALL else name
        known = {one.domain.name for one in self._known.values() if one.domain is not None}
        more = "" if name in {ALL, *known} else " (no domain of that name is attended here now)"
        return f"{what}: {'not attended any more' if off else 'attended again'}{more}"
