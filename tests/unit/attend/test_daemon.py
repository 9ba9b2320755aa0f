"""The daemon of a host, with a stand-in for libvirt and no other host."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from entourage.attend import control, kept
from entourage.attend import daemon as module
from entourage.attend import settling as settling_module
from entourage.attend.backoff import Backoff
from entourage.attend.control import Asked
from entourage.attend.daemon import Daemon, log_event
from entourage.attend.domains import Domains
from entourage.attend.settling import Settling
from entourage.domain import Domain, External
from entourage.errors import EntourageError, HypervisorError, UsageError
from entourage.events import Finished
from entourage.handover.values import Record
from entourage.hypervisors.attended.origin import source_of
from entourage.hypervisors.attended.switchover import SourceSwitchover
from entourage.hypervisors.attended.toolstack import Arriving, Note, Shown
from entourage.journal.details import SourceDetails, TargetDetails
from entourage.report.lines import Teller
from entourage.settings.model import PathSettings, Settings
from tests.unit.attend.standins import StandInToolstack, recorded
from tests.unit.eventually import eventually, idle

UUID = "0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b"
DOMAIN = Domain(name="web1", uuid=UUID, memory=1 << 28, external=(External(id="x", type="x"),))
NOTE = Note(host="a", nonce="0" * 32)
HOOK = Asked(hook=("web1", "migrate", "begin"), xml="<domain/>")
ATTENDED = "attended:qemu:///system"


@dataclass
class Host:
    """One host's daemon; what it says to no other host."""

    settings: Settings
    stack: StandInToolstack
    daemon: Daemon
    arriving: asyncio.Event
    arrivals: int = 0


@pytest.fixture
def place() -> Generator[Path]:
    """Return a directory with a short name, as a socket's path must have."""
    with tempfile.TemporaryDirectory(prefix="at-") as directory:
        yield Path(directory)


