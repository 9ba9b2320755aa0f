"""The page of a controller whose hosts are real: what they say is shown."""

from __future__ import annotations

import re
import signal
import sys

import pytest

from lab.host import Host
from tests.e2e.fleet.world import GUESTS, FleetWorld, ended
from tests.unit.eventually import wait_until

SOCKET = "/run/entourage/fleet.sock"
ASK = """
import sys, httpx2
transport = httpx2.HTTPTransport(uds=sys.argv[1])
with httpx2.Client(transport=transport, base_url="http://localhost", trust_env=False) as client:
    sys.stdout.write(client.get(sys.argv[2]).text)
"""


@pytest.mark.matrix
def test_the_timeline_of_each_blackout_and_what_hosts_have(world: FleetWorld) -> None:
    """Also of a campaign that another process has run."""
    run = world.run("evacuate", "a", "--name", "shown", "--at-once", "2")
    assert run.status == 0, str(run)
    a = world.lab["a"]
    serving = world.begin_run("fleet", "serve", "--listen", f"unix:{SOCKET}")
    try:
        wait_until(lambda: a.run(["test", "-S", SOCKET], check=False).returncode == 0)
        wait_until(lambda: "being asked" not in page(a, "/hosts"))
        where, hosts = world.where(), page(a, "/hosts")
        for name in GUESTS:
            assert f">{name}</a>" in hosts
        assert "4 in the fleet, 0 cordoned, 0 silent" in hosts
        campaign = page(a, "/campaigns/shown")
        links = dict(re.findall(r'href="(/domains/[^"]+)">([^<]+)</a>', campaign))
        assert sorted(links.values()) == sorted(GUESTS)
        for address, name in links.items():
            html = page(a, address)
            assert f"Runs on {where[name]}" in html
            assert re.search(rf"Blackout [^:]*ms: the guest runs on \S*{where[name]}", html), html
            assert "block/disk0 TRANSFER" in html
        figures = page(a, "/metrics")
        assert "entourage_fleet_hosts_silent 0.0" in figures
        assert re.search(r"entourage_fleet_blackout_seconds_count [3-9]", figures)
    finally:
        serving.send_signal(signal.SIGTERM)
        said = ended(serving)
    assert said.status == 0, str(said)
    assert a.run(["test", "-e", SOCKET], check=False).returncode == 1
    world.check()


def page(host: Host, address: str) -> str:
    """What the page answers."""
    return host.run([sys.executable, "-c", ASK, SOCKET, address]).stdout
