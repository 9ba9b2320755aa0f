from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.unit.fleet.page.world import World


@pytest.fixture
def world(tmp_path: Path) -> Generator[World]:
    world = World(tmp_path)
    yield world
    world.store.engine.dispose()
