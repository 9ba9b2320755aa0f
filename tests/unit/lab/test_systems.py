"""Bare systems: what they need of this machine, and what is made of what is said there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.reach import apt_settings, environment, pip_settings
from lab.systems import Tally, no_way, tail


def test_only_what_reaches_pips_indexes_comes_along() -> None:
    listed = (
        "global.index-url='https://index.example/simple'\n"
        "global.extra-index-url='file:///opt/simple https://more.example/simple'\n"
        "global.find-links='/opt/wheels'\n"
        "global.cert='/etc/ssl/own.pem'\n"
        ":env:.index-url='https://other.example/simple'\n"
    )
    assert pip_settings(listed) == {
        "index-url": "https://other.example/simple",
        "extra-index-url": "https://more.example/simple",
    }
    assert not pip_settings("global.extra-index-url='file:///opt/simple'\n")
    assert not pip_settings("")


def test_only_what_reaches_apts_archives_comes_along() -> None:
    dump = [
        'APT::Architecture "amd64";',
        'Acquire::http "";',
        'Acquire::http::Proxy "http://proxy.example:3142";',
        'Acquire::Languages "none";',
        'Acquire::Retries "3";',
    ]
    assert list(apt_settings(dump)) == [dump[2], dump[4]]


def test_only_proxies_of_the_environment_come_along() -> None:
    machine = {"https_proxy": "http://proxy.example", "NO_PROXY": "localhost", "SECRET": "s"}
    found = environment(machine)
    assert found["https_proxy"] == "http://proxy.example"
    assert found["NO_PROXY"] == "localhost"
    assert "SECRET" not in found


def test_an_archive_out_of_reach_is_told_from_what_fails() -> None:
    said = "I: running apt-get update\nErr:1 x InRelease\n  Could not resolve 'archive.example'\n"
    assert no_way(said) == "Could not resolve 'archive.example'"
    assert not no_way("E: Unable to locate package nothing\n")


@pytest.mark.parametrize(
    ("counts", "words", "status"),
    [
        ((2, 0, 0), "2 passed, 0 failed", 0),
        ((2, 1, 0), "2 passed, 1 failed", 1),
        ((2, 0, 2), "2 passed, 0 failed, 2 skipped", 0),
        ((0, 0, 2), "0 passed, 0 failed, 2 skipped", 1),
    ],
)
def test_what_is_said_at_the_end(counts: tuple[int, int, int], words: str, status: int) -> None:
    tally = Tally()
    tally.passed, tally.failed, tally.skipped = counts
    assert str(tally) == words
    assert tally.status == status


def test_of_what_failed_the_end_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    lines = tail(log).splitlines()
    assert len(lines) == 40
    assert lines[-1] == "    | line 99"
