"""Every address of the page, and what is in its answers."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entourage import events
from entourage.errors import EntourageError
from entourage.fleet.page import app as module
from entourage.fleet.page.guard import HEADERS, POLICY
from entourage.fleet.records import Hearing
from entourage.fleet.remote import CordonThere, DomainThere, RoomThere
from entourage.fleet.values import MoveState
from entourage.steps import Step
from tests.unit.eventually import wait_until
from tests.unit.fleet.page.world import HOSTILE, MOVES, World

ADDRESSES = ("/", "/hosts", "/campaigns/first", "/campaigns/first/plan", "/domains/u1", "/metrics")
SHOWN = "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;\\u202e"
"""What a page makes of HOSTILE."""


def moved(world: World) -> None:
    """Have the first domain move, with what it says."""
    hearing = Hearing(world.records, "first")
    world.store.claim("first", "me-0")
    hearing.changed(MoveState(move=MOVES[0], status="moves", attempts=1))
    said: list[events.AnyEvent] = [
        events.MigrationStarted(
            at=0.0, migration="m", domain="web1", uuid="u1", source="a", target="b",
            hypervisor="qemu", devices=("tpm/tpm0",), time="",
        ),
        events.GuestStopped(at=1.0),
        events.DeviceStepDone(at=1.02, device="tpm/tpm0", step=Step.TRANSFER, seconds=0.02),
        events.GuestResumed(at=1.03, host="b", blackout=0.03),
    ]  # fmt: skip
    for event in said:
        hearing.heard(MOVES[0], as_heard(event))
    state = MoveState(move=MOVES[0], status="moved", attempts=1, blackout=0.03)
    world.store.save("first", state, owner="me-0")
    hearing.changed(state)


def as_heard(event: events.AnyEvent) -> dict[str, Any]:
    """An event as it comes from a host, as JSON."""
    return msgspec.json.decode(msgspec.json.encode(event))


@pytest.mark.parametrize("address", [*ADDRESSES, "/static/style.css", "/nowhere", "/domains/no"])
def test_what_every_answer_says_to_the_browser(world: World, address: str) -> None:
    answer = world.client().get(address)
    assert answer.status_code == (404 if "no" in address else 200)
    for key, value in HEADERS:
        assert answer.headers.get_list(key) == [value]
    assert answer.headers["cache-control"] == "no-store"
    assert "unsafe" not in POLICY
    assert "server" not in answer.headers


@pytest.mark.parametrize("address", ADDRESSES[:-1])
def test_nothing_in_a_page_needs_more_than_the_policy_allows(world: World, address: str) -> None:
    """No script, style or handler in it, and nothing from elsewhere."""
    moved(world)
    for user in ("", "alice"):
        html = world.client(user).get(address).text
        assert not re.search(r"<script(?! src=\"/static/)", html)
        assert not re.search(r"<style| style=| on[a-z]+=|javascript:", html)
        assert not re.search(r"(src|href|action)=\"(?!/|#)", html)


def test_the_list_of_campaigns(world: World) -> None:
    html = world.client().get("/").text
    assert 'href="/campaigns/first"' in html
    assert "0 of 2" in html
    assert "nobody runs it" in html
    world.store.claim("first", "me-0")
    world.store.beat("me-0")
    assert "nobody runs it" not in world.client().get("/").text


def test_a_campaign(world: World) -> None:
    """Its lines are those of the terminal; what hosts and users have called things is text."""
    moved(world)
    html = world.client().get("/campaigns/first").text
    assert re.search(r">web1</a> moved to b, blackout 30 ms<", html)
    assert f">{SHOWN}</a> waits for c<" in html
    assert "1 of 2 done, 0 under way; no place for 1; about 1 min left" in html
    assert f"b: no {SHOWN}" in html
    assert HOSTILE not in html
    assert 'href="/domains/u2%22%3E%3Cb%3E"' in html
    only = world.client().get("/campaigns/first?status=moved").text
    assert ">web1</a>" in only
    assert "waits for c" not in only
    assert world.client().get("/campaigns/first?status=nothing&first=-1e9").status_code == 200


def test_copies_that_are_under_way_are_shown(world: World) -> None:
    hearing = Hearing(world.records, "first")
    hearing.changed(MoveState(move=MOVES[0], status="moves", attempts=1))
    world.store.claim("first", "me-0")
    world.store.save("first", MoveState(move=MOVES[0], status="moves"), owner="me-0")
    for event in (
        {"event": "copy-progress", "what": "memory", "done": 63, "total": 100},
        {"event": "copy-progress", "what": "memory", "done": 1 << 80, "total": 1 << 81},
        {"event": "copy-progress", "what": 5, "done": "x", "total": None},
        {"event": "copy-progress", "what": "memory", "done": 5, "total": 0},
    ):
        hearing.heard(MOVES[0], event)
    hearing.write()
    html = world.client().get("/campaigns/first").text
    assert 'memory 63 % <progress max="100" value="63"' in html


def test_the_plans_matrix(world: World) -> None:
    html = world.client().get("/campaigns/first/plan").text
    row = next(each for each in html.split("<tr>") if ">odd</a>" in each)
    assert re.findall(r'class="cell ([a-z]+)"', row) == ["refused", "other", "closed"]
    row = next(each for each in html.split("<tr>") if ">web1</a>" in each)
    assert re.findall(r'class="cell ([a-z]+)"', row) == ["goes", "other", "closed"]
    assert f"<b>odd</b> to <b>b</b>: no {SHOWN}" in html
    assert "it takes no domains" in html
    beyond = world.client().get("/campaigns/first/plan?row=99999999&column=9999").text
    assert "web1" not in beyond


def test_a_domains_moves_and_its_blackout(world: World) -> None:
    moved(world)
    html = world.client().get("/domains/u1").text
    assert "Blackout 30 ms: the guest runs on b; 10 ms of it without a name" in html
    assert "tpm/tpm0 TRANSFER" in html
    assert 'x="0" y="4" width="667"' in html
    assert world.client().get("/domains/u2%22%3E%3Cb%3E").status_code == 200


def test_hosts(world: World) -> None:
    """What runs where, what is left, which are cordoned, and which do not answer."""
    world.remote.rooms = {
        "a": RoomThere(
            host="a", memory=8 << 30, free=3 << 30, arriving=[HOSTILE],
            cordons=[CordonThere(name="first", reason=HOSTILE)],
            domains=[DomainThere(name=HOSTILE, uuid="u2")],
        ),
        "b": EntourageError(f"ssh says {HOSTILE}"),
    }  # fmt: skip
    with world.client() as client:
        assert "not asked yet" in client.get("/hosts").text
        wait_until(lambda: "being asked" not in client.get("/hosts").text)
        html = client.get("/hosts").text
        assert "3 in the fleet, 1 cordoned, 1 silent" in html
        assert f"ssh says {SHOWN}" in html
        assert f"first: {SHOWN}" in html
        assert "3 GiB of 8 GiB" in html
        assert HOSTILE not in html
        assert "Runs on a" in client.get("/domains/u2").text
        text = client.get("/metrics").text
        assert "entourage_fleet_hosts_cordoned 1.0" in text
        assert 'entourage_fleet_host_free_bytes{host="a"}' in text


def test_metrics(world: World) -> None:
    moved(world)
    text = world.client().get("/metrics").text
    for line in (
        "entourage_fleet_hosts 3.0",
        'entourage_fleet_moves{status="moved"} 1.0',
        'entourage_fleet_moves{status="doubt"} 0.0',
        "entourage_fleet_moves_running 0.0",
        'entourage_fleet_campaigns{phase="runs"} 1.0',
        'entourage_fleet_attempts_total{outcome="moved"} 1.0',
        'entourage_fleet_blackout_seconds_bucket{le="0.025"} 0.0',
        'entourage_fleet_blackout_seconds_bucket{le="0.05"} 1.0',
        "entourage_fleet_blackout_seconds_count 1.0",
        'entourage_fleet_move_duration_seconds_bucket{le="+Inf"} 1.0',
    ):
        assert f"\n{line}\n" in text, text


def test_every_metric_is_in_the_document(world: World) -> None:
    moved(world)
    told = (Path(__file__).parents[4] / "docs" / "fleet.md").read_text()
    text = world.client().get("/metrics").text
    names = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    assert len(names) > 10
    for name in names:
        assert f"`{name}" in told, name


async def test_changes_are_sent_as_they_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each; and where the campaign is over the stream says so, and ends."""
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)
    world.store.claim("first", "me-0")
    stream = Stream(world.app(), "/campaigns/first/live")
    assert await stream.next_of("state") == await stream.next_of("state", of_all=True)
    assert "web1</a> waits for b" in await stream.next_of("state", of_all=True)
    moved(world)
    assert "web1</a> moved to b" in await stream.next_of("state")
    world.store.phase("first", "ended", owner="me-0", reason="", in_a_row=0)
    await stream.next_of("over")
    await stream.ended()
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["content-security-policy"] == POLICY