@pytest.fixture
async def host(place: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    settings = Settings(paths=PathSettings(run=str(place / "run"), state=str(place)))
    stack = StandInToolstack(UUID, Shown.ABSENT, DOMAIN)

    def stand_in(_settings: Settings, _name: str) -> StandInToolstack:
        return stack

    monkeypatch.setattr(module, "open_toolstack", stand_in)
    one = Host(settings, stack, Daemon(settings), asyncio.Event())

    class NoAgent(contextlib.AbstractAsyncContextManager[None]):
        def __init__(self, *_what: Any) -> None: ...

        async def __aenter__(self) -> None:
            one.arrivals += 1
            await one.arriving.wait()
            raise EntourageError("no other host")

        async def __aexit__(self, *_error: object) -> None: ...

    monkeypatch.setattr("entourage.attend.target.start_agent", NoAgent)
    return one


@contextlib.asynccontextmanager
async def running(host: Host) -> AsyncGenerator[asyncio.Task[None]]:
    task = asyncio.create_task(host.daemon.run())
    control = Path(host.settings.paths.run, "attend/control")
    await eventually(lambda: task.done() or control.is_socket())
    try:
        yield task
    finally:
        host.daemon.end()
        await asyncio.wait({task})


async def ask(host: Host, asked: Asked) -> dict[str, str]:
    control = Path(host.settings.paths.run, "attend/control")
    reader, writer = await asyncio.open_unix_connection(control)
    writer.write(
        json.dumps({"hook": asked.hook, "xml": asked.xml, "on": asked.on}).encode() + b"\n"
    )
    try:
        return json.loads(await reader.readline())
    finally:
        writer.close()


async def test_a_second_daemon_is_kept_out(host: Host) -> None:
    """It would take the sockets from the first, which would wait for ever."""
    async with running(host):
        with pytest.raises(UsageError, match="attended here already"):
            await Daemon(host.settings).run()
        assert await ask(host, Asked()) == {}


@pytest.mark.parametrize("what", ["follow", "settle"])
async def test_one_that_cannot_go_on_ends(
    host: Host, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """So that systemd starts another; half of one would look as if it attended."""

    async def fails(*_self: Any) -> None:
        raise ZeroDivisionError("a bug")

    if what == "follow":
        host.stack.changed.put_nowait(ZeroDivisionError("a bug"))
    else:
        monkeypatch.setattr(Settling, "run", fails)
    async with asyncio.timeout(10):
        with pytest.raises(EntourageError, match="a bug"):
            await host.daemon.run()


async def test_one_that_is_stopped_ends_well(host: Host) -> None:
    async with running(host) as task:
        host.daemon.end()
        async with asyncio.timeout(10):
            await task


async def test_a_guest_that_is_in_the_air_is_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection was kept as the last daemon died: it would be lost with this one."""
    asked: list[asyncio.Event] = []

    async def answer(*given: Any) -> None:
        asked.append(given[-1])
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(kept, "given", lambda: [(UUID, "0" * 32, None)])
    monkeypatch.setattr(kept, "answer", answer)
    async with running(host) as task, asyncio.timeout(10):
        await eventually(lambda: asked)
        host.daemon.end()
        await idle()
        assert not task.done()
        asked[0].set()
        await task


async def test_a_domain_that_is_told_of_is_looked_at(host: Host) -> None:
    host.stack.now = Shown.RUNNING
    async with running(host):
        host.stack.changed.put_nowait("")
        await eventually(lambda: host.stack.written)
        host.stack.written = None
        host.stack.changed.put_nowait(UUID)
        await eventually(lambda: host.stack.written)


async def test_a_look_that_failed_is_made_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domains_of(host), "_backoff", Backoff(0.001, 0.001))
    host.stack.now, host.stack.refuses = Shown.RUNNING, HypervisorError("not now")
    async with running(host):
        host.stack.changed.put_nowait("")
        await eventually(lambda: host.stack.looks > 1)
        host.stack.refuses = None
        await eventually(lambda: host.stack.written)


async def test_of_two_looks_the_first_is_not_put_off(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes back is looked at within a second, whatever it was before."""
    host.stack.now, host.stack.refuses = Shown.RUNNING, HypervisorError("not now")
    async with running(host):
        for first, longest in ((3600.0, 3600.0), (0.001, 0.001)):
            monkeypatch.setattr(domains_of(host), "_backoff", Backoff(first, longest))
            looks = host.stack.looks
            host.stack.changed.put_nowait(UUID)
            await eventually(lambda looks=looks: host.stack.looks > looks)
        host.stack.refuses = None
        await eventually(lambda: host.stack.written)


async def test_who_waits_for_an_answer_is_told_that_it_is_worked_on(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook does not wait for a daemon that hangs."""
    monkeypatch.setattr(control, "LIVES_EVERY", 0.001)
    host.stack.coming = Arriving(name="web1", uuid=UUID, note=NOTE)
    async with running(host):
        path = Path(host.settings.paths.run, "attend/control")
        reader, writer = await asyncio.open_unix_connection(path)
        asked = {"hook": HOOK.hook, "xml": HOOK.xml}
        writer.write(json.dumps(asked).encode() + b"\n")
        assert [await reader.readline() for _ in range(3)] == [b"\n"] * 3
        host.arriving.set()
        said = b"\n"
        while said == b"\n":
            said = await reader.readline()
        assert "no other host" in json.loads(said)["refuse"]
        writer.close()


async def test_a_domain_that_comes_is_waited_for(host: Host) -> None:
    host.stack.coming = Arriving(name="web1", uuid=UUID, note=NOTE)
    async with running(host):
        asking = asyncio.create_task(ask(host, HOOK))
        await eventually(lambda: host.arrivals)
        assert "on its way" in (await ask(host, HOOK))["refuse"]
        host.arriving.set()
        assert "no other host" in (await asking)["refuse"]
        await nothing_left(host)


async def test_two_that_come_at_once(host: Host) -> None:
    """One of them: what both would find is that none is there yet."""
    host.stack.coming = Arriving(name="web1", uuid=UUID, note=NOTE)
    host.stack.looking = asyncio.Event()
    async with running(host):
        asking = [asyncio.create_task(ask(host, HOOK)) for _ in range(2)]
        await eventually(lambda: host.stack.looks)
        host.stack.looking.set()
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        assert "on its way" in done.pop().result()["refuse"]
        assert host.arrivals == 1
        host.arriving.set()
        await asyncio.gather(*asking)
        await nothing_left(host)


@pytest.mark.parametrize("now", [Shown.RUNNING, Shown.PAUSED, Shown.HELD])
async def test_a_domain_that_is_here_does_not_come(host: Host, now: Shown) -> None:
    host.stack.coming, host.stack.now = Arriving(name="web1", uuid=UUID, note=NOTE), now
    async with running(host):
        assert "is here" in (await ask(host, HOOK))["refuse"]
        assert not host.arrivals


@pytest.mark.parametrize("source", ["-oProxyCommand=x", "", "a b", "a\n", "/x"])
async def test_what_no_host_is_called_is_not_asked(host: Host, source: str) -> None:
    """It stands in the metadata, which whoever owns the domain can write."""
    note = Note(host=source, nonce=NOTE.nonce)
    host.stack.coming = Arriving(name="web1", uuid=UUID, note=note)
    async with running(host):
        assert "is not Entourage's" in (await ask(host, HOOK))["refuse"]
        assert not host.arrivals


async def test_what_is_refused_says_nothing_that_a_terminal_obeys(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(_description: str) -> Arriving:
        raise HypervisorError("refused:\nnot\x1b[31m now")

    monkeypatch.setattr(host.stack, "arriving", refuses)
    async with running(host):
        assert (await ask(host, HOOK))["refuse"] == "refused:\nnot\\x1b[31m now"


def test_what_is_left_to_be_done_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody else is told of it: virsh has ended well."""
    problem = "notice/told on b: it was not told\x1b[31m"
    outcome = "clean-up-incomplete"
    event = Finished(at=3, outcome=outcome, seconds=3, runs_on="b", problems=(problem,))
    log_event(Teller(verbose=True), "web1", event)
    [line] = caplog.messages
    assert line.startswith("web1: left to be done: notice/told on b: it was not told")
    assert line.isprintable()


async def test_a_bus_that_cannot_be_made_leaves_nothing(host: Host) -> None:
    host.stack.coming = Arriving(name="web1", uuid=UUID, note=NOTE)
    async with running(host):
        buses = Path(f"{host.settings.paths.run}-attend")
        buses.rmdir()
        buses.write_text("no directory")
        assert "nothing can listen" in (await ask(host, HOOK))["refuse"]
        await nothing_left(host)


async def test_a_hook_that_has_gone_is_not_waited_for(host: Host) -> None:
    """A libvirtd that is killed takes its hooks with it."""
    host.stack.coming = Arriving(name="web1", uuid=UUID, note=NOTE)
    async with running(host):
        asking = asyncio.create_task(ask(host, HOOK))
        await eventually(lambda: host.arrivals)
        asking.cancel()
        await asyncio.wait({asking})
        await nothing_left(host)


async def nothing_left(host: Host) -> None:
    await eventually(lambda: domains_of(host).get(UUID) is None)
    assert not Path(f"{host.settings.paths.run}-attend", f"{UUID}.sock").exists()


def domains_of(host: Host) -> Domains:
    return host.daemon._domains  # pyright: ignore[reportPrivateUsage]


# What a crash has left


def gone(host: Host, *, told: bool) -> None:
    """Let the journal have a domain that went away."""
    details = SourceDetails(hypervisor=ATTENDED, peer_was_told=told)
    recorded(host.settings, UUID, details, Record.ARMED, Record.GONE, clean=True)


@pytest.mark.parametrize("told", [False, True])
async def test_a_target_that_does_not_know_yet_is_told(host: Host, *, told: bool) -> None:
    gone(host, told=told)
    domains = Domains(host.settings, host.stack, lambda _uuid, _pause: None)
    settling = Settling(host.settings, domains, ATTENDED)
    assert settling.unsettled() == (set() if told else {UUID})


async def test_what_is_busy_is_not_settled(host: Host) -> None:
    gone(host, told=False)
    domains = Domains(host.settings, host.stack, lambda _uuid, _pause: None)
    domains.open()
    domains.expect(UUID).source = SourceSwitchover("00")
    assert Settling(host.settings, domains, ATTENDED).unsettled() == set()


async def test_nothing_is_settled_while_a_guest_stands_still(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written to the journal then would be waited for."""
    monkeypatch.setattr(settling_module, "_LOOK_AGAIN", 0.001)
    monkeypatch.setattr(settling_module, "_WAITS_FOR", 0)
    looked: list[bool] = []

    async def settle(_self: Settling) -> bool:
        looked.append(True)
        return False

    monkeypatch.setattr(Settling, "settle", settle)
    domains = Domains(host.settings, host.stack, lambda _uuid, _pause: None)
    domains.open()
    one = domains.expect(UUID)
    one.source = SourceSwitchover("00")
    one.source.stands_still = True
    settling = asyncio.create_task(Settling(host.settings, domains, ATTENDED).run())
    await idle()
    assert not looked
    one.source.stands_still = False  # it goes on, or comes back
    await eventually(lambda: looked)
    settling.cancel()


async def test_what_is_not_settled_is_tried_less_and_less_often(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    seen = asyncio.Event()

    class NoTime(contextlib.AbstractAsyncContextManager[None]):
        def __init__(self, pause: float) -> None:
            pauses.append(pause)

        async def __aenter__(self) -> None:
            if len(pauses) == 7:
                seen.set()
                await asyncio.get_running_loop().create_future()
            raise TimeoutError

        async def __aexit__(self, *_error: object) -> None: ...

    async def settle(_self: Settling) -> bool:
        return True

    monkeypatch.setattr(Settling, "settle", settle)
    domains = Domains(host.settings, host.stack, lambda _uuid, _pause: None)
    settling = Settling(host.settings, domains, ATTENDED)
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "timeout", NoTime)
        task = asyncio.create_task(settling.run())
        await seen.wait()
        task.cancel()
    assert pauses == [2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("error", [EntourageError("no"), OSError(5, "no"), ValueError("no")])
async def test_a_journal_that_cannot_be_read_is_tried_again(
    host: Host, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(_self: Settling) -> set[str]:
        raise error

    monkeypatch.setattr(Settling, "unsettled", fails)
    domains = Domains(host.settings, host.stack, lambda _uuid, _pause: None)
    assert await Settling(host.settings, domains, ATTENDED).settle()


async def test_where_it_came_from_is_in_the_journal(host: Host) -> None:
    recorded(host.settings, UUID, TargetDetails(), Record.OPEN)
    assert source_of(host.settings, UUID) == "a"
    with pytest.raises(EntourageError, match="where it came from"):
        source_of(host.settings, UUID[::-1])
