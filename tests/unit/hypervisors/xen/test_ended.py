"""A domain of Xen's that ends by itself: off for good, or made anew since its guest reboots."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.domain import Domain
from entourage.errors import GoneError, HypervisorError
from entourage.hypervisors.xen import handle, libxl
from entourage.hypervisors.xen.handle import Handle
from entourage.hypervisors.xen.libxl import Life
from entourage.hypervisors.xen.machine import XenMachine
from entourage.settings.model import Settings

UUID = "3e5948d6-8285-4068-8236-a0e7729aaa7a"
DOMAIN = Domain(name="web1", uuid=UUID, memory=1 << 20)
RUNS = Life(paused=False, cpu_time=1)
OFF = Life(paused=False, why_off=0, cpu_time=1)
REBOOTS = Life(paused=False, why_off=1, cpu_time=1)


class Store:
    """A fake of xenstore: what happens to domain 7, one look after the other."""

    def __init__(self, lives: list[Life | None], there: list[list[int]]) -> None:
        self._lives, self._there = lives, there
        self._released = asyncio.Event()
        self._released.set()

    def life(self, _domid: int) -> Life | None:
        self._released.set()
        return self._lives.pop(0) if self._lives else None

    async def watch(self, _path: str) -> asyncio.Event:
        return self._released

    async def domain_ids(self, _uuid: str) -> list[int]:
        return self._there.pop(0) if len(self._there) > 1 else self._there[0]


NOWHERE: list[int] = []
ANEW = "xl has made it anew (guest-reboot)"
SHUT_DOWN = "its guest has shut it down (guest-shutdown)"
NOT_YET = "its guest rebooted, and xl has not made it anew so far"


@pytest.mark.parametrize(
    ("lives", "there", "why"),
    [
        ([RUNS, RUNS, OFF, OFF, None], [[8]], SHUT_DOWN),  # somebody else started it
        ([RUNS, RUNS, REBOOTS, REBOOTS, None], [[7], NOWHERE, [8]], ANEW),
        ([RUNS, RUNS, REBOOTS, REBOOTS, None], [NOWHERE], NOT_YET),
        ([RUNS, RUNS, None], [NOWHERE, [8]], ANEW),
        ([RUNS, RUNS, None], [NOWHERE], "xl knows it no more"),
    ],
    ids=["off", "reboots", "is not made anew", "was not seen", "was not seen, and is off"],
)
async def test_what_became_of_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    lives: list[Life | None],
    there: list[list[int]],
    why: str,
) -> None:
    store: Any = Store(lives, there)
    monkeypatch.setattr(handle, "life", store.life)
    monkeypatch.setattr(handle, "_LOOK_EVERY", 0)
    monkeypatch.setattr(handle, "_BACK_WITHIN", 0.1 if why != ANEW else 20)
    one = Handle(store, 7, DOMAIN, {}, tmp_path / "web1.log")
    assert await XenMachine(one, Settings()).died() == why


async def test_one_that_is_kept_after_its_end_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store: Any = Store([OFF], [[7]])
    monkeypatch.setattr(handle, "life", store.life)
    one = Handle(store, 7, DOMAIN, {}, tmp_path / "web1.log")
    with pytest.raises(GoneError):
        await one.run_again()


@pytest.mark.parametrize("status", [-21, -3])
def test_only_a_domain_that_is_not_found_is_gone(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Else one that lives would be given up for a hypercall that failed once."""

    def libxl_domain_info(_context: object, _info: object, _domid: int) -> int:
        return status

    library = SimpleNamespace(libxl_domain_info=libxl_domain_info)
    monkeypatch.setattr(libxl, "_library", lambda: library)
    monkeypatch.setattr(libxl, "_context", lambda: None)
    if status == -21:
        assert libxl.life(7) is None
    else:
        with pytest.raises(HypervisorError, match="what becomes of domain 7"):
            libxl.life(7)
