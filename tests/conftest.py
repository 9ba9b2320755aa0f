"""For all tests: signals as a terminal leaves them, and what failed is said at once."""

from __future__ import annotations

import signal

import pytest

_LINES = 12  # of a failure that are shown at once

# In the background, or under nohup, some are ignored; programs inherit that, and obey.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP):
    signal.signal(number, signal.SIG_DFL)


class SaysAtOnce:
    """Has the end of a failure on the screen when that happens: some runs take half an hour more.

    Args:
        config: Pytest's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for each part of a test."""
        screen = self._plugins.get_plugin("terminalreporter")
        if report.failed and screen is not None:
            lines = report.longreprtext.splitlines()[-_LINES:]
            screen.write_line(f"\n{report.nodeid} failed in its {report.when}:", red=True)
            screen.write_line("\n".join(f"    {line}" for line in lines))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SaysAtOnce(config))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-faults", action="store_true", help="each fault at each point, not the core of them"
    )
    parser.addoption("--faults-table", metavar="FILE", help="where to write what was seen of them")
    parser.addoption("--saves-table", metavar="FILE", help="where to write what was seen of saves")
