"""`entourage migrate --offline`: what it is given, and what it shows."""

from __future__ import annotations

import pytest

from entourage.cli.app import run
from entourage.errors import EntourageError, InternalError
from entourage.offline import source
from entourage.offline.leaving import Asked

WORDS = ("migrate", "--offline", "rests", "b")


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """The moves that were asked for; each tells a step."""
    found: list[Asked] = []

    async def move(asked: Asked) -> None:
        found.append(asked)
        asked.told("b has it, off")

    monkeypatch.setattr(source, "move", move)
    monkeypatch.delenv("ENTOURAGE_CONFIG", raising=False)
    return found


@pytest.mark.parametrize(
    "options",
    [["--tls"], ["--no-tls"], ["--bandwidth", "0"], ["--max-blackout", "1s"], ["--net", "br0=br1"]],
)
def test_what_would_do_nothing_is_refused(
    options: list[str], moves: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*WORDS, *options]) == 2
    option = "--tls" if options == ["--no-tls"] else options[0]
    assert f"{option}: not of a domain that is off" in capsys.readouterr().err
    assert run(["migrate", "--no-host-has-it", "rests", "b"]) == 2
    assert "--no-host-has-it is of --offline" in capsys.readouterr().err
    assert moves == []


def test_each_step_is_shown_to_who_asks_for_that(
    moves: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    """And to no program."""
    for options in ([], ["-q"], ["-v"], ["-v", "--json"]):
        assert run([*WORDS, *options]) == 0
        said = capsys.readouterr()
        assert ("entourage: rests: b has it, off" in said.err) == (options == ["-v"]), options
        assert ("rests is on b, off" in said.out) == ("--json" not in options)
    assert not any(one.certain for one in moves)
    assert run([*WORDS, "--no-host-has-it"]) == 0
    assert moves[-1].certain


def test_the_traceback_of_a_bug_behind_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def move(_asked: Asked) -> None:
        raise EntourageError("it failed") from InternalError(ZeroDivisionError("x"))

    monkeypatch.setattr(source, "move", move)
    monkeypatch.delenv("ENTOURAGE_CONFIG", raising=False)
    for options in ([], ["--verbose"]):
        assert run([*WORDS, *options]) == 1
        assert ("ZeroDivisionError" in capsys.readouterr().err) == bool(options)
