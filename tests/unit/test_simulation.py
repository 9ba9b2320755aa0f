"""The simulation itself, in a hurry: ``make test-sim`` is the whole of it."""

from __future__ import annotations

import pytest

from tests.sim.__main__ import find, ready, results, told
from tests.sim.mutant import Mutant
from tests.sim.mutants import MUTANTS
from tests.sim.simulate import simulate

QUICK = {"the deadman is not disarmed", "resources are not written down"}


def test_a_handful_of_seeds_find_nothing() -> None:
    with ready():
        found = [told(result) for result in results(1, 20) if result.violations]
    assert found == []


def test_a_seed_does_the_same_again() -> None:
    with ready():
        for seed in (5, 6, 7):
            once, again = (simulate(seed, trace=True) for _ in range(2))
            assert len(once.lines) > 100
            assert once.lines == again.lines


@pytest.mark.parametrize(
    "mutant", [one for one in MUTANTS if one.name in QUICK], ids=lambda one: one.name
)
def test_a_planted_bug_is_found_and_goes_again(mutant: Mutant) -> None:
    with ready():
        found = find(mutant, 1)
        assert found is not None
        assert not simulate(found.seed).violations
