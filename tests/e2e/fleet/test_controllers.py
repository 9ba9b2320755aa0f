"""Several controllers with PostgreSQL: of one that is killed, another one takes over."""

from __future__ import annotations

import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from lab.host import Host
from tests.e2e.fleet.world import FleetWorld, ended
from tests.unit.eventually import wait_until

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
DATA = "/srv/postgres"
URL = "postgresql://nobody@d/postgres"

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(not PROGRAMS, reason="needs PostgreSQL: apt-get install postgresql"),
]


@pytest.fixture
def database(world: FleetWorld) -> Generator[str]:
    """A real PostgreSQL on d, for the lab's hosts."""
    d, programs = world.lab["d"], PROGRAMS[-1].parent
    _run(d, "install", "--directory", "--owner=65534", "--group=65534", "--mode=0700", DATA)
    _run(d, *NOBODY, str(programs / "initdb"), "-D", DATA, "-A", "trust", "-U", "nobody")
    with d.path(f"{DATA}/pg_hba.conf").open("a") as rules:
        rules.write("host all all samenet trust\n")
    _start(d)
    yield URL
    _control(d, "stop", "-m", "immediate")
    _run(d, "rm", "-rf", DATA)


def test_another_one_takes_over(world: FleetWorld, database: str) -> None:
    serving = world.begin_run("fleet", "serve", "--database", database, host="d")
    words = ("evacuate", "a", "--name", "taken-over", "--at-once", "1", "--database", database)
    process = world.begin_run(*words, host="c")
    world.wait_until_one_moves("taken-over", "--database", database)
    process.send_signal(signal.SIGKILL)
    ended(process)

    def over() -> bool:
        return set(world.moves("taken-over", "--database", database).values()) == {"moved"}

    try:
        for _ in range(6):  # 15 s until it is taken to be dead, and the moves
            try:
                wait_until(over)
            except AssertionError:
                continue
            break
        assert over()
    finally:
        serving.send_signal(signal.SIGTERM)
        run = ended(serving)
    assert "controller c-0 is dead; its campaigns go on here" in run.stderr, str(run)
    assert run.status == 0, str(run)
    world.check()


def test_a_database_that_goes_away_in_the_middle_is_waited_for(
    world: FleetWorld, database: str
) -> None:
    """What moves moves on; then the campaign goes on in its terminal, and nobody types anything."""
    words = ("evacuate", "a", "--name", "waits", "--at-once", "1", "--database", database)
    process = world.begin_run(*words, host="c")
    world.wait_until_one_moves("waits", "--database", database)
    d = world.lab["d"]
    _control(d, "stop", "-m", "immediate")
    wait_until(lambda: set(world.where().values()) != {"a"} and _is_idle(world))
    _start(d)
    run = ended(process)
    assert run.status == 0, str(run)
    assert "it is waited for, and nothing more is begun" in run.stderr
    assert "the fleet's database answers again: it goes on" in run.stderr
    world.check()


def _is_idle(world: FleetWorld) -> bool:
    """Whether nothing moves from a."""
    return world.lab["a"].run(["entourage", "status", "--json"]).stdout.strip() == "[]"


def test_two_campaigns_of_two_controllers_share_their_slots(
    world: FleetWorld, database: str
) -> None:
    """Both move to d, one at a time, though neither knows of the other but by the database."""
    moved = world.run("migrate", "web1", "b")
    assert moved.status == 0, str(moved)
    both = [
        world.begin_run(
            "evacuate", source, "--to", "d", "--name", f"shared-{source}", "--database", database,
            host=source,
        )
        for source in ("a", "b")
    ]  # fmt: skip
    most = 0
    while any(process.poll() is None for process in both):
        room = world.lab["d"].run(["entourage", "room", "--json"]).stdout
        most = max(most, room.split('"arriving": [', 1)[1].split("]", 1)[0].count('"') // 2)
    runs = [ended(process) for process in both]
    assert [run.status for run in runs] == [0, 0], "\n".join(map(str, runs))
    assert most == 1
    assert set(world.where().values()) == {"d"}
    world.check()


def _start(host: Host) -> None:
    options = f"-c listen_addresses=* -c unix_socket_directories={DATA} -c fsync=off"
    _control(host, "start", "-l", f"{DATA}/log", "-w", "-o", options)


def _control(host: Host, *words: str) -> None:
    _run(host, *NOBODY, str(PROGRAMS[-1].parent / "pg_ctl"), "-D", DATA, *words)


def _run(host: Host, *words: str) -> None:
    host.run(list(words), timeout=60)
