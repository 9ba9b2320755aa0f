"""Where a migration of ours meets the calls of QEMU's ``dbus-vmstate``: one object on each host.

The object on the source waits in ``save`` and the one on the target in ``load``, both called by the
domain's QEMU while its guest stands still; the machine's two halves call the other methods. QEMU
gives such a call up after 25 seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from entourage.errors import HypervisorError

ID: Final = "entourage"
"""How the helper is called in the ``id-list`` of QEMU's object."""
PATIENCE: Final = 20.0
"""Seconds that a guest may stand still at most, whatever the settings allow: QEMU waits for 25."""
_MARK = b"entourage attend 1 "


def state_of(nonce: str) -> bytes:
    """What goes through QEMU's stream."""
    return _MARK + nonce.encode()


class SourceSwitchover:
    """The switchover on the source.

    Args:
        nonce: What tells this migration from others.
        way_back: Whether a Load that is refused brings the guest back: then QEMU sends the rest
            beside the devices' transfer, else only once the target has recorded GO.

    Attributes:
        saved_at: When QEMU has called Save, in ns of the monotonic clock; 0 where it has not.
        stands_still: Whether the guest was stopped for its switchover.
    """

    def __init__(self, nonce: str, *, way_back: bool = True) -> None:
        self.saved_at = 0
        self._way_back = way_back
        self.stands_still = False
        self._nonce = nonce
        self._ready = False
        self._why_not = ""
        self._saved = asyncio.Event()
        self._answered = asyncio.Event()

    def check(self) -> None:
        """See that QEMU may ask for our state; raises HypervisorError where it may not."""
        if self._why_not:
            raise HypervisorError(self._why_not)
        if not self._ready:
            raise HypervisorError("its devices are not prepared: the target has not asked for them")

    async def expect(self) -> None:
        """QEMU asks who has state: its guest has stopped.

        Where there is no way back, it waits here: it still gives up here, which a Save that is
        refused would not have it do.

        Raises:
            HypervisorError: The migration is refused.
        """
        self.check()
        if not self._way_back:
            await self._wait()

    async def save(self) -> bytes:
        """QEMU asks for our state: its guest has stopped.

        Raises:
            HypervisorError: The migration is refused.
        """
        self.check()
        await self._wait()
        return state_of(self._nonce)

    async def _wait(self) -> None:
        """Say that the guest has stopped, and wait until QEMU may go on, or may not."""
        if not self.saved_at:
            self.saved_at = time.monotonic_ns()
        self.stands_still = True
        self._saved.set()
        await self._answered.wait()
        if self._why_not:
            raise HypervisorError(self._why_not)

    def ready(self) -> None:
        """Every device is prepared: the guest may stop from now on."""
        self._ready = True

    async def saved(self) -> int:
        """Wait for QEMU's Save; that moment, in ns of the monotonic clock."""
        await self._saved.wait()
        return self.saved_at

    def go_on(self) -> None:
        """Let QEMU send the rest, where it can still come back."""
        if self._way_back:
            self._answered.set()

    def go(self) -> None:
        """The target has recorded GO: let QEMU send the rest in any case."""
        self._answered.set()

    def refuse(self, why: str) -> None:
        """Have QEMU's migration fail, now or when it calls Save; too late where that was answered.

        Then the target's Load is refused, because its half was given up as well.
        """
        self._why_not = why
        self._answered.set()


class TargetSwitchover:
    """The switchover on the target.

    Args:
        nonce: What tells this migration from others.
        way_back: As for ``SourceSwitchover``.
        on_go: Called when GO is recorded.

    Attributes:
        listening: Set when every device is prepared: the hook may answer.
        joined: Set when QEMU has its object, without which it cannot load the stream.
        stands_still: Whether the guest waits for its devices.
    """

    def __init__(
        self,
        nonce: str,
        *,
        way_back: bool = True,
        on_go: Callable[[], None] = lambda: None,
    ) -> None:
        self._nonce = nonce
        self._way_back = way_back
        self._on_go = on_go
        self.listening = asyncio.Event()
        self.joined = asyncio.Event()
        self.stands_still = False
        self._loaded = asyncio.Event()
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def load(self, state: bytes) -> None:
        """QEMU has all of memory; returns once its guest may run.

        Raises:
            HypervisorError: It may not.
        """
        if state != state_of(self._nonce):
            raise HypervisorError("it is the state of another migration")
        self.stands_still = True
        self._loaded.set()
        await asyncio.shield(self._answer)

    async def loaded(self) -> None:
        """Wait until QEMU has all of memory.

        Where there is no way back that is after GO, which is said once QEMU can load the stream.
        """
        await (self._loaded if self._way_back else self.joined).wait()

    def let_run(self) -> None:
        """Let the guest run, as far as we are concerned."""
        if not self._answer.done():
            self._answer.set_result(None)
            self._on_go()

    @property
    def in_the_air(self) -> bool:
        """Whether the guest is this host's already, and QEMU has not yet asked whether it may run.

        Only where there is no way back.
        """
        granted = self._answer.done() and not self._answer.exception()
        return granted and not self._loaded.is_set()

    def refuse(self, why: str) -> None:
        """Never let it run."""
        if not self._answer.done():
            self._answer.set_exception(HypervisorError(why))
            self._answer.exception()  # retrieved: perhaps nobody waits

    def end(self, why: str) -> None:
        """The machine is gone, or will never come."""
        if not self._ended.done():
            self._ended.set_result(why)

    async def ended(self) -> str:
        """Returns, with the reason, when the machine is gone; never before."""
        return await asyncio.shield(self._ended)
