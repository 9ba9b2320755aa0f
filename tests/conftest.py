"""For all tests: signals as a terminal leaves them, whatever started the tests."""

from __future__ import annotations

import signal

import pytest

# In the background, or under nohup, some are ignored; programs inherit that, and obey.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP):
    signal.signal(number, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-faults", action="store_true", help="each fault at each point, not the core of them"
    )
    parser.addoption("--faults-table", metavar="FILE", help="where to write what was seen of them")
    parser.addoption("--saves-table", metavar="FILE", help="where to write what was seen of saves")
