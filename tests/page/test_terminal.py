"""Campaigns in a terminal, beside others; hosts are stand-ins."""

from __future__ import annotations

import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.page import standin
from tests.page.conftest import Controller
from tests.unit.eventually import wait_until

pytestmark = pytest.mark.matrix


@pytest.fixture
def alone(tmp_path: Path) -> Generator[Controller]:
    """A fleet whose controllers are terminals."""
    controller = Controller(tmp_path)
    hosts = {"a": ["web1", "web2", "web3", "web4"], "b": ["db1"], "c": [], "d": []}
    standin.begin(tmp_path / "hosts", hosts, pace=1.5)
    yield controller
    controller.store.engine.dispose()


def begin_and_kill(alone: Controller) -> None:
    """Begin to empty a, and kill whoever does."""
    first = alone.run("evacuate", "a", "--name", "killed", "--at-once", "1", "--to", "c,d")
    wait_until(lambda: alone.known("killed").get("moves"))  # the first of four, one at a time
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)


def test_a_campaign_that_goes_on_beside_another_one_is_waited_for(alone: Controller) -> None:
    begin_and_kill(alone)
    second = alone.run("evacuate", "b", "--name", "mine", "--to", "d")
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, (out, err)
    assert "killed, which was begun before, goes on here and is waited for" in err, err
    assert "killed: web4 moved to " in err, err
    assert alone.phase("killed") == "ended"
    assert alone.known("killed") == {"moved": 4}
    with standin.fleet(alone.hosts) as found:
        assert [one["cordons"] for one in found["hosts"].values()] == [[]] * 4


def test_one_that_is_paused_is_left_with_words(alone: Controller) -> None:
    begin_and_kill(alone)
    alone.store.wish("killed", "pause")
    second = alone.run("evacuate", "b", "--name", "mine", "--to", "d")
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, (out, err)
    assert "killed is left as it is: `entourage campaign resume killed` goes on with it" in err
    assert alone.known("killed") == {"moved": 1, "waits": 3}


def test_ctrl_c_leaves_it(alone: Controller) -> None:
    begin_and_kill(alone)
    second = alone.run("evacuate", "b", "--name", "mine", "--to", "d")
    assert second.stderr is not None
    assert any("killed, which was begun before" in line for line in second.stderr)
    second.send_signal(signal.SIGINT)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "killed is left as it is" in err
