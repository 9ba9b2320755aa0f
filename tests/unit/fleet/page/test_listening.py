"""Where the page listens, and a real server at a real socket."""

from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path
from typing import Any

import httpx2
import pytest

from entourage.errors import UsageError
from entourage.fleet.page.serve import Listen, listen_at, listening, serving
from entourage.settings.model import FleetSettings
from tests.unit.fleet.page.world import World

PROXIES = FleetSettings(trusted_proxies=("10.0.0.2",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unix:/run/x.sock", Listen(path="/run/x.sock")),
        ("127.0.0.1:8443", Listen(address="127.0.0.1", port=8443)),
        ("[::1]:8443", Listen(address="::1", port=8443)),
    ],
)
def test_what_can_be_meant(text: str, expected: Listen) -> None:
    assert listen_at(text, FleetSettings()) == expected


@pytest.mark.parametrize(
    "text",
    ["unix:x.sock", "8443", "localhost:1", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", ":1"],
)
def test_what_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError, match="--listen") as raised:
        listen_at(text, PROXIES)
    assert raised.value.remedy


def test_a_path_that_no_socket_can_have() -> None:
    """It is told before anything is made; the limit counts bytes."""
    listen_at(f"unix:/{'x' * 106}", FleetSettings())
    for path in (f"/{'x' * 107}", f"/{'ä' * 54}"):
        with pytest.raises(UsageError, match="a unix socket's path has 107 bytes at most"):
            listen_at(f"unix:{path}", FleetSettings())


def test_beyond_this_host_only_for_proxies() -> None:
    with pytest.raises(UsageError, match="others than this host's users would get there"):
        listen_at("0.0.0.0:8443", FleetSettings())
    assert not listen_at("0.0.0.0:8443", PROXIES).is_loopback


def test_a_socket_is_its_users_and_its_groups_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "page.sock"
    where = Listen(path=str(path))
    with listening(where, FleetSettings()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with (
            pytest.raises(UsageError, match="another controller listens at"),
            listening(where, FleetSettings()),
        ):
            pass
        assert path.exists()
    assert not path.exists()


def test_a_socket_that_was_left_is_taken_away_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with listening(Listen(path=str(path)), FleetSettings()):
        pass
    path.write_text("a file")
    with (
        pytest.raises(UsageError, match="is there and is no socket"),
        listening(Listen(path=str(path)), FleetSettings()),
    ):
        pass
    assert path.read_text() == "a file"


def test_no_such_group(tmp_path: Path) -> None:
    settings = FleetSettings(socket_group="no-such-group")
    with (
        pytest.raises(UsageError, match="there is no group 'no-such-group'"),
        listening(Listen(path=str(tmp_path / "x")), settings),
    ):
        pass


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = Listen(address="127.0.0.1", port=taken.getsockname()[1])
        with (
            pytest.raises(UsageError, match=r"the page cannot listen: .*in use") as raised,
            listening(where, FleetSettings()),
        ):
            pass
    assert raised.value.remedy


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_a_real_server(world: World, tmp_path: Path, kind: str) -> None:
    """Over a unix socket the header is believed, over TCP only from trusted addresses."""
    path = str(tmp_path / "s") if kind == "unix" else ""
    where = Listen(path=path, address="" if path else "127.0.0.1")
    app: Any = world.app(over_unix=bool(path))
    with listening(where, FleetSettings()) as made:
        transport = httpx2.AsyncHTTPTransport(uds=path) if path else None
        port = 0 if path else made.getsockname()[1]
        async with (
            serving(app, made) as task,
            httpx2.AsyncClient(
                transport=transport, base_url=f"http://localhost:{port or 80}", trust_env=False
            ) as client,
        ):
            async with asyncio.timeout(20):
                answer = await client.get("/campaigns/first", headers={"x-remote-user": "alice"})
            assert answer.status_code == 200
            assert ("<form" in answer.text) == (kind == "unix")
            assert "server" not in answer.headers
            assert not task.done()
