"""Plans that a user has changed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import pytest

from entourage.errors import UsageError
from entourage.fleet.given import adopted
from entourage.fleet.survey import Survey
from entourage.fleet.values import FleetDomain, Host, Move, Plan
from tests.unit.fleet.test_planner import GIB, domain, host

HOSTS = (host("b", 8), host("c", 2, labels={"rack": "2"}))
REFUSED: Mapping[tuple[str, str], Sequence[tuple[str, str]]] = {}


def found(*leaving: FleetDomain, residents: Sequence[FleetDomain] = ()) -> Survey:
    return Survey(hosts=HOSTS, leaving=leaving, residents=residents)


def to(one: FleetDomain, target: str, **changed: object) -> Move:
    return msgspec.structs.replace(Move.of(one, target), **changed)


def test_what_it_is_called_and_needs_is_what_its_host_says() -> None:
    """Else another guest would move, and its room would be promised as what the file says."""
    x = domain("x", 2, devices={"usb:1050:0407": 1})
    hosts = [host("b", 8, devices={"usb:1050:0407": 1})]
    given = Plan(moves=[to(x, "b", name="y", memory=-5, devices={})])
    assert adopted(given, found(x), REFUSED, hosts).moves == [Move.of(x, "b")]


@pytest.mark.parametrize(
    ("one", "target", "says"),
    [
        (domain("x", pinned=True), "b", "x to b: it is pinned to a"),
        (domain("x", require={"rack": "2"}), "b", "x to b: rack is not 2 there"),
        (domain("x", 4), "c", "x to c: not enough memory"),
        (domain("x", apart="db"), "b", "x to b: another domain of apart = 'db'"),
        (domain("x", together="shop"), "b", "together = 'shop' is on c"),
        (domain("x", devices={"usb:1050:0407": 1}), "b", "x to b: there is no usb:1050:0407"),
        (domain("x", on="d"), "b", "x does not run on a"),
    ],
)
def test_rules_hold_of_it(one: FleetDomain, target: str, says: str) -> None:
    there = [domain("y", apart="db", on="b"), domain("z", together="shop", on="c")]
    given = Plan(moves=[to(one, target, source="a")])
    with pytest.raises(UsageError, match=says) as told:
        adopted(given, found(one, residents=there), REFUSED, HOSTS)
    assert told.value.remedy


def test_test_has_a_word_in_it() -> None:
    x = domain("x")
    refused = {("u-x", "b"): [("net/net0 on b: there is no bridge br9", "--net br9=br0")]}
    with pytest.raises(UsageError, match="there is no bridge br9"):
        adopted(Plan(moves=[to(x, "b")]), found(x), refused, HOSTS)


def test_all_of_it_has_room_together() -> None:
    both = [domain("x", 2), domain("y", 1)]
    given = Plan(moves=[to(one, "c") for one in both])
    with pytest.raises(UsageError, match="y to c: not enough memory"):
        adopted(given, found(*both), REFUSED, HOSTS)


def test_what_has_started_since_is_told_to_stay() -> None:
    """Whoever reads that all has moved switches the host off."""
    x, new = domain("x"), domain("new")
    made = adopted(Plan(hosts=["a"], moves=[to(x, "b")]), found(x, new), REFUSED, HOSTS)
    assert [(one.name, one.why[0].reason) for one in made.stays] == [
        ("new", "the plan does not move it")
    ]
    assert not adopted(Plan(moves=[to(x, "b")]), found(x, new), REFUSED, HOSTS).stays


def test_a_limit_counts_huge_pages_too() -> None:
    pages = {"hugepages:1048576kB": 3}
    one = domain("x", 0, devices=pages)
    for counts, fits in ((False, True), (True, False)):
        target = Host(name="b", memory=8 * GIB, free=2 * GIB, devices=pages, counts_huge=counts)
        given = Plan(moves=[to(one, "b")])
        if fits:
            assert adopted(given, found(one), REFUSED, [target]).moves
        else:
            with pytest.raises(UsageError, match="3072 MiB needed, 2048 MiB left"):
                adopted(given, found(one), REFUSED, [target])
