"""What a bench makes of the events of a ``check``."""

from __future__ import annotations

import pytest

from bench.testing import parts


def test_the_parts_of_a_test_make_up_the_whole() -> None:
    said = [
        {"event": "migration-started", "at": 0.4},
        {"event": "step-started", "step": 0, "at": 0.6},
        {"event": "device-step-done", "step": 0, "at": 0.7},
        {"event": "step-done", "step": 0, "at": 0.9},
        {"event": "planned", "at": 1.0},
        {"event": "finished", "at": 1.1},
    ]
    found = parts(said)
    assert found == pytest.approx({"domain": 0.2, "devices": 0.3, "way": 0.1, "all": 0.6})
    assert found["all"] == pytest.approx(sum(found[name] for name in ("domain", "devices", "way")))
