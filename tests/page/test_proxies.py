"""The examples of docs/fleet.md, run by real proxies before a real controller."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.page import proxies
from tests.page.conftest import Controller
from tests.page.proxies import NAME, PAM_MODULE, USERS, Proxy, examples, replaced

pytestmark = pytest.mark.matrix
NGINX, CADDY = shutil.which("nginx"), shutil.which("caddy")
BASIC, PAM = examples("nginx")
(SITE,) = examples("caddy")
(SERVICE,) = examples("pam")
AT_ONCE = 5.0
"""Seconds; what is buffered comes when a campaign is over."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Controller, Path]]:
    """A controller whose page is at a unix socket, and where that is."""
    path = tmp_path_factory.mktemp("proxied")
    controller = Controller(path, names=(NAME,))
    socket = path / "page.sock"
    process = controller.serve(f"unix:{socket}")
    yield controller, socket
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)
    controller.store.engine.dispose()
    assert process.returncode == 0, said


@contextlib.contextmanager
def by_nginx(path: Path, page: Path, *, open_: bool = False) -> Generator[Proxy]:
    if NGINX is None:
        pytest.skip("needs nginx: apt-get install nginx-light")
    users = proxies.password_file(path)
    server = replaced(BASIC, {"/etc/nginx/fleet.users": str(users)})
    if open_:
        server = re.sub(r"^ *auth_basic.*\n", "", server, flags=re.MULTILINE)
        assert "auth_basic" not in server.replace("by auth_basic", "")
    with proxies.nginx(path, page, server) as proxy:
        yield proxy


@contextlib.contextmanager
def by_pam(path: Path, page: Path) -> Generator[Proxy]:
    if NGINX is None or not PAM_MODULE.exists():
        pytest.skip("needs nginx with PAM: apt-get install libnginx-mod-http-auth-pam")
    if os.geteuid() != 0:
        pytest.skip("users of the system need root")
    with (
        proxies.users_of_the_system(path, SERVICE) as within,
        proxies.nginx(path, page, PAM, within=within) as proxy,
    ):
        yield proxy


@contextlib.contextmanager
def by_caddy(path: Path, page: Path, *, open_: bool = False) -> Generator[Proxy]:
    if CADDY is None:
        pytest.skip("needs Caddy: apt-get install caddy")
    hashed = "\n".join(f"        {user} {proxies.bcrypt(word)}" for user, word in USERS.items())
    site = replaced(SITE, {"        alice $2a$14$…": hashed})
    if open_:
        site = re.sub(r"^    basic_auth \{.*?^    \}\n", "", site, flags=re.MULTILINE | re.DOTALL)
        assert "basic_auth" not in site
    with proxies.caddy(path, page, site) as proxy:
        yield proxy


WAYS: dict[str, Callable[..., Any]] = {"nginx": by_nginx, "nginx-pam": by_pam, "caddy": by_caddy}


@pytest.fixture(scope="module", params=WAYS)
def proxy(
    request: pytest.FixtureRequest,
    page: tuple[Controller, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    with WAYS[request.param](tmp_path_factory.mktemp("proxy"), page[1]) as proxy:
        yield proxy


def planned(controller: Controller, proxy: Proxy, what: str) -> str:
    """A campaign of its own for a test."""
    name = f"{what}-{proxy.socket.parent.name}"
    controller.plan(name)
    return name


def pause(client: httpx2.Client, proxy: Proxy, name: str, token: str) -> httpx2.Response:
    """Do as the page's button does."""
    return client.post(
        f"/campaigns/{name}/pause",
        data={"token": token},
        headers={"Origin": f"{proxy.scheme}://{NAME}", "Sec-Fetch-Site": "same-origin"},
    )


def token_of(text: str) -> str:
    found = re.search(r'name="token" value="([^"]+)"', text)
    return found[1] if found is not None else ""


def test_who_logs_in_and_may_pauses(page: tuple[Controller, Path], proxy: Proxy) -> None:
    controller = page[0]
    name = planned(controller, proxy, "paused")
    with proxy.client("alice") as client:
        text = client.get(f"/campaigns/{name}").text
        assert '<span class="user">alice</span>' in text
        answer = pause(client, proxy, name, token_of(text))
    assert answer.status_code == 303, answer.text
    assert controller.store.summary(name).wish == "pause"
    assert [one.who for one in controller.records.history(name)] == ["alice"]


def test_what_a_browser_says_of_itself_is_replaced(
    page: tuple[Controller, Path], proxy: Proxy
) -> None:
    """Who is logged in stays who he is; who may only look gets no form, and no further with one."""
    controller = page[0]
    name = planned(controller, proxy, "looked-at")
    with proxy.client("alice") as client:
        token = token_of(client.get(f"/campaigns/{name}").text)
    with proxy.client("mallory", **{"X-Remote-User": "alice"}) as client:
        text = client.get(f"/campaigns/{name}").text
        assert '<span class="user">mallory</span>' in text
        assert token_of(text) == ""
        answer = pause(client, proxy, name, token)
    assert answer.status_code == 403
    assert "mallory may only look" in answer.text
    assert controller.store.summary(name).wish == "run"


def test_nobody_gets_in_without_a_password(page: tuple[Controller, Path], proxy: Proxy) -> None:
    with proxy.client(**{"X-Remote-User": "alice"}) as client:
        answer = client.get("/")
    assert answer.status_code == 401
    assert "alice" not in answer.text
    with proxy.client(Authorization="Basic YWxpY2U6d3Jvbmc=") as client:  # alice:wrong
        assert client.get("/").status_code == 401


@pytest.mark.parametrize("way", ["nginx", "caddy"])
def test_where_nobody_has_logged_in_nobody_is_named(
    page: tuple[Controller, Path], tmp_path: Path, way: str
) -> None:
    """As for a part of a site that all may see: the header is replaced there too."""
    controller = page[0]
    name = f"open-{way}"
    controller.plan(name)
    with (
        WAYS[way](tmp_path, page[1], open_=True) as proxy,
        proxy.client(**{"X-Remote-User": "alice"}) as client,
    ):
        answer = client.get(f"/campaigns/{name}")
        assert '<span class="user">alice</span>' not in answer.text
        assert token_of(answer.text) == ""
        assert pause(client, proxy, name, "").status_code in {400, 403}
    assert controller.store.summary(name).wish == "run"


def test_events_come_at_once(page: tuple[Controller, Path], proxy: Proxy) -> None:
    """The first, and one about something that happens meanwhile; the campaign is not over."""
    controller = page[0]
    name = planned(controller, proxy, "watched")
    with proxy.client("alice") as client, client.stream("GET", f"/campaigns/{name}/live") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        began = time.monotonic()
        _until_told(lines, "Nobody runs it")
        controller.store.wish(name, "abort")
        controller.store.claim(name, "another")
        controller.store.beat("another")
        controller.store.phase(name, "aborting", owner="another", reason="", in_a_row=0)
        _until_told(lines, "aborting")
        assert time.monotonic() - began < AT_ONCE


def _until_told(lines: Iterator[str], text: str) -> None:
    assert any(text in line for line in lines), "the stream has ended"
