"""A domain of xl's, as xenstore and libxl have it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

from entourage.domain import Domain
from entourage.errors import GoneError, HypervisorError
from entourage.hypervisors.xen.constants import AWAY
from entourage.hypervisors.xen.libxl import Life, life
from entourage.hypervisors.xen.xenstore import ASK_AGAIN, RELEASED, XenStore
from entourage.hypervisors.xen.xl import run, xl

_BACK_WITHIN = 10.0  # seconds for xl to make a domain anew; of these it sleeps for two
_LOOK_EVERY = 0.1  # seconds


class Handle:
    """What xenstore, libxl and xl are asked about one domain.

    Args:
        store: This host's xenstore.
        domid: The domain's number here; None where it is gone.
        domain: What xl says of it.
        config: xl's own configuration of it (JSON).
        log: Where xl writes.

    Attributes:
        store, domid, domain, config, log: As above.
        last: What was seen of it last while it was there; None before.
    """

    def __init__(
        self, store: XenStore, domid: int | None, domain: Domain, config: dict[str, Any], log: Path
    ) -> None:
        self.store = store
        self.domid = domid
        self.domain = domain
        self.config = config
        self.log = log
        self.last: Life | None = None

    def life(self) -> Life | None:
        """What libxl says of it; None where there is no such domain."""
        now = None if self.domid is None else life(self.domid)
        self.last = now or self.last
        return now

    def has_ended(self) -> bool:
        """Whether its guest has; xl may keep the domain, or have made it anew by another number."""
        now = self.life()
        return now is None or now.ended

    async def until_ended(self) -> None:
        """Wait for that."""
        released = await self.store.watch(RELEASED)
        while True:
            released.clear()
            with contextlib.suppress(HypervisorError):  # a question that failed is no answer
                if self.has_ended():
                    return
            with contextlib.suppress(TimeoutError):  # it may be the one event that there will be
                async with asyncio.timeout(ASK_AGAIN):
                    await released.wait()

    async def is_back(self) -> bool:
        """Whether xl has made a domain that has ended anew, as it does when its guest reboots.

        One that was seen to be shut down is not waited for.
        """
        if self.last is not None and self.last.shut_down:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BACK_WITHIN):
                # Xenstore tells of a new domain before that has its UUID there.
                while True:
                    found = await self.store.domain_ids(str(self.domain.uuid))
                    if any(domid != self.domid for domid in found):
                        return True
                    await asyncio.sleep(_LOOK_EVERY)
        return False

    async def run_again(self) -> None:
        """Let the guest run, where xl has not, under its own name.

        Raises:
            GoneError: Its guest has ended.
            HypervisorError: It does not go on.
        """
        now, gone = self.life(), GoneError(f"the machine of {self.domain.name} is gone")
        if now is None or now.ended or self.domid is None:
            raise gone
        if now.suspended:
            program = (sys.executable, "-I", "-m", "entourage.hypervisors.xen.libxl")
            await run(*program, "resume", str(self.domid))
            now = self.life()
            if now is None or now.ended:
                raise gone
            if now.suspended:
                raise HypervisorError(
                    f"{self.domain.name} does not go on",
                    remedy=f"`xl list` and {self.log} tell more",
                )
        if (await self.store.name(self.domid)).endswith(AWAY):
            await xl("rename", str(self.domid), self.domain.name)

    async def destroy(self) -> None:
        """End the copy here; what is gone already is no error."""
        if self.life() is None or self.domid is None:
            return
        with contextlib.suppress(HypervisorError):
            await xl("destroy", str(self.domid))
        if self.life() is not None:
            raise HypervisorError(
                f"xl does not end {self.domain.name}", remedy=f"`xl destroy {self.domid}`"
            )
