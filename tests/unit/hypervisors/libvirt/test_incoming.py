"""What the target's half makes of a Finish that failed: it looks, and never guesses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from entourage.domain import Domain
from entourage.errors import HypervisorError, InDoubt
from entourage.hypervisors.libvirt import incoming as module
from entourage.hypervisors.libvirt.agentless import AgentlessIncoming
from entourage.hypervisors.libvirt.arrival_notes import Notes, arrival_notes
from entourage.hypervisors.libvirt.connection import Connection, LostError
from entourage.hypervisors.libvirt.constants import State
from entourage.hypervisors.libvirt.incoming import LibvirtIncoming

DOMAIN = Domain(name="web1", uuid="5b6e6d0e-0000-4000-8000-000000000001", memory=1 << 28)


class Machine:
    """A fake of ``virDomain``: it is in this state, and stays there."""

    def __init__(self, state: State, *, defined: bool) -> None:
        self._state, self._defined = state, defined

    def state(self, _flags: int) -> tuple[int, int]:
        return self._state, 0

    def isPersistent(self) -> bool:  # noqa: N802 - libvirt's
        return self._defined

    def jobInfo(self) -> list[int]:  # noqa: N802 - libvirt's
        return [0]

    def destroy(self) -> None:
        """Nothing: it does not end."""

    def connect(self) -> Machine:
        return self

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's
        return 11_003_000

    def undefineFlags(self, _flags: int) -> None:  # noqa: N802 - libvirt's
        """Nor this."""


class Fake:
    """A fake of a connection: it shows these, one after the other, and the last for ever."""

    def __init__(self, *shown: Machine | LostError | None) -> None:
        self._shown: Iterator[Machine | LostError | None] = iter(shown)
        self._last: Machine | LostError | None = None

    async def domain(self, _uuid: str) -> Machine | None:
        self._last = next(self._shown, self._last)
        if isinstance(self._last, LostError):
            raise self._last
        return self._last

    async def alive(self) -> bool:
        return True

    async def close(self) -> None:
        """Nothing."""


class Local(LibvirtIncoming):
    """With such a connection, or none at all."""

    def __init__(self, connection: Fake | None, notes: Path | None = None) -> None:
        super().__init__("qemu:///system", DOMAIN, notes)
        self.connection: Any = connection

    async def _open(self, patience: float = 0) -> Connection:
        if self.connection is None:
            raise LostError("libvirtd has not come back")
        return self.connection

    async def has_run(self) -> bool:
        return await self._has_run(paused=False)


@pytest.mark.parametrize(
    ("shown", "ran"),
    [
        ([None], False),
        ([Machine(State.RUNNING, defined=True)], True),
        ([Machine(State.SHUT_OFF, defined=True)], True),  # it may have run, and is dead
        ([Machine(State.PAUSED, defined=False), None], False),  # libvirtd ends it by itself
        (
            [Machine(State.PAUSED, defined=True), Machine(State.RUNNING, defined=True)],
            True,
        ),
    ],
)
async def test_what_is_there_decides(shown: list[Machine | None], ran: bool) -> None:  # noqa: FBT001
    assert await Local(Fake(*shown)).has_run() is ran


@pytest.mark.parametrize(
    "connection",
    [None, Fake(LostError("gone")), Fake(Machine(State.PAUSED, defined=False), LostError("again"))],
)
async def test_who_does_not_say_leaves_it_in_doubt(connection: Fake | None) -> None:
    """Also where it goes away a second time: that is no proof that the guest never ran."""
    with pytest.raises(InDoubt, match="web1"):
        await Local(connection).has_run()


async def test_what_does_not_end_is_not_said_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETTLES_WITHIN", 0.0)
    stays = Local(Fake(Machine(State.PAUSED, defined=False)))
    with pytest.raises(HypervisorError, match="does not end web1"):
        await stays.kill()
    with pytest.raises(InDoubt, match="does not end web1"):
        await stays.has_run()


async def test_a_definition_is_put_back_only_once_it_is_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this process died in between, the next would take it for one that Finish has written."""
    monkeypatch.setattr(module, "_SETTLES_WITHIN", 0.0)
    path = tmp_path / "x.arrival"
    arrival_notes(path).write(Notes(replaced="<domain/>"))
    unfinished = Machine(State.PAUSED, defined=False)
    assert not await Local(Fake(unfinished, unfinished, None), path).has_run()
    assert path.exists()


async def test_another_host_at_that_address_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would say in good faith that there is neither a machine nor a definition."""
    answers: Any = Fake(None)

    async def opened(uri: str) -> Any:
        assert uri == "qemu+tls://b/system"
        return answers

    async def identity(connection: Any) -> str:
        assert connection is answers
        return "uuid-of-c/c"

    monkeypatch.setattr(Connection, "open", opened)
    monkeypatch.setattr("entourage.hypervisors.libvirt.agentless._identity", identity)
    known = AgentlessIncoming("qemu+tls://b/system", DOMAIN, "uuid-of-b/b")
    with pytest.raises(LostError, match="another host answers"):
        await known.attach()
    assert await AgentlessIncoming("qemu+tls://b/system", DOMAIN, "uuid-of-c/c").attach()


class Ended:
    """A fake of the watch over swtpm: one has ended."""

    one_has_ended = True

    async def ended(self) -> None:
        """At once."""


@pytest.mark.parametrize(("lasts", "reason"), [(0.01, "Assertion failed"), (60, "TPM emulator")])
async def test_a_swtpm_that_ends_with_its_qemu_is_not_the_reason(
    lasts: float, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is its end that swtpm has noticed: what QEMU said last is the reason."""
    monkeypatch.setattr(module, "_ENDS_AFTER", 0.1)

    class Dying(Local):
        async def _machine_ended(self) -> str:
            await asyncio.sleep(lasts)
            return "Assertion failed"

        def watch(self) -> None:
            self._emulators: Any = Ended()

    dying = Dying(None)
    dying.watch()
    assert reason in await dying.died()


@pytest.mark.parametrize(
    ("state", "refuses", "taken"),
    [(State.PAUSED, False, True), (State.RUNNING, False, False), (State.PAUSED, True, True)],
)
async def test_one_that_stays_paused_has_its_images(
    monkeypatch: pytest.MonkeyPatch, state: State, *, refuses: bool, taken: bool
) -> None:
    """Or its QEMU would end itself when it is moved again; where it cannot, that is told."""
    told: list[Any] = []

    async def take(raw: Any) -> None:
        told.append(raw)
        if refuses:
            raise HypervisorError("QEMU says no")

    async def refresh(_connection: Any, _paths: Any) -> None:
        """It has no pools."""

    monkeypatch.setattr(module, "take_images", take)
    monkeypatch.setattr(module.volumes, "refresh", refresh)
    incoming = Local(Fake(Machine(state, defined=True)))
    says = r"while it is paused: QEMU says no \(.*virsh resume web1\)"
    with pytest.raises(HypervisorError, match=says) if refuses else nullcontext():
        await incoming.finish_arrival()
    assert bool(told) == taken
