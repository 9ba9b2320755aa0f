"""A page with a real database, hosts that say what a test wants, and nobody who runs anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from entourage.fleet.campaign import Phase
from entourage.fleet.database import open_engine
from entourage.fleet.fleetfile import FleetFile, HostEntry
from entourage.fleet.page.access import Access
from entourage.fleet.page.actions import Actions
from entourage.fleet.page.app import Page
from entourage.fleet.page.rooms import Rooms
from entourage.fleet.records import Records
from entourage.fleet.remote import RoomThere
from entourage.fleet.store import Spec, Store
from entourage.fleet.values import Host, Move, Obstacle, Plan, Stay
from entourage.settings.model import FleetSettings

HOSTILE = '<script>alert("x")</script>\u202e'
"""What a host may say: it is shown, and does nothing."""
MOVES = [
    Move(name="web1", uuid="u1", source="a", target="b", memory=1 << 30),
    Move(name=HOSTILE, uuid='u2"><b>', source="a", target="c", memory=1 << 30),
]
WHY = Obstacle(constraint="test", hosts=["b"], count=1, reason=f"no {HOSTILE}", remedy="plug it in")
SPEC = Spec(
    plan=Plan(hosts=["a"], moves=MOVES, stays=[Stay(name="odd", uuid="u3", host="a", why=[WHY])]),
    hosts=[
        Host(name="b", memory=8 << 30, free=4 << 30),
        Host(name="c", memory=8 << 30, free=4 << 30),
        Host(name="d", memory=8 << 30, free=4 << 30, closed="it takes no domains"),
    ],
    refused=[("u3", "b", f"no {HOSTILE}", "plug it in")],
)
SETTINGS = FleetSettings(
    may=("alice",), names=("fleet.example.org",), trusted_proxies=("10.0.0.2",)
)


class Engine:
    """Is asked to run campaigns, and runs none."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def run(self, name: str) -> Phase:
        self.asked.append(name)
        return "ended"


class Remote:
    """Hosts that say what a test wants."""

    def __init__(self) -> None:
        self.fleet = FleetFile(host=tuple(HostEntry(name=name) for name in ("a", "b", "c")))
        self.rooms: dict[str, RoomThere | Exception] = {}

    async def room(self, host: str) -> RoomThere:
        found = self.rooms.get(host, RoomThere(host=host, memory=8 << 30, free=4 << 30))
        if isinstance(found, Exception):
            raise found
        return found


class World:
    """A page, and what is behind it."""

    def __init__(self, path: Path) -> None:
        self.store = Store(open_engine(f"sqlite:///{path}/fleet.db"))
        self.records = Records(self.store.engine)
        self.engine, self.remote = Engine(), Remote()
        self.noted: list[str] = []
        with self.store.planning() as planning:
            planning.add("first", SPEC)

    def app(
        self,
        settings: FleetSettings = SETTINGS,
        *,
        over_unix: bool = False,
        for_proxies: bool = False,
    ) -> Any:
        remote: Any = self.remote
        actions = Actions(
            self.store, self.records, self.engine, "me-0", lambda _, text: self.noted.append(text)
        )
        names = [one.name for one in self.remote.fleet.host]
        rules = Access(settings, over_unix=over_unix, for_proxies=for_proxies)
        return Page(self.store, Rooms(remote), names, actions, rules, note=self.noted.append).app()

    def client(
        self,
        user: str = "",
        *,
        peer: str = "10.0.0.2",
        host: str = "127.0.0.1:8443",
        for_proxies: bool = False,
    ) -> TestClient:
        headers = {"host": host, **({"x-remote-user": user} if user else {})}
        return TestClient(
            self.app(for_proxies=for_proxies),
            headers=headers,
            client=(peer, 5),
            follow_redirects=False,
        )


def token_of(html: str) -> str:
    """That of the forms of a page."""
    found = re.search(r'name="token" value="([^"]+)"', html)
    assert found is not None, html
    return found[1]
