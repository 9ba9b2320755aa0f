"""The hand-over's rules explored exhaustively; with -s, or on failure, numbers and stories show."""

import sys

import pytest

from tests.model.explore import SPACES, Space, explore, hunt
from tests.model.mutants import MUTANTS, Mutant


@pytest.mark.timeout(900)
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_no_world_breaks_a_promise(space: Space, capsys: pytest.CaptureFixture[str]) -> None:
    result = explore(space)
    with capsys.disabled():
        sys.stdout.write(f"\n{space}: {result}\n")
    assert not result.problem
    assert result.recovered


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: Mutant) -> None:
    result = hunt(mutant)
    sys.stdout.write(f"\n{mutant.name}: {result}\n")
    assert result.problem
