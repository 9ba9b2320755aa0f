"""The lab that the end-to-end tests share, and what they need of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.backports import NoBackportsError, backports
from lab.hosts import Lab
from tests.e2e import saves_table
from tests.e2e.faults.matrix import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from lab.host import Host

_FAILED = pytest.StashKey[bool]()
_SAVES = pytest.StashKey[dict[str, saves_table.Row]]()


@pytest.fixture(scope="session")
def lab() -> Generator[Lab]:
    """Hosts a and b for the whole session. A test that breaks one mends it.

    Those that LAB_BACKPORTS names have libvirt and QEMU of Debian's backports: "b", or "a b". Where
    the machine has none, as Ubuntu, its tests are skipped.
    """
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    try:
        unpacked = {host: [backports()] for host in os.environ.get("LAB_BACKPORTS", "").split()}
    except NoBackportsError as error:
        pytest.skip(str(error))
    with Lab.up(hosts=("a", "b"), name=f"e2e-{os.getpid()}", unpacked=unpacked) as lab:
        yield lab


@pytest.fixture
def a(lab: Lab) -> Generator[Host]:
    if not lab["a"].is_on:
        lab["a"].power_on()
    yield lab["a"]
    lab.mend_all()  # of a test that failed midway


@pytest.fixture
def b(lab: Lab) -> Host:
    if not lab["b"].is_on:
        lab["b"].power_on()
    return lab["b"]


@pytest.fixture
def c(lab: Lab) -> Host:
    """Return a third host, made when first asked for."""
    if "c" not in lab.hosts:
        lab.add("c")
    if not lab["c"].is_on:
        lab["c"].power_on()
    return lab["c"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember which tests have failed."""
    report = yield
    if report.failed and report.when == "call":
        item.stash[_FAILED] = True
    if item.config.getoption("saves_table") and (report.when == "call" or report.failed):
        seen = item.config.stash.setdefault(_SAVES, {})
        before = seen.get(item.nodeid)
        seen[item.nodeid] = saves_table.Row(
            path=item.nodeid.partition("::")[0],
            title=saves_table.title_of(item.name, getattr(item, "obj", item).__doc__),
            case=item.name.partition("[")[2].removesuffix("]"),
            passed=report.passed and (before is None or before.passed),
            seconds=report.duration,
        )
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the page of ``make test-checkpoint``."""
    if path := session.config.getoption("saves_table"):
        saves_table.write(Path(path), list(session.config.stash.setdefault(_SAVES, {}).values()))


@pytest.fixture
def has_failed(request: pytest.FixtureRequest) -> Callable[[], bool]:
    """Whether the test has failed: what it shares with others must begin anew."""
    return lambda: request.node.stash.get(_FAILED, default=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the faults that only ``make test-faults`` tries."""
    if config.getoption("all_faults"):
        return
    left_out = [item for item in items if _is_extra(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not _is_extra(item)]


def _is_extra(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    case = callspec.params.get("case") if callspec else None
    return isinstance(case, Case) and not case.core


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.config.getoption("all_faults"):
        passed, failed = (len(terminalreporter.stats.get(how, ())) for how in ("passed", "failed"))
        failed += len(terminalreporter.stats.get("error", ()))
        terminalreporter.write_line(f"{passed} passed, {failed} failed")
