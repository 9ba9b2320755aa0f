"""A libvirt domain whose guest has QEMU's own guest agent, and is told what becomes of it."""

from __future__ import annotations

import time
from typing import ClassVar
from xml.etree import ElementTree as ET

from lab.libvirtd import Libvirtd
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.run import PATIENCE
from tests.unit.eventually import wait_until

AGENT = "org.qemu.guest_agent.0"
NOTICE = """
[[notice]]
id = "told"
program = "/bin/notice"
"""


class TalkingWorld(LibvirtWorld):
    """The agent listens before any test begins.

    Attributes:
        known: How many calls of the guest's program tests have seen.
    """

    agent: ClassVar = True
    known: int = 0

    def _boot(self, what: str) -> None:
        super()._boot(what)
        wait_until(self.listens)
        self.running = self.here.snapshot()

    def listens(self) -> bool:
        """Whether libvirt has heard of the agent."""
        xml = ET.fromstring(Libvirtd(self.here).virsh("dumpxml", self.name).stdout)  # noqa: S314
        found = xml.iterfind(f"devices/channel/target[@name='{AGENT}']")
        return [each.get("state") for each in found] == ["connected"]

    def told_so(self, *new: str) -> None:
        """Wait until the guest's program was called so, and not otherwise, since it was asked."""
        deadline = time.monotonic() + PATIENCE
        while len(told := self.guest.notices()[self.known :]) < len(new):
            assert time.monotonic() < deadline, told
            time.sleep(0.05)  # the agent runs it when it gets to that
        assert told == list(new), told
        self.known += len(told)
