"""Which domain goes where, and what is said of one that cannot."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from entourage.fleet.planner import Replanner, in_order, plan
from entourage.fleet.survey import less
from entourage.fleet.values import FleetDomain, Host, Move, MoveState, Plan, in_huge_pages

GIB = 1 << 30


def host(name: str, free: int = 8, **more: object) -> Host:
    return Host(name=name, memory=free * GIB, free=free * GIB, **more)  # type: ignore[arg-type]


def domain(name: str, memory: int = 1, on: str = "a", **more: object) -> FleetDomain:
    return FleetDomain(name=name, uuid=f"u-{name}", host=on, memory=memory * GIB, **more)  # type: ignore[arg-type]


def where(made: Plan) -> dict[str, str]:
    return {move.name: move.target for move in made.moves}


def why(made: Plan) -> dict[str, list[str]]:
    return {
        stay.name: [f"{one.constraint}: {one.reason}" for one in stay.why] for stay in made.stays
    }


def test_the_hardest_comes_first() -> None:
    """Placed by size alone, the large one would take the only host with the device."""
    hosts = [host("b", 4, devices={"usb:1050:0407": 1}), host("c", 4)]
    made = plan(hosts, [domain("big", 4), domain("keyed", 1, devices={"usb:1050:0407": 1})])
    assert where(made) == {"keyed": "b", "big": "c"}


def test_it_packs_or_spreads() -> None:
    hosts = [host("b", 4), host("c", 8)]
    assert where(plan(hosts, [domain("x")], style="pack")) == {"x": "b"}
    assert where(plan(hosts, [domain("x")], style="spread")) == {"x": "c"}


def test_one_moves_aside_for_another() -> None:
    """Both could go to two hosts; the larger is placed first, onto the one that both could have."""
    hosts = [
        host("b", 3, labels={"net": "1", "fast": "1"}),
        host("c", 3, labels={"net": "1"}),
        host("d", 1, labels={"fast": "1"}),
    ]
    leaving = [domain("large", 3, require={"net": "1"}), domain("small", 2, require={"fast": "1"})]
    made = plan(hosts, leaving)
    assert where(made) == {"large": "c", "small": "b"}, why(made)


def test_each_reason_is_told_with_its_hosts() -> None:
    hosts = [
        host("b", 1),
        host("c", closed="it takes no domains (cordon by-hand)"),
        host("d", labels={"rack": "1"}),
        host("e", labels={"rack": "2"}),
    ]
    moved = domain("x", 2, require={"rack": "2"})
    refused = {("u-x", "e"): [("net/net0 on e: there is no bridge br9", "--net br9=br0")]}
    made = plan(hosts, [moved], refused=refused)
    (stay,) = made.stays
    assert [(one.constraint, list(one.hosts)) for one in stay.why] == [
        ("labels", ["b", "d"]),
        ("closed", ["c"]),
        ("test", ["e"]),
    ]


def test_too_little_memory_says_how_much_is_missing_where() -> None:
    made = plan([host("b", 1), host("c", 2)], [domain("x", 5)])
    assert why(made) == {
        "x": ["memory: not enough memory: 5120 MiB needed, 2048 MiB left on c, which has the most"]
    }
    assert made.stays[0].why[0].remedy == "free 3072 MiB there, or add a host"


def test_apart_together_and_pinned() -> None:
    hosts = [host("b", 3), host("c", 8)]
    resident = [domain("db0", on="b", apart="db")]
    leaving = [
        domain("db1", apart="db"),
        domain("db2", apart="db"),
        domain("app1", 2, together="shop"),
        domain("app2", 2, together="shop"),
        domain("licence", pinned=True),
    ]
    made = plan(hosts, leaving, resident)
    found = where(made)
    assert found["app1"] == found["app2"] == "c"
    assert [name for name in ("db1", "db2") if name in found] == ["db1"]
    assert found["db1"] == "c"
    assert why(made) == {
        "licence": ["pinned: it is pinned to a"],
        "db2": ["apart: another domain of apart = 'db' is there, or goes there"],
    }


def test_what_belongs_to_those_that_stay_goes_to_them() -> None:
    resident = [domain("app0", on="c", together="shop")]
    made = plan([host("b", 3), host("c", 8)], [domain("app1", together="shop")], resident)
    assert where(made) == {"app1": "c"}
    made = plan([host("b", 3), host("c", 0)], [domain("app1", together="shop")], resident)
    assert "together: the others of together = 'shop' are on c, and stay there" in why(made)["app1"]


def test_no_other_host() -> None:
    made = plan([host("a")], [domain("x")])
    assert why(made) == {"x": ["no-target: there is no other host"]}


@given(
    sizes=st.lists(st.integers(1, 8), max_size=30),
    rooms=st.lists(st.integers(0, 20), min_size=1, max_size=6),
)
def test_no_host_is_planned_over_its_memory(sizes: list[int], rooms: list[int]) -> None:
    hosts = [host(f"t{n}", room) for n, room in enumerate(rooms)]
    made = plan(hosts, [domain(f"d{n}", size) for n, size in enumerate(sizes)])
    used: Counter[str] = Counter()
    for move in made.moves:
        used[move.target] += move.memory
    assert all(used[one.name] <= one.memory for one in hosts)
    assert len(made.moves) + len(made.stays) == len(sizes)
    # Nothing stays for which there is room as it is.
    for stay in made.stays:
        size = sizes[int(stay.name[1:])] * GIB
        assert all(one.memory - used[one.name] < size for one in hosts)


def test_another_target_is_found_and_counted() -> None:
    hosts = [host("b", 2), host("c", 2), host("d", 1)]
    domains = [domain("x", 2), domain("y", 2)]
    made = plan(hosts, domains[:1])
    replanner = Replanner(hosts, domains, made.moves)
    state = MoveState(move=made.moves[0], tried=(made.moves[0].target,))
    other = replanner.elsewhere(state)
    assert {made.moves[0].target, other} == {"b", "c"}
    # It is counted where it goes now, and no more where it was to go.
    again = MoveState(
        move=made.moves[0].__class__(
            name="x", uuid="u-x", source="a", target=str(other), memory=2 * GIB
        ),
        tried=("b", "c"),
    )
    assert replanner.elsewhere(again) is None


PAGES = "hugepages:2048kB"


def test_huge_pages_are_counted_apart_from_memory() -> None:
    hosts = [host("b", 1, devices={PAGES: 600}), host("c", 64)]
    both = [domain(name, 0, devices={PAGES: 512}) for name in ("x", "y")]
    made = plan(hosts, both)
    assert where(made) == {"x": "b"}
    assert why(made) == {
        "y": [
            "devices: not enough huge pages of 2048kB: 512 needed, 88 left",
            "devices: not enough huge pages of 2048kB: 512 needed, 0 left",
        ]
    }
    assert in_huge_pages({PAGES: 512, "hugepages:1048576kB": 1, "usb:1050:0407": 3}) == 2 * GIB
    assert in_huge_pages({"hugepages:manykB": 1}) == 0


def test_the_order_in_which_they_begin() -> None:
    made = plan([host("b", 64)], [domain("y", 1), domain("x", 3), domain("z", 2)])
    for order, names in (("name", "xyz"), ("smallest", "yzx"), ("largest", "xzy")):
        assert "".join(move.name for move in in_order(made.moves, order)) == names  # type: ignore[arg-type]
    assert in_order(made.moves, "hardest") == made.moves


def test_another_target_is_none_that_others_were_promised() -> None:
    one = domain("x", 8)
    moves = plan([host("b", 8)], [one]).moves
    replanner = Replanner([host("b", 8), host("c", 10)], [one], moves)
    state = MoveState(move=moves[0], tried=["b"])
    others = [Move(name="y", uuid="u-y", source="d", target="c", memory=8 * GIB)]
    assert replanner.elsewhere(state, others) is None
    assert replanner.elsewhere(state) == "c"


NIC = "pci:8086:1572"


def test_no_device_of_a_host_is_planned_twice() -> None:
    hosts = [host("b", devices={NIC: 1}), host("c")]
    made = plan(hosts, [domain("x", devices={NIC: 1}), domain("y", 2, devices={NIC: 1})])
    assert where(made) == {"y": "b"}
    assert why(made) == {
        "x": [
            f"devices: {NIC} is promised to another domain",
            f"devices: there is no {NIC}",
        ]
    }


def test_a_device_that_is_not_free_says_why_and_what_frees_it() -> None:
    held = ("PCI device 0000:3b:00.0 there is web1's", "move web1 away first")
    made = plan([host("b", held={NIC: held})], [domain("x", devices={NIC: 1})])
    ((obstacle,),) = [stay.why for stay in made.stays]
    assert (obstacle.constraint, obstacle.reason, obstacle.remedy) == ("devices", *held)


def test_a_device_that_another_campaign_has_promised_is_not_free() -> None:
    promised = Move(name="z", uuid="u-z", source="a", target="b", devices={NIC: 1})
    (left,) = less([host("b", devices={NIC: 1})], [], [promised])
    made = plan([left], [domain("x", devices={NIC: 1})])
    ((obstacle,),) = [stay.why for stay in made.stays]
    assert obstacle.reason == f"{NIC} is promised to z, which another campaign moves there"
    assert "`entourage campaign list`" in obstacle.remedy
