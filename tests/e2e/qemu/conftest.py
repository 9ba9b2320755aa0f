"""Two hosts by their directories, for the QEMU backend without the engine."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from entourage.hosts.resources import end_processes
from tests.e2e.qemu.hosts import (
    Host,
    Hosts,
)


@pytest.fixture
async def hosts() -> AsyncGenerator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="qb-") as root:
        both = Hosts(Host.make(Path(root, "a")), Host.make(Path(root, "b")))
        yield both
        for move in both.moves:
            await move.let_go()
        for host in (both.a, both.b):
            for record in host.root.glob("run/q/*/running.json"):
                await end_processes(msgspec.json.decode(record.read_bytes())["marker"])
        left = [*both.a.processes(), *both.b.processes()]
        assert not left, left
