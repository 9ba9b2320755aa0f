"""What the target is told of how far a migration is, and the lock of this host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from entourage import messages
from entourage.errors import LinkLost
from entourage.source.session import Session


class Link:
    """A link that takes what is told; or that is lost."""

    def __init__(self, *, lost: bool = False) -> None:
        self.told: list[messages.Progress] = []
        self.lost = lost

    def tell(self, kind: Any, said: messages.Progress) -> None:
        assert kind is messages.PROGRESS
        if self.lost:
            raise LinkLost("link lost")
        self.told.append(said)


def told(link: Link, doing: str, protocol: int = messages.NEWEST) -> list[str]:
    noted: list[str] = []
    session = SimpleNamespace(
        link=link, note=noted.append, welcome=SimpleNamespace(protocol=protocol)
    )
    Session.progress(cast("Any", session), doing)
    return noted


def test_both_hosts_are_told() -> None:
    link = Link()
    assert told(link, "copying memory, 41 %") == ["copying memory, 41 %"]
    assert [said.doing for said in link.told] == ["copying memory, 41 %"]


@pytest.mark.parametrize(
    ("link", "protocol"),
    [(Link(lost=True), messages.TOLD_PROGRESS), (Link(), messages.TOLD_PROGRESS - 1)],
    ids=["lost", "older"],
)
def test_this_host_is_whatever_the_other_is(link: Link, protocol: int) -> None:
    assert told(link, "copying", protocol) == ["copying"]
    assert link.told == []


def test_what_is_too_long_for_the_target_is_cut() -> None:
    link = Link()
    told(link, "x" * 1000)
    assert [len(said.doing) for said in link.told] == [messages.MOST_TOLD]
