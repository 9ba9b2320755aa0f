from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from entourage.__main__ import main
from entourage.cli import migrate as module
from entourage.errors import (
    DomainBusy,
    EntourageError,
    InDoubt,
    InternalError,
    Interrupted,
    MigrationFailed,
    Refused,
    UsageError,
)
from entourage.events import AnyEvent, Finished, GoSent, Listener, RollbackStarted
from entourage.source.opening import Opening
from entourage.source.request import Request
from entourage.steps import Refusal
from tests.unit.report.test_samples import refused, rolled_back, started, success

Play = Callable[["FakeMigration"], Awaitable[Finished]]


class FakeMigration:
    """An engine that plays what a test wants."""

    play: Play
    requests: list[Request]

    def __init__(self, request: Request, listener: Listener, opening: Opening) -> None:
        self.requests.append(request)
        self.opening = opening
        self.emit = listener
        self.why: list[str] = []
        self.handed_over = False
        self.interrupted = asyncio.Event()

    def interrupt(self, why: str) -> bool:
        if self.handed_over:
            return False
        self.why.append(why)
        self.interrupted.set()
        return True

    async def run(self) -> Finished:
        return await type(self).play(self)


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeMigration]:
    class Engine(FakeMigration):
        play = playing(success())
        requests: list[Request] = []  # noqa: RUF012 - of this test only

    monkeypatch.setattr(module, "Migration", Engine)
    monkeypatch.delenv("ENTOURAGE_CONFIG", raising=False)
    return Engine


def playing(events: list[AnyEvent], error: Exception | None = None) -> Play:
    async def play(migration: FakeMigration) -> Finished:
        for event in events:
            migration.emit(event)
        if error is not None:
            raise error
        last = events[-1]
        assert isinstance(last, Finished)
        return last

    return play


def finished(outcome: str, *, message: str = "", problems: tuple[str, ...] = ()) -> Finished:
    return msgspec.convert(
        {
            "event": "finished",
            "at": 1.0,
            "outcome": outcome,
            "seconds": 1.0,
            "runs_on": "a",
            "message": message,
            "problems": problems,
        },
        Finished,
    )


def test_a_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "web1", "b"]) == 0
    out, err = capsys.readouterr()
    assert "block/disk0   10 ms" in out
    assert "Blackout 32 ms" in out
    assert out.endswith("\nweb1 runs on b, moved in 13.1 s; it stood still for 32 ms\n")
    assert err.splitlines()[-1] == "   12.032  the guest runs on b; it stood still for 32 ms"


def test_the_request(engine: type[FakeMigration]) -> None:
    words = (
        "--max-blackout 300ms --bandwidth 100MiB/s --non-live --keep-source-disks --net br0=br1"
        " --net br2=br3 --disk disk0=/dev/vg/x --no-tls --data-address 10.0.0.2"
        " --ports 5000-5010 -o Port=2222 --ssh-option User=x --dry-run"
        " --pci pci0=41:00.0 --pci 3B:00.1=0001:05:00.0 --usb usb0=1050:0407 --usb 1-1.4=1.6"
    )
    argv = ["migrate", "web1", "root@b", *words.split()]
    assert main([*argv, "--tool", "/opt/my tool", "--remote-command", "sudo entourage"]) == 0
    request = engine.requests[0]
    assert (request.domain, request.route.host) == ("web1", "root@b")
    assert (request.live, request.dry_run, request.tool) == (False, True, "/opt/my tool")
    assert request.options.nets == {"br0": "br1", "br2": "br3"}
    assert request.options.disks == {"disk0": "/dev/vg/x"}
    assert request.options.pci == {"pci0": "0000:41:00.0", "0000:3b:00.1": "0001:05:00.0"}
    assert request.options.usb == {"usb0": "1050:0407", "1-1.4": "1.6"}
    assert request.options.keep_source_disks
    migration = request.settings.migration
    assert (migration.max_blackout, migration.bandwidth) == (0.3, 100 << 20)
    assert (migration.tls, migration.ports) == (False, (5000, 5010))
    assert migration.data_address == "10.0.0.2"
    assert request.settings.ssh.options == ("-o", "Port=2222", "-o", "User=x")
    assert request.settings.ssh.remote_command == "sudo entourage"