async def test_a_browser_that_goes_away_is_told_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of those that watch at once there are only so many."""
    monkeypatch.setattr(module, "STREAMS", 1)
    app = world.app()
    stream = Stream(app, "/campaigns/first/live")
    await stream.next_of("state")
    second = Stream(app, "/campaigns/first/live")
    await second.ended()
    assert second.status == 503
    stream.leave()
    await stream.ended()
    third = Stream(app, "/campaigns/first/live")
    await third.next_of("state")
    third.leave()
    await third.ended()


def test_what_goes_wrong_is_told_as_a_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no campaign" in world.client().get("/campaigns/none").text
    assert world.client().get("/campaigns/none/live").status_code == 404
    monkeypatch.setattr(world.records.__class__, "history", breaks)
    answer = world.client().get("/campaigns/first")
    assert answer.status_code == 500
    assert "division" not in answer.text
    assert "/campaigns/first" in world.noted[0]
    world.store.engine.dispose()
    monkeypatch.setattr(world.store.__class__, "summaries", fails)
    answer = world.client().get("/")
    assert (answer.status_code, "is gone" in answer.text) == (503, True)


def breaks(_: Any, __: str) -> Any:
    return 1 / 0


def fails(_: Any) -> Any:
    raise EntourageError("the database is gone")


class Stream:
    """A stream of events of an app, as an ASGI server would have it."""

    def __init__(self, app: Any, path: str) -> None:
        self.status, self.headers = 0, dict[str, str]()
        self._said: asyncio.Queue[str] = asyncio.Queue()
        self._last: dict[str, str] = {}
        self._left = asyncio.Event()
        scope: dict[str, Any] = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
            "query_string": b"", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", 1), "scheme": "http", "root_path": "",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        self._task = asyncio.create_task(app(scope, self._receive, self._send))
        self._begun = False

    async def _receive(self) -> dict[str, Any]:
        if not self._begun:
            self._begun = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {key.decode(): value.decode() for key, value in message["headers"]}
        elif message.get("body"):
            self._said.put_nowait(message["body"].decode())

    async def next_of(self, kind: str, *, of_all: bool = False) -> str:
        """The next event of a kind; or the one that was seen last."""
        while not of_all:
            async with asyncio.timeout(20):
                said = await self._said.get()
            seen, _, data = said.partition("\n")
            self._last[seen.removeprefix("event: ")] = data
            if seen == f"event: {kind}":
                break
        return self._last[kind]

    def leave(self) -> None:
        self._left.set()

    async def ended(self) -> None:
        async with asyncio.timeout(20):
            await self._task
