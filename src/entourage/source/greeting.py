"""The first words on a link, said by the source: who calls, and in which protocol."""

from __future__ import annotations

import time

from entourage import messages
from entourage.clock import Clock
from entourage.errors import PeerVersionError
from entourage.hosts.link import Link
from entourage.version import __version__


def hello_of(migration: str, source: str, hypervisor: str) -> messages.Hello:
    """The first word on a link: who calls, about which migration, and for which hypervisor."""
    return messages.Hello(
        version=__version__,
        protocol=messages.OLDEST,
        newest=messages.NEWEST,
        migration=migration,
        source=source,
        hypervisor=hypervisor,
    )


async def greet(link: Link, clock: Clock, hello: messages.Hello) -> messages.Welcome:
    """Exchange Hello and Welcome, agree on a protocol, and measure the clock's offset.

    Raises:
        LinkLost, PeerVersionError: There is nobody to talk to.
    """
    asked = time.monotonic_ns()
    welcome = await link.call(messages.HELLO, hello)
    asked, welcome = time.monotonic_ns(), await link.call(messages.HELLO, hello)
    clock.set_by(asked, time.monotonic_ns(), welcome.clock)
    if not hello.protocol <= welcome.protocol <= (hello.newest or hello.protocol):
        raise PeerVersionError(
            f"Entourage {welcome.version} there speaks protocol {welcome.protocol},"
            f" {__version__} here speaks {hello.speaks}",
            host=link.peer,
            remedy="install the same version on both hosts",
        )
    return welcome
