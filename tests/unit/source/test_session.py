"""What a session says of the way that is to be taken."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.devices.base import Options
from entourage.domain import Block, Domain
from entourage.hosts.local import LONGEST, listening_here, too_long
from entourage.settings.model import PathSettings, Settings
from entourage.source.session import Session

MIGRATION = "8053c674-0c34-4fbd-9f88-29821824241c"


def session(run: str, kind: str = "save") -> Session:
    disk = Block(id="disk-of-a-long-name", path="/srv/d0")
    session: Any = SimpleNamespace(
        kind=kind,
        migration=MIGRATION,
        settings=Settings(paths=PathSettings(run=run)),
        options=Options(copies=frozenset({disk.id})),
        machine=SimpleNamespace(domain=Domain(name="web1", memory=1 << 28, block=(disk,))),
        host="a",
        target="/backup/web1",
        address="",
    )
    session.plane = partial(Session.plane, session)
    return session


def test_sockets_that_could_not_be_listened_at_are_told_at_test() -> None:
    """A disk's has the longest name; memory's alone would have had room."""
    assert Session.sockets_too_long(session("/run/entourage")) == []
    run = f"/run/{'x' * 45}"
    [refusal] = Session.sockets_too_long(session(run))
    assert (refusal.device, refusal.host) == ("domain", "a")
    assert run in refusal.reason
    assert "paths.run" in refusal.remedy
    assert Session.sockets_too_long(session(run, "move")) == []


def test_how_long_a_sockets_path_may_be(tmp_path: Path) -> None:
    longest = f"{tmp_path}/{'x' * (LONGEST - len(str(tmp_path)) - 1)}"
    assert not too_long("/run/s", longest)
    listening_here(Path(longest)).close()
    assert too_long("/run/s", f"{longest}x")
    with pytest.raises(Exception, match="nothing can listen"):
        listening_here(Path(f"{longest}x"))
