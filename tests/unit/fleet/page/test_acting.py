"""Who may do what: forms, tokens, origins, names of the page, and who the user is."""

from __future__ import annotations

import grp
import os
import pwd
from typing import Any

import pytest
from starlette.testclient import TestClient

from entourage.errors import EntourageError
from entourage.fleet.page import access as module
from entourage.fleet.page.access import Access, AccessError
from entourage.fleet.page.actions import Actions
from entourage.fleet.values import MoveState
from entourage.settings.model import FleetSettings
from tests.unit.eventually import eventually
from tests.unit.fleet.page.world import MOVES, World, token_of

HOST = "127.0.0.1:8443"
ORIGIN = {"origin": f"http://{HOST}"}


def post(client: Any, action: str, token: str, headers: dict[str, str] | None = None) -> Any:
    where = f"/campaigns/first/{action}"
    return client.post(where, data={"token": token}, headers=ORIGIN if headers is None else headers)


@pytest.mark.parametrize(
    ("action", "wish", "told", "goes_on"),
    [
        ("pause", "pause", "paused it", False),
        ("resume", "run", "resumed it", True),
        ("abort", "abort", "aborted it: what moves is finished", True),
        ("take-back", "take-back", "aborted it: what moves is to go back", True),
    ],
)
def test_what_a_user_may_do(
    world: World, action: str, wish: str, told: str, *, goes_on: bool
) -> None:
    """It is done, written down with the user's name, and somebody sees to it that it goes on."""
    if action == "resume":
        world.store.wish("first", "pause")
    with world.client("alice") as client:
        html = client.get("/campaigns/first").text
        assert f'action="/campaigns/first/{action}"' in html
        answer = post(client, action, token_of(html))
        assert (answer.status_code, answer.headers["location"]) == (303, "/campaigns/first")
        html = client.get("/campaigns/first").text
    assert world.store.summary("first").wish == wish
    assert f"<b>alice</b> {told}" in html
    assert world.engine.asked == (["first"] if goes_on else [])


def test_retry(world: World) -> None:
    world.store.claim("first", "x")
    for move in MOVES:
        world.store.save("first", MoveState(move=move, status="stays"), owner="x")
    with world.client("alice") as client:
        token = token_of(client.get("/campaigns/first").text)
        assert post(client, "retry", token).status_code == 409  # it is not over
        world.store.phase("first", "ended", owner="x", reason="", in_a_row=0)
        assert 'action="/campaigns/first/retry"' in client.get("/campaigns/first").text
        assert post(client, "pause", token).status_code == 409  # it is
        assert post(client, "retry", token).status_code == 303
    assert world.engine.asked == ["first"]
    assert {one.status for one in world.store.states("first")} == {"waits"}


def test_one_that_is_being_aborted_is_neither_paused_nor_resumed(world: World) -> None:
    world.store.wish("first", "abort")
    with world.client("alice") as client:
        token = token_of(client.get("/campaigns/first").text)
        for action in ("pause", "resume"):
            answer = post(client, action, token)
            assert (answer.status_code, "is being aborted" in answer.text) == (409, True)
    assert world.records.history("first") == []


def test_others_only_look(world: World) -> None:
    """Neither whom `may` does not name, nor whom nobody names, nor who names himself."""
    token = token_of(world.client("alice").get("/campaigns/first").text)
    for client in (
        world.client("bob"),
        world.client(),
        world.client("alice", peer="127.0.0.1"),
        world.client("alice", peer="testclient"),
    ):
        html = client.get("/campaigns/first").text
        assert "<form" not in html
        assert "<button" not in html
        assert post(client, "pause", token).status_code == 403
    assert world.store.summary("first").wish == "run"
    assert world.records.history("first") == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": f"http://{HOST}.evil.example"},
        {**ORIGIN, "sec-fetch-site": "cross-site"},
        {**ORIGIN, "sec-fetch-site": "same-site"},
    ],
)
def test_a_form_of_another_page_is_refused(world: World, headers: dict[str, str]) -> None:
    with world.client("alice") as client:
        token = token_of(client.get("/campaigns/first").text)
        assert post(client, "pause", token, headers).status_code == 403
        assert world.store.summary("first").wish == "run"
        assert post(client, "pause", token, {"sec-fetch-site": "same-origin"}).status_code == 303


def test_a_form_without_the_users_own_token_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FleetSettings(may=("alice", "bob"), trusted_proxies=("10.0.0.2",))
    access = Access(settings, over_unix=False)
    good = access.token("alice")
    until, _, sign = good.partition(".")
    access.check_token("alice", good)
    for user, token in (
        ("bob", good),
        ("alice", ""),
        ("alice", f"{int(until) + 1}.{sign}"),
        ("alice", Access(settings, over_unix=False).token("alice")),
    ):
        with pytest.raises(AccessError, match="not one of this page"):
            access.check_token(user, token)
    monkeypatch.setattr(module, "_TOKEN_LIVES", -1)
    with pytest.raises(AccessError, match="not one of this page"):
        access.check_token("alice", access.token("alice"))
    with world.client("alice") as client:
        assert post(client, "pause", "").status_code == 403
        assert client.post("/campaigns/first/pause", headers=ORIGIN).status_code == 403
    assert world.store.summary("first").wish == "run"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:9", 200),
        ("[::1]:8443", 200),
        ("fleet.example.org", 200),
        ("FLEET.example.org", 200),
        ("evil.example", 421),
        ("fleet.example.org:8443", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost:1@evil.example", 421),
        ("", 421),
    ],
)
def test_a_name_that_was_made_to_lead_here_is_refused(world: World, host: str, status: int) -> None:
    for address in ("/", "/metrics", "/static/style.css", "/campaigns/first/live?x"):
        if status == 200 and "live" in address:
            continue
        assert world.client(host=host).get(address).status_code == status


