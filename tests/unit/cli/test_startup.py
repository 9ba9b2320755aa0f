from __future__ import annotations

import subprocess
import sys

import pytest

from entourage import __main__
from entourage.errors import JournalError
from entourage.offline import target as offline_target
from entourage.settings.model import Settings
from entourage.target import serve as agent_module
from entourage.target.caller import Caller
from entourage.version import __version__


def imported(*argv: str) -> set[str]:
    """The modules that a command line has imported when it ends."""
    code = (
        "import sys, entourage.__main__ as m\n"
        "try:\n    m.main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.splitlines()[-1].split())


def test_the_version_needs_next_to_nothing() -> None:
    modules = imported("--version")
    assert {name.partition(".")[0] for name in modules}.isdisjoint(
        {"typer", "rich", "msgspec", "asyncio", "qemu", "sqlite3"}
    )


@pytest.mark.parametrize("words", [["--version"], ["list", "--help"], ["list", "--nosuch"]])
def test_the_program_ends_at_once_and_says_all_that_main_says(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    status = __main__.main(words)
    said = capfd.readouterr()
    program = (
        "import atexit, entourage.__main__ as m\n"
        "atexit.register(print, 'Python has gone to pieces')\n"
        "m.command()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, said.out, said.err)


def test_output_that_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        ended = subprocess.run(
            [sys.executable, "-m", "entourage", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 120
    assert ended.stderr == "entourage: cannot write its output: No space left on device\n"


def test_nothing_can_be_told_at_all() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        ended = subprocess.run(
            [sys.executable, "-m", "entourage", "--version"],
            stdout=full,
            stderr=full,
            check=False,
        )
    assert ended.returncode == 120


def test_the_agent_needs_nothing_that_draws_or_parses() -> None:
    modules = imported("agent", "--config", "/nosuch.toml")
    assert "msgspec" in modules
    assert {name.partition(".")[0] for name in modules}.isdisjoint({"typer", "rich"})


def test_what_the_agent_is_started_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[Caller] = []

    async def serve(_settings: Settings, caller: Caller) -> None:
        served.append(caller)

    monkeypatch.setattr(agent_module, "serve", serve)
    monkeypatch.delenv("ENTOURAGE_CONFIG", raising=False)
    assert __main__.main(["agent"]) == 0
    assert len(served) == 1
    assert __main__.main(["agent", "--config", "/nosuch.toml"]) == 2
    assert capsys.readouterr().err.startswith("entourage: /nosuch.toml: ")
    assert __main__.main(["agent", "--help"]) == 0
    assert __main__.main(["agent", "--nosuch"]) == 2
    assert served == [Caller()]
    assert __main__.main(["agent", "--source", "a", "--proxy"]) == 0
    assert served[1:] == [Caller(proxy=True, source="a")]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("entourage agent", 0),
        ("sudo entourage agent", 0),
        ("/opt/entourage/bin/entourage --version", 0),
        ("entourage agent --proxy", 2),
        ("entourage agent --config /tmp/mine.toml", 2),
        ("entourage agent --source b", 2),
        ("entourage agent --join /run/docker.sock memory", 2),
        ("entourage agent --join /run/entourage/../docker.sock memory", 2),
        ("entourage agent --join /run/entourage/xen-0a.incoming/streams-00 memory", 2),
        ("entourage agent --join /run/entourage/xen-0a.incoming/streams memory", 1),
        ("entourage stop web1", 2),
        ("sh -c 'id; entourage agent'", 2),
        ("bash", 2),
        ("'", 2),
        ("", 2),
    ],
)
def test_a_forced_command_only_moves_machines_in(
    asked: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Caller] = []

    async def serve(_settings: Settings, caller: Caller) -> None:
        served.append(caller)

    monkeypatch.setattr(agent_module, "serve", serve)
    monkeypatch.delenv("ENTOURAGE_CONFIG", raising=False)
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", asked)
    assert __main__.main(["agent", "--forced", "--source", "a"]) == status
    assert all(caller == Caller(source="a") for caller in served)
    assert bool(served) == (status == 0 and not asked.endswith("--version"))


@pytest.mark.parametrize("option", ["--offline", "--saves", "--proxy", "--local"])
def test_a_forced_command_is_of_nothing_that_is_held_to_less(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ENTOURAGE_CONFIG", raising=False)
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "entourage agent")
    for words in (["--forced", option], [option, "--forced"]):
        assert __main__.main(["agent", *words]) == 2
        assert f"not with {option}" in capsys.readouterr().err


def test_what_is_off_is_taken_of_the_keys_source_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Caller] = []

    async def serve(_settings: Settings, caller: Caller) -> None:
        served.append(caller)

    monkeypatch.setattr(offline_target, "serve", serve)
    monkeypatch.delenv("ENTOURAGE_CONFIG", raising=False)
    assert __main__.main(["agent", "--offline", "--source", "a"]) == 0
    assert served == [Caller(source="a")]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (JournalError("the journal is torn"), 1, "entourage: the journal is torn"),
        (ZeroDivisionError("x"), 1, "entourage: a bug: ZeroDivisionError: x"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_the_agent_says_when_it_cannot(
    error: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def serve(_settings: Settings, _caller: Caller) -> None:
        raise error

    monkeypatch.setattr(agent_module, "serve", serve)
    assert __main__.main(["agent"]) == status
    out, err = capsys.readouterr()
    assert err.startswith(said)
    assert "Traceback" not in err
    assert out == ""  # it is the link's


def test_as_a_module(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["entourage", "--version"])
    assert __main__.main() == 0
    assert capsys.readouterr().out == f"entourage {__version__}\n"
