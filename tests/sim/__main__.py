"""``python -m tests.sim``: the whole engine, simulated, by seeds.

Each seed is one migration with what goes wrong, recovery, and the checks. ``--seeds 1 --first SEED
--trace`` shows all that one of them did. ``--mutants`` plants bugs, each of which must be found.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import time
from collections import Counter
from collections.abc import Generator

from tests.sim.devices import ADDED
from tests.sim.hypervisor import backend
from tests.sim.mutant import Mutant, planted
from tests.sim.mutants import MUTANTS
from tests.sim.seams import simulated
from tests.sim.simulate import Result, places, simulate

_COLLECTED_EVERY = 100


@contextlib.contextmanager
def ready() -> Generator[None]:
    """Have everything in its place for simulations."""
    places()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        with simulated(backend(), ADDED):
            yield
    finally:
        gc.enable()
        gc.unfreeze()


def results(first: int, count: int, *, trace: bool = False) -> Generator[Result]:
    """The simulations of so many seeds."""
    for seed in range(first, first + count):
        yield simulate(seed, trace=trace)
        if seed % _COLLECTED_EVERY == 0:
            gc.collect()


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)  # noqa: T201 - for people


def run(first: int, count: int, most: int, *, trace: bool) -> int:
    """Simulate these seeds, and say what was found."""
    began = time.process_time()
    came, endings = Counter[str](), Counter[str]()
    bad = done = steps = 0
    for result in results(first, count, trace=trace):
        done += 1
        came.update(result.came)
        endings[result.ending] += 1
        steps += result.steps
        if trace:
            _say(*result.lines)
            _say(f"it ended with {result.ending}; {result.points} points, {result.steps} callbacks")
        if result.violations:
            bad += 1
            _say(told(result))
            if bad >= most:
                break
    took = time.process_time() - began
    _say(f"{done:,} seeds, {steps:,} callbacks, {took:.1f} s, {done / took:.0f} a second")
    _say(f"ended with: {_counted(endings)}", f"{came.total():,} faults: {_counted(came)}")
    _say(f"{bad} seeds found something" if bad else "nothing found")
    return 1 if bad else 0


def told(result: Result) -> str:
    """What a seed has found, and what had gone wrong in it."""
    wrong = "; ".join(map(str, result.faults)) or "nothing was wrong"
    lines = [f"seed {result.seed} ({wrong}) ended with {result.ending}"]
    return "\n".join([*lines, *(f"  => {each}" for each in result.violations)])


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common())


def find(mutant: Mutant, first: int) -> Result | None:
    """The first seed that finds a planted bug."""
    with planted(mutant):
        for result in results(first, mutant.within):
            if result.violations:
                return result
    return None


def plant(first: int, only: str) -> int:
    """Plant each bug in turn, and see that it is found."""
    missed = 0
    wanted = [mutant for mutant in MUTANTS if only in mutant.name]
    for mutant in wanted:
        began = time.process_time()
        found = find(mutant, first)
        took = time.process_time() - began
        missed += found is None
        where = (
            f"not found in {mutant.within:,} seeds"
            if found is None
            else f"seed {found.seed}: {found.violations[0]:.90}"
        )
        _say(f"{mutant.name:68} {took:6.1f} s  {where}")
    _say(f"{len(wanted) - missed} of {len(wanted)} planted bugs are found")
    return 1 if missed else 0


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="show all that happens")
    parser.add_argument("--most", type=int, default=10, help="seeds that find something, at most")
    parser.add_argument("--mutants", action="store_true", help="plant bugs, and find them")
    parser.add_argument("--only", default="", help="of the planted bugs, those of such a name")
    asked = parser.parse_args()
    with ready():
        if asked.mutants:
            return plant(asked.first, asked.only)
        return run(asked.first, asked.seeds, asked.most, trace=asked.trace)


if __name__ == "__main__":
    sys.exit(main())