def test_a_request_of_several_names_is_refused(world: World) -> None:
    client = world.client("alice")
    twice = [("host", HOST), ("host", HOST)]
    assert client.get("/", headers=twice).status_code == 421  # type: ignore[arg-type]
    named = [("host", HOST), ("x-remote-user", "alice"), ("x-remote-user", "bob")]
    assert client.get("/", headers=named).status_code == 400  # type: ignore[arg-type]


@pytest.mark.parametrize("user", ["a b", "<b>", "-x", "x" * 200, "al\xefce"])
def test_a_user_that_is_no_name(world: World, user: str) -> None:
    headers = [(b"host", HOST.encode()), (b"x-remote-user", user.encode("latin-1"))]
    answer = world.client().get("/", headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 400
    assert user not in answer.text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods(world: World, method: str) -> None:
    assert world.client("alice").request(method, "/campaigns/first").status_code == 405
    assert world.client("alice").get("/campaigns/first/pause").status_code == 405


def test_a_form_that_is_too_long(world: World) -> None:
    client = world.client("alice")
    where = "/campaigns/first/pause"
    assert client.post(where, content=b"x" * 5000, headers=ORIGIN).status_code == 413
    assert client.post(where, content=iter([b"x"]), headers=ORIGIN).status_code == 411
    assert post(client, "nothing", "").status_code == 404


def test_a_form_that_cannot_be_understood(world: World) -> None:
    """It is no bug of the page."""
    content = "&".join(f"f{number}=1" for number in range(20))
    headers = {**ORIGIN, "content-type": "application/x-www-form-urlencoded"}
    answer = world.client("alice").post("/campaigns/first/pause", content=content, headers=headers)
    assert answer.status_code == 400
    assert "the form cannot be understood" in answer.text
    assert world.noted == []


async def test_who_goes_away_before_the_form_is_here(world: World) -> None:
    """It is no bug of the page either, and nothing was done."""
    headers = {"host": HOST, "origin": ORIGIN["origin"], "content-length": "9",
               "x-remote-user": "alice"}  # fmt: skip
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": "/campaigns/first/pause", "query_string": b"",
        "client": ("10.0.0.2", 5), "http_version": "1.1", "scheme": "http", "root_path": "",
        "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await world.app()(scope, receive, send)
    assert sent[0]["status"] == 400
    assert world.noted == []
    assert world.store.summary("first").wish == "run"


def test_over_a_unix_socket_the_header_is_believed(world: World) -> None:
    settings = FleetSettings(may=("alice",))
    app: Any = world.app(settings, over_unix=True)
    client = TestClient(app, headers={"host": "localhost", "x-remote-user": "alice"})
    assert "<form" in client.get("/campaigns/first").text


def test_beyond_this_host_only_trusted_proxies_are_answered(world: World) -> None:
    assert world.client(peer="10.0.0.2", for_proxies=True).get("/").status_code == 200
    for peer in ("10.0.0.3", "127.0.0.1", "::ffff:10.0.0.3", "::10.0.0.2"):
        assert world.client(peer=peer, for_proxies=True).get("/metrics").status_code == 403


@pytest.mark.parametrize("trusted", ["10.0.0.2", "10.0.0.0/24", "::ffff:10.0.0.2"])
def test_a_proxy_is_the_same_where_both_protocols_are_listened_for(trusted: str) -> None:
    """At [::] the kernel has IPv4's addresses within those of IPv6."""
    access = Access(FleetSettings(trusted_proxies=(trusted,)), over_unix=False, for_proxies=True)
    access.check_peer("::ffff:10.0.0.2")
    assert access.user("::ffff:10.0.0.2", ["alice"]) == "alice"
    assert access.user("::ffff:10.0.1.2", ["alice"]) == ""


async def test_groups_of_this_host() -> None:
    me = pwd.getpwuid(os.getuid())
    group = grp.getgrgid(me.pw_gid).gr_name
    access = Access(FleetSettings(may=(f"@{group}", "@no-such-group")), over_unix=True)
    assert await access.may_act(me.pw_name)
    assert not await access.may_act("no-such-user")
    assert not await access.may_act("")
    assert not await access.may_act(f"@{group}")
    assert not await Access(FleetSettings(may=("@no-such-group",)), over_unix=True).may_act(
        me.pw_name
    )


async def test_what_goes_wrong_afterwards_is_in_the_history(world: World) -> None:
    class Fails:
        async def run(self, name: str) -> Any:
            raise EntourageError(f"{name} cannot go on")

    noted: list[tuple[str, str]] = []

    def note(name: str, text: str) -> None:
        noted.append((name, text))

    actions = Actions(world.store, world.records, Fails(), "me-0", note)
    await actions.do("first", "resume", "alice")
    await eventually(lambda: len(world.records.history("first")) > 1)
    assert noted == [("first", "first cannot go on")]
    assert world.records.history("first")[0].who == "controller me-0"
    await actions.close()
