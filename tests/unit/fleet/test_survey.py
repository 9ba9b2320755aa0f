"""What a plan is made of: TEST of each pair, by as few commands as there may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest

from entourage.errors import EntourageError
from entourage.fleet import survey as module
from entourage.fleet.remote import Refused, Remote
from entourage.fleet.survey import Survey, in_groups
from entourage.fleet.values import FleetDomain, Host


def domains(host: str, count: int, **more: Any) -> list[FleetDomain]:
    return [
        FleetDomain(name=f"{host}{number}", uuid=f"{host}-{number}", host=host, memory=1, **more)
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ((1,), [1]),
        ((9,), [8, 1]),
        ((8, 2), [8, 2]),
        ((40,), [10] * 4),
        ((400,), [50] * 8),
        ((), []),
    ],
)
def test_no_more_processes_than_are_worth_it_as_there_may_be(
    counts: Sequence[int], sizes: Sequence[int]
) -> None:
    leaving = [one for number, count in enumerate(counts) for one in domains("ab"[number], count)]
    groups = in_groups(leaving)
    assert [len(group) for group in groups] == sizes
    assert [one for group in groups for one in group] == leaving
    assert all(len({one.host for one in group}) == 1 for group in groups)


def test_what_is_off_is_tested_by_itself() -> None:
    """Its command knows no other domain, nor the options of one that runs."""
    runs, off = domains("a", 2), domains("b", 2, off=True)
    assert in_groups([runs[0], off[0], runs[1], off[1]]) == [runs, off[:1], off[1:]]


class Asked:
    """Hosts of which c refuses each second domain, and d does not answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], str, str]] = []
        self.busy: set[str] = set()
        self.most = 0

    async def test(
        self,
        names: Sequence[str],
        source: str,
        target: str,
        options: Sequence[str],
        told: Callable[[], None],
    ) -> Mapping[str, Sequence[Refused]]:
        assert not self.busy.intersection(names), "two commands would have the same domain's lock"
        self.busy.update(names)
        self.most = max(self.most, len(self.busy))
        await asyncio.sleep(0)  # others may come
        self.asked.append((tuple(names), source, target))
        assert options == ["--tls"]
        for name in names:
            told()
            self.busy.remove(name)
        if target == "d":
            raise EntourageError("d is away", remedy="wait")
        odd = target == "c"
        return {name: [("no", "")] if odd and int(name[-1]) % 2 else [] for name in names}


async def test_each_domain_is_tested_against_each_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remote = Asked()
    hosts = [Host(name=name, memory=9, free=9) for name in "bcd"]
    closed = Host(name="e", memory=9, free=9, closed="it is cordoned")
    monkeypatch.setattr(module, "_WORTH_ONE", 1)
    leaving = [*domains("a", 5), *domains("b", 1, pinned=True)]
    told: list[tuple[int, int]] = []
    found = await module.tests_of(
        cast("Remote", remote),
        Survey([*hosts, closed], leaving, ()),
        lambda done, count: told.append((done, count)),
        ["--tls"],
    )
    assert sorted({len(names) for names, _, _ in remote.asked}) == [1, 2]
    assert told == [(number + 1, 15) for number in range(15)]
    assert found.asked == 15
    assert found.refused == {
        **{(f"a-{number}", "d"): [("d is away", "wait")] for number in range(5)},
        **{(f"a-{number}", "c"): [("no", "")] for number in (1, 3)},
    }
    assert 2 < remote.most <= module.TESTS_AT_ONCE * 2  # of two domains each
