"""A real controller with a real database, hosts that are stand-ins, and a real browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from entourage.fleet.database import open_engine
from entourage.fleet.records import Records
from entourage.fleet.store import Spec, Store
from entourage.fleet.values import FleetDomain, Host, Limits, Move, Plan
from tests.page import standin
from tests.unit.eventually import wait_until

CHROMIUM = shutil.which("chromium")
HOSTS = ("a", "b", "c", "d")
DOMAINS = ("web1", "web2", "web3", "db1", "<img src=x onerror=alert(1)>", "mail")
ROOT = Path(__file__).parents[2]
WIDE = ViewportSize(width=1280, height=900)
PHONE = ViewportSize(width=390, height=844)


class Controller:
    """``entourage fleet serve`` on a fleet in a directory.

    Args:
        path: Where all of it lies.
        names: What browsers call it.
    """

    def __init__(self, path: Path, names: Sequence[str] = ()) -> None:
        self._path = path
        self.hosts = path / "hosts"
        fleet = "".join(f'[[host]]\nname = "{name}"\n' for name in HOSTS)
        (path / "fleet.toml").write_text(fleet)
        (path / "entourage.toml").write_text(
            f'[fleet]\nmay = ["alice"]\ntrusted-proxies = ["127.0.0.1"]\n'
            f"names = {json.dumps(names)}\n"
            f'[paths]\nstate = "{path}/state"\nrun = "{path}/run"\n'
        )
        (path / "bin").mkdir()
        ssh = path / "bin" / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec {sys.executable} {standin.__file__} "$@"\n')
        ssh.chmod(0o755)
        self.fresh(pace=1.0)
        (path / "state").mkdir()
        self.store = Store(open_engine(f"sqlite:///{path}/state/fleet.db"))
        self.records = Records(self.store.engine)
        self.url = ""

    def fresh(self, *, pace: float) -> None:
        """Have all domains on a again, and moves take so many seconds."""
        hosts = {"a": list(DOMAINS), "b": ["cache"], "c": [], "d": ["old"]}
        standin.begin(self.hosts, hosts, pace=pace, odd="web3")

    def fresh_pace(self, pace: float) -> None:
        """Have moves that begin from now on take so many seconds."""
        standin.set_pace(self.hosts, pace)

    def run(self, *words: str) -> subprocess.Popen[str]:
        """Begin a command of Entourage's here."""
        path = f"{self._path}/bin:{os.environ['PATH']}"
        given = {
            "STANDIN_FLEET": f"{self._path}/hosts", "PATH": path,
            "ENTOURAGE_CONFIG": f"{self._path}/entourage.toml",
            "ENTOURAGE_FLEET": f"{self._path}/fleet.toml",
        }  # fmt: skip
        command = [sys.executable, "-m", "entourage", *words]
        return subprocess.Popen(
            command, env={**os.environ, **given}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=ROOT,
        )  # fmt: skip

    def serve(self, listen: str = "127.0.0.1:0") -> subprocess.Popen[str]:
        """Have it run; it has said by then where the page is."""
        process = self.run("fleet", "serve", "--listen", listen)
        assert process.stderr is not None
        for line in process.stderr:
            if "the page is at " in line:
                self.url = f"http://{line.split()[-1]}"
                return process
        raise AssertionError("it has ended")

    def plan(self, name: str) -> None:
        """Write a campaign down that empties a, as `evacuate` does; nobody runs it yet."""
        moves = [
            Move(name=each, uuid=standin.uuid(each), source="a", target=target, memory=1 << 30)
            for each, target in zip(DOMAINS, ("b", "c", "d", "b", "c", "d"), strict=True)
        ]
        domains = [
            FleetDomain(name=move.name, uuid=move.uuid, host="a", memory=move.memory)
            for move in moves
        ]
        hosts = [Host(name=each, memory=16 << 30, free=12 << 30) for each in HOSTS[1:]]
        refused = [(standin.uuid("web3"), "b", "there is no <b>1050:0407</b>", "plug one in")]
        plan = Plan(hosts=["a"], moves=moves)
        limits = Limits(at_once=1, wait=1.0)
        with self.store.planning() as planning:
            planning.add(
                name,
                Spec(plan=plan, limits=limits, hosts=hosts, domains=domains, refused=refused),
            )

    def known(self, name: str) -> Mapping[str, int]:
        """A campaign's moves by status; nothing where there is none of that name."""
        for one in self.store.summaries():
            if one.name == name:
                return one.counts
        return {}

    def phase(self, name: str) -> str:
        """Where a campaign is."""
        return self.store.summary(name).phase

    def wait_for(self, name: str, phase: str) -> None:
        """Wait until it is there."""
        wait_until(lambda: self.phase(name) == phase)


@pytest.fixture(scope="session")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Generator[Controller]:
    controller = Controller(tmp_path_factory.mktemp("page"))
    process = controller.serve()
    yield controller
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)
    controller.store.engine.dispose()
    assert process.returncode == 0, said


@pytest.fixture(scope="session")
def browser() -> Generator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: `make test-page` installs Debian's")
    with sync_playwright() as playwright:
        # Its sandbox needs user namespaces, which root in a container may not have.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A browser's page, and what it complained of."""

    def __init__(self, browser: Browser, controller: Controller, **more: object) -> None:
        options: dict[str, object] = {
            "viewport": WIDE, "extra_http_headers": {"X-Remote-User": "alice"}, **more,
        }  # fmt: skip
        self.context = browser.new_context(base_url=controller.url, **options)  # type: ignore[arg-type]
        self.context.set_default_timeout(20_000)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))

    def close(self) -> None:
        """End it; nothing was complained of: no stranger's script, nothing against the policy."""
        self.context.close()
        assert self.complaints == []