def test_what_is_not_given_stays_as_the_settings_have_it(
    engine: type[FakeMigration], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    path = f"{tmp_path}/settings.toml"
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write("[migration]\ntls = false\nports = [1, 2]\n[ssh]\noptions = ['-4']\n")
    assert main(["migrate", "web1", "b", "--config", path, "-o", "Port=1"]) == 0
    monkeypatch.setenv("ENTOURAGE_CONFIG", path)
    assert main(["migrate", "web1", "b", "--tls"]) == 0
    first, second = (request.settings for request in engine.requests)
    assert (first.migration.tls, first.migration.ports) == (False, (1, 2))
    assert first.ssh.options == ("-4", "-o", "Port=1")
    assert second.migration.tls


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--max-blackout never", "--max-blackout: 'never' is no duration"),
        ("--max-blackout 0", "--max-blackout 0: must be more than 0"),
        ("--max-blackout 8d", "--max-blackout 8d: must be more than 0 and at most 7 days"),
        ("--bandwidth much", "--bandwidth: 'much' is no rate"),
        ("--ports 80", "--ports 80: no range of TCP ports"),
        ("--ports 9-8", "--ports 9-8: no range of TCP ports"),
        ("--ports 1-70000", "--ports 1-70000: no range of TCP ports"),
        ("--net br0", "--net br0: write HERE=THERE"),
        ("--net br0=a --net br0=b", "--net: br0 is given twice"),
        ("--disk disk0=", "--disk disk0=: write HERE=THERE"),
        ("--disk disk0=x", "--disk disk0=x: not an absolute path"),
        ("--pci pci0", "--pci pci0: write HERE=THERE"),
        ("--pci pci0=41:00", "--pci pci0=41:00: 41:00 names no device"),
        ("--pci pci0=$(x)", "--pci pci0=$(x): $(x) names no device"),
        ("--usb usb0=1-", "--usb usb0=1-: 1- names no device"),
        ("--pci a=5:00.0", "--pci a=5:00.0: 5:00.0 names no device"),
        ("--pci a=05:00.0 --pci b=0000:05:00.0", "--pci: 0000:05:00.0 cannot stand for two"),
        ("--pci 05:00.0=06:00.0 --pci 0000:05:00.0=07:00.0", "--pci: 0000:05:00.0 is given twice"),
        ("--usb a=1.6 --usb b=1.6", "--usb: 1.6 cannot stand for two"),
        ("--data-address -x", "--data-address -x: neither an address nor a host's name"),
        ("--config /nosuch", "/nosuch: "),
    ],
)
def test_wrong_options(
    words: str, message: str, engine: type[FakeMigration], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", "web1", "b", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"entourage: {message}")
    assert out == ""
    assert not engine.requests


@pytest.mark.parametrize("host", ["", "-oProxyCommand=x", "b c", "b\nc", "b\x1b[2J"])
def test_wrong_hosts(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--", "web1", host]) == 2
    assert "is no host name" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["web one", "$(touch x)", "'\"", "ü漢", "[bold]x"])
def test_names_pass_unharmed(name: str, engine: type[FakeMigration]) -> None:
    assert main(["migrate", name, "b"]) == 0
    assert engine.requests[0].domain == name


REFUSED = Refused([Refusal("net/net0", "b", "no bridge"), Refusal("tpm/tpm0", "b", "no swtpm")])


@pytest.mark.parametrize(
    ("play", "status", "said"),
    [
        (playing(refused(), REFUSED), 3, "entourage: refused: net/net0 and tpm/tpm0 cannot move"),
        (
            playing([finished("failed")], DomainBusy("web1 is being migrated")),
            3,
            "entourage: web1 is being",
        ),
        (playing([finished("failed")], UsageError("no domain x")), 2, "entourage: no domain x"),
        (playing([finished("failed")], EntourageError("no way")), 1, "entourage: no way"),
        (
            playing(
                rolled_back(),
                MigrationFailed("no licence", device="tpm/tpm0", host="a", remedy="buy one"),
            ),
            4,
            "entourage: tpm/tpm0 on a: no licence\n  remedy: buy one\n",
        ),
        (
            playing([started(), finished("in-doubt")], InDoubt("b is silent")),
            6,
            "entourage: b is silent",
        ),
        (
            playing([started(), finished("rolled-back")], Interrupted("given up")),
            4,
            "entourage: given up",
        ),
        (playing([started(), finished("clean-up-incomplete", problems=("x is left",))]), 5, ""),
        (playing([started(), finished("can-move")]), 0, ""),
        (
            playing([started(), finished("rolled-back")], ZeroDivisionError("x")),
            4,
            "entourage: a bug",
        ),
        (playing([started()], ZeroDivisionError("x")), 1, "entourage: a bug: ZeroDivisionError: x"),
        (
            playing([started()], OSError(28, "No space left on device", "/x")),
            1,
            "entourage: /x: no space",
        ),
    ],
)
def test_outcomes(
    play: Play,
    status: int,
    said: str,
    engine: type[FakeMigration],
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine.play = play
    assert main(["migrate", "web1", "b"]) == status
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert main(["migrate", "web1", "b", "--json"]) == status
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[-1]["event"] == "finished"
    assert [line["event"] for line in lines].count("finished") == 1
    assert said in err


def test_the_traceback_of_a_bug_is_shown_where_it_was_rolled_back(
    engine: type[FakeMigration], capsys: pytest.CaptureFixture[str]
) -> None:
    bug = InternalError(ZeroDivisionError("the seventh"))
    failed = MigrationFailed("its controller has a bug", device="tpm/tpm0", remedy=bug.remedy)
    failed.__cause__ = bug
    engine.play = playing(rolled_back(), failed)
    assert main(["migrate", "web1", "b", "--verbose"]) == 4
    err = capsys.readouterr().err
    assert "ZeroDivisionError: the seventh" in err
    assert err.endswith("remedy: please report it\n")
    assert main(["migrate", "web1", "b"]) == 4
    err = capsys.readouterr().err
    assert "ZeroDivisionError" not in err
    assert err.endswith("remedy: please report it; --verbose shows where it happened\n")


def test_json_tells_also_what_went_wrong_before_there_was_a_migration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["migrate", "web1", "b", "--json", "--ports", "x"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["outcome"] == "failed"
    assert json.loads(out)["message"].startswith("--ports x: no range")
    assert err.startswith("entourage: --ports x")


def test_json_is_all_that_standard_output_gets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "web1", "b", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [msgspec.json.decode(line, type=AnyEvent) for line in out.splitlines()] == success()
    assert err == ""


def test_verbose_shows_every_step_and_a_bug(
    engine: type[FakeMigration], capsys: pytest.CaptureFixture[str]
) -> None:
    engine.play = playing(success(), ZeroDivisionError("x"))
    assert main(["migrate", "web1", "b", "-v"]) == 1
    err = capsys.readouterr().err
    assert "net/net0 TRANSFER 0.2 ms" in err
    assert "Traceback" in err
    assert "with --verbose" not in err


def interruptible(*numbers: signal.Signals) -> Play:
    """Goes back when it is interrupted, and takes a while about it."""

    async def play(migration: FakeMigration) -> Finished:
        migration.emit(started())
        for number in numbers:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.01)
        await asyncio.wait_for(migration.interrupted.wait(), 5)
        migration.emit(RollbackStarted(at=1.0, reason=migration.why[0]))
        migration.emit(finished("rolled-back"))
        raise Interrupted(f"given up: {migration.why[0]}")

    return play


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (signal.SIGINT, "interrupted with Ctrl-C"),
        (signal.SIGTERM, "asked to end (SIGTERM)"),
        (signal.SIGHUP, "the terminal is gone (SIGHUP)"),
    ],
)
def test_a_signal_before_the_hand_over_goes_back(
    number: signal.Signals,
    why: str,
    engine: type[FakeMigration],
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine.play = interruptible(number)
    before = signal.getsignal(number)
    assert main(["migrate", "web1", "b"]) == 4
    assert signal.getsignal(number) is before
    err = capsys.readouterr().err
    assert f"entourage: {why}: going back" in err
    assert err.endswith(f"entourage: given up: {why}\n")


def test_many_signals_tear_nothing(
    engine: type[FakeMigration], capsys: pytest.CaptureFixture[str]
) -> None:
    engine.play = interruptible(*[signal.SIGINT, signal.SIGTERM, signal.SIGTSTP] * 4)
    assert main(["migrate", "web1", "b", "--json"]) == 4
    out, err = capsys.readouterr()
    assert err.count(": going back") == 1
    assert err.count("still going back") == 7
    assert err.count("not while a domain is on its way") == 4
    assert json.loads(out.splitlines()[-1])["outcome"] == "rolled-back"


def test_a_signal_after_the_hand_over_changes_nothing(
    engine: type[FakeMigration], capsys: pytest.CaptureFixture[str]
) -> None:
    async def play(migration: FakeMigration) -> Finished:
        for event in success():
            if isinstance(event, GoSent):
                migration.handed_over = True
                for _ in range(3):
                    os.kill(os.getpid(), signal.SIGINT)
                    await asyncio.sleep(0.01)
            migration.emit(event)
        last = success()[-1]
        assert isinstance(last, Finished)
        return last

    engine.play = play
    assert main(["migrate", "web1", "b"]) == 0
    assert capsys.readouterr().err.count("entourage: handed over, completing") == 3


def test_what_nohup_ignores_stays_ignored(engine: type[FakeMigration]) -> None:
    async def play(migration: FakeMigration) -> Finished:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.01)
        assert not migration.why
        return finished("moved")

    engine.play = play
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["migrate", "web1", "b"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
