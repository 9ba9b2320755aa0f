"""The two libvirtd that these tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.libvirtd import start_all

if TYPE_CHECKING:
    from lab.hosts import Lab


@pytest.fixture(scope="session")
def libvirt_lab(lab: Lab) -> Lab:
    """Hosts a and b, each with its libvirtd. A test that kills one starts it again."""
    start_all([lab["a"], lab["b"]])
    return lab
