"""What several unit tests stand on."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def srv(tmp_path: Path) -> Path:
    """The source's directory of images."""
    made = tmp_path / "srv"
    made.mkdir()
    return made
