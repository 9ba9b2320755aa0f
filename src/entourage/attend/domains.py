"""Which domains of this host are attended, as their toolstack shows them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from entourage.attend import shown
from entourage.attend.attended import Attended
from entourage.attend.devices import attended_part
from entourage.errors import ConfigError, HypervisorError
from entourage.hypervisors.attended.toolstack import Shown, Toolstack
from entourage.journal.lock import lock_holder
from entourage.settings.model import Settings

_log = logging.getLogger(__name__)
ALL = "*"
"""In the place of a domain's name: all of them."""


class Domains:
    """The attended domains of one host, by their UUID.

    Args:
        settings: This host's.
        toolstack: This host's.
        again: Has ``look`` called a little later.
    """

    def __init__(
        self, settings: Settings, toolstack: Toolstack, again: Callable[[str], None]
    ) -> None:
        self._again = again
        self._settings = settings
        self._toolstack = toolstack
        self._known: dict[str, Attended] = {}
        self._looking: dict[str, asyncio.Lock] = {}
        self._buses = Path(f"{settings.paths.run}-attend")
        self._off = Path(settings.paths.state, "attend.off")
        self._owner = 0

    def __len__(self) -> int:
        return len(self._known)

    def open(self) -> None:
        """Make the directory of the buses, and forget what an earlier daemon has shown."""
        shown.clear(self._settings)
        # QEMU's user must get as far as its own socket, and can open no other's.
        self._buses.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._buses.chmod(0o711)

    async def close(self) -> None:
        """Attend none any more; where nothing may be left behind, none can migrate then."""
        for one in self._known.values():
            if self._settings.attend.unattended == "allow":
                await one.withdraw()
            await one.close()
        shown.clear(self._settings)

    def get(self, uuid: str) -> Attended | None:
        """The domain, where it is attended, or about to come."""
        return self._known.get(uuid)

    def expect(self, uuid: str) -> Attended:
        """The domain, which is about to come."""
        return self._known.get(uuid) or self._new(uuid)

    def is_busy(self, uuid: str) -> bool:
        """Whether a migration of it is under way."""
        one = self._known.get(uuid)
        return one is not None and one.busy

    async def follow(self) -> AsyncIterator[str]:
        """Look at all domains when the toolstack is (again) there, and yield what then changes."""
        async for uuid in self._toolstack.changes():
            if uuid:
                yield uuid
                continue
            with contextlib.suppress(HypervisorError):
                self._owner = await self._toolstack.owner()
                await self._look_at_all()
            yield ""

    async def _look_at_all(self) -> None:
        for each in {*await self._toolstack.running(), *self._known}:
            await self.look(each)

    async def look(self, uuid: str) -> None:
        """Attend a domain, or not any more, as it is now. One look at a time."""
        lock = self._looking.setdefault(uuid, asyncio.Lock())
        async with lock:
            if self.is_busy(uuid):
                return  # it is looked at when that is over
            if lock_holder(Path(self._settings.paths.run), uuid) is not None:
                self._again(uuid)  # another command moves it, or settles what was left
                return
            try:
                await self._look(uuid)
            except HypervisorError as error:
                _log.warning("%s cannot be looked at: %s", uuid, error)
        if uuid not in self._known:
            self._looking.pop(uuid, None)

    async def _look(self, uuid: str) -> None:
        one, seen = self._known.get(uuid), await self._toolstack.shown(uuid)
        if seen is Shown.HELD:
            return
        if seen in {Shown.OFF, Shown.ABSENT}:
            if one is not None:
                await self._drop(one)
            return
        name, problem, domain = uuid, "", None
        try:
            whole = await self._toolstack.read(uuid)
            name, domain = whole.name, attended_part(whole, self._settings)
        except (ConfigError, HypervisorError) as error:
            if one is None and not isinstance(error, ConfigError):
                return  # nothing says that it has anything for us
            problem = str(error)
        if domain is not None and not domain.devices:
            if one is not None:
                await one.withdraw()
                await self._drop(one)
            return
        one = one or self._new(uuid)
        one.domain = domain or one.domain
        await self._attend(one, name, problem)

    async def _attend(self, one: Attended, name: str, problem: str) -> None:
        off = bool({name, ALL} & self._names_off())
        if off:
            await one.withdraw()
        elif not problem:
            try:
                await one.open()
                await one.announce(guard=self._settings.attend.unattended == "refuse")
            except HypervisorError as error:
                problem = str(error)
        if problem and problem != one.problem:
            _log.error("%s is not attended: %s", name, problem)
        one.problem = problem
        devices = one.domain.devices if one.domain is not None else ()
        shown.write(
            self._settings,
            shown.AttendedDomain(
                domain=name,
                uuid=one.uuid,
                devices=tuple(device.label for device in devices),
                problem=problem,
                off=off,
                last=one.last,
            ),
        )

    async def left_out(self, uuid: str) -> None:
        """A domain that was expected did not come."""
        one = self._known.get(uuid)
        if one is not None and not one.busy and one.domain is None:
            await self._drop(one)

    def _new(self, uuid: str) -> Attended:
        one = Attended(uuid, self._toolstack, self._buses / f"{uuid}.sock", self._owner)
        self._known[uuid] = one
        return one

    async def _drop(self, one: Attended) -> None:
        self._known.pop(one.uuid, None)
        await one.close()
        if one.last is None or one.last.outcome == "moved":  # else its user may ask why
            shown.forget(self._settings, one.uuid)

    def _names_off(self) -> set[str]:
        """The names of the domains that are not to be attended."""
        try:
            return set(self._off.read_text(encoding="utf-8").splitlines())
        except FileNotFoundError:
            return set()

    async def switch(self, name: str, *, off: bool) -> str:
        """Attend a domain no more, or again; what was done, as a sentence."""
        names = self._names_off()
        if off:
            names.add(name)
        else:
            names = names - {name} if name != ALL else set[str]()
        self._off.write_text("\n".join(sorted(names)) + "\n", encoding="utf-8")
        await self._look_at_all()
        what = "all domains" if name == ALL else name
        known = {one.domain.name for one in self._known.values() if one.domain is not None}
        more = "" if name in {ALL, *known} else " (no domain of that name is attended here now)"
        return f"{what}: {'not attended any more' if off else 'attended again'}{more}"
