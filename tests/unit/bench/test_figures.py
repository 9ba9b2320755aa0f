"""What the benchmarks make of what they measured; nothing is timed here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.byhand import by_hand
from bench.chart import chart
from bench.figures import (
    Move,
    Spread,
    differences,
    from_json,
    moment,
    ratios,
    spread,
    thrown_out,
    to_json,
    whole,
)
from bench.guests import read_events
from bench.scenarios import SYNC

ROUNDS = [
    {
        "entourage": Move(party="entourage", blackout=ours, pinger=ours, spans={"a": ours}),
        "floor": Move(party="floor", blackout=theirs, pinger=theirs),
    }
    for ours, theirs in ((0.11, 0.10), (0.32, 0.30), (0.21, 0.20))
]
DIED = {
    "entourage": Move(party="entourage", blackout=9.0),
    "floor": Move(party="floor", blackout=0.1, survived=False),
}


def test_a_spread_has_the_quartiles_and_both_ends() -> None:
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(5, 3.0, 2.0, 4.0, 1.0, 5.0)
    assert Spread.of([7.0]) == Spread(1, 7.0, 7.0, 7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="nothing"):
        Spread.of([])


def test_parties_are_compared_within_a_round_not_across() -> None:
    blackout = moment("blackout")
    assert spread(ROUNDS, "entourage", blackout).median == 0.21
    more = differences(ROUNDS, "entourage", "floor", blackout)
    assert (more.least, more.median, more.most) == pytest.approx((0.01, 0.01, 0.02))
    assert ratios(ROUNDS, "entourage", "floor", blackout).median == pytest.approx(1.0667, abs=1e-4)


def test_a_ratio_to_nothing_is_left_out() -> None:
    rounds = [*ROUNDS, {"entourage": Move(party="entourage", blackout=1), "floor": Move(party="")}]
    assert ratios(rounds, "entourage", "floor", moment("blackout")).count == 3


def test_a_round_whose_guest_died_is_thrown_out_and_counted() -> None:
    rounds = [*ROUNDS, DIED]
    assert whole(rounds) == ROUNDS
    assert thrown_out(rounds) == {"floor": 1}
    assert spread(rounds, "entourage", moment("blackout")).most == 0.32


def test_what_was_measured_comes_back_from_json() -> None:
    assert from_json(json.loads(json.dumps(to_json(ROUNDS)))) == ROUNDS


def test_the_chart_has_a_bar_for_each_party_of_what_has_rounds() -> None:
    found: dict[str, Any] = {
        "machine": {"cpus": 2},
        "floor-disk": {"title": "a disk & memory", "rounds": to_json(ROUNDS)},
        "startup": {"title": "start-up", "rounds": []},
    }
    picture = chart(found)
    assert picture.startswith("<svg")
    assert "entourage 210" in picture
    assert "floor 200" in picture
    assert "a disk &amp; memory" in picture
    assert "start-up" not in picture


def test_qemu_by_hand_gets_names_for_what_it_inherited() -> None:
    argv = [
        "-chardev",
        "socket,id=monitor-qmp,fd=13,server=on,wait=off",
        "tap,id=netdev-net0,fd=12",
        "socket,id=tpm-tpm0,path=/run/entourage/q/ff23/swtpm.sock",
        "-m",
    ]
    assert by_hand(argv, "/run/x", "tap1") == [
        "-chardev",
        "socket,id=monitor-qmp,path=/run/x/qmp,server=on,wait=off",
        "tap,id=netdev-net0,ifname=tap1,script=no,downscript=no",
        "socket,id=tpm-tpm0,path=/run/x/swtpm.sock",
        "-m",
    ]


def test_events_are_put_on_the_wall_clock() -> None:
    events = [
        {
            "event": "migration-started",
            "at": 0.5,
            "time": "2026-01-01T00:00:01+00:00",
            "source": "a",
        },
        {"event": "guest-stopped", "at": 2.5},
        {"event": "span-done", "name": "last memory", "host": "a", "start": 2.5, "at": 2.6},
        {"event": "guest-resumed", "at": 2.75, "host": "b"},
        {"event": "finished", "at": 3.0, "outcome": "moved"},
    ]
    told = read_events("\n".join(map(json.dumps, events)), 0.0, 4.0, "")
    assert told.ok
    assert told.resume - told.stop == pytest.approx(0.25)
    assert told.stop == pytest.approx(1767225603.0)  # 2026-01-01T00:00:03Z
    assert dict(told.spans) == {"last memory@source": pytest.approx(0.1)}
    assert not read_events("", 0.0, 1.0, "no such domain").ok


def test_a_sync_is_found_in_what_strace_writes() -> None:
    line = "123 1767225603.25 fdatasync(9</var/lib/entourage/journal.db-wal>) = 0"
    match = SYNC.match(line)
    assert match
    assert (match["at"], match["file"]) == ("1767225603.25", "/var/lib/entourage/journal.db-wal")
    assert not SYNC.match("123 1767225603.25 +++ exited with 0 +++")
