"""What is told of a guest that has ended by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from entourage.source.endings import guest_ended


@pytest.mark.parametrize(
    ("why", "said", "remedy"),
    [
        (
            "QEMU has ended (guest-shutdown)",
            "was shut down from inside while it moved",
            "xl create",
        ),
        ("QEMU has ended (SIGKILL)", "has ended (QEMU has ended (SIGKILL)) while it", "xl create"),
        (
            "xl has made it anew (guest-reboot)",
            "it has a new machine on a",
            "entourage migrate web1 b",
        ),
    ],
)
async def test_how_it_ended_and_what_to_do(why: str, said: str, remedy: str) -> None:
    async def died() -> str:
        return why

    session: Any = SimpleNamespace(
        machine=SimpleNamespace(domain=SimpleNamespace(name="web1"), died=died),
        source="a",
        host="a",
        kind="move",
        target="b",
        hypervisor="xen",
    )
    error = await guest_ended(session, [])
    assert said in error.message
    assert ("off on a" in error.message) is ("xl create" in error.remedy)
    assert "nothing of it is left on b" in error.message
    assert remedy in error.remedy
