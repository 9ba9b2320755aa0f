"""Explores every world that can be reached, breadth first, so that a story is as short as can be.

Run ``python -m tests.model.explore``.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.model.checks import check, recovered
from tests.model.executor import Rules, Violation
from tests.model.moves import moves
from tests.model.mutants import MUTANTS, Mutant
from tests.model.world import first_world

_MANY = 3  # messages at once are not sent, but forgotten: see executor.settle


@dataclass
class Result:
    """What an exploration found."""

    states: int = 0
    transitions: int = 0
    recovered: int = 0
    problem: str = ""
    story: list[str] = field(default_factory=list[str])
    seconds: float = 0.0

    def __str__(self) -> str:
        """The numbers, or the counterexample."""
        numbers = f"{self.states:,} states, {self.transitions:,} transitions, {self.seconds:.1f} s"
        if not self.problem:
            return f"{numbers}, {self.recovered:,} of them recovered: nothing found"
        lines = [f"  {number}. {line}" for number, line in enumerate(self.story, 1)]
        return "\n".join([numbers, *lines, f"  => {self.problem}"])


class Exploration:
    """One exploration."""

    def __init__(self, rules: Rules, migrations: int, faults: int) -> None:
        self.rules = rules
        self.result = Result()
        first = first_world(migrations=migrations)
        self.worlds = [first]
        self.numbers = {first: 0}
        self.parents: list[tuple[int, str]] = [(-1, "")]
        # Worlds to be expanded, by how many faults may still happen in them, most faults first. So
        # each is expanded once: with fewer faults nothing could follow that does not follow with
        # more, and recovery counts on none.
        self.todo: list[deque[int]] = [deque() for _ in range(faults + 1)]
        self.todo[faults].append(0)
        self.helped = (array("I"), array("I"))

    def run(self) -> Result:
        """Explore until a violation is found, or nothing is left."""
        began = time.process_time()
        result = self.result
        gc.disable()  # millions of tuples and no cycles: it would look through them for nothing
        for faults in range(len(self.todo) - 1, -1, -1):
            while self.todo[faults] and not result.problem:
                self._expand(self.todo[faults].popleft(), faults)
        gc.enable()
        result.states = len(self.worlds)
        if not result.problem:
            self._look_for_dead_ends()
        result.seconds = time.process_time() - began
        return result

    def _expand(self, at: int, faults: int) -> None:
        world = self.worlds[at]
        try:
            check(world, self.rules)
            for story, after, helps, costs in moves(world, self.rules, faulty=faults > 0):
                number = self.numbers.setdefault(after, len(self.worlds))
                if number == at:
                    continue
                self.result.transitions += 1
                if number == len(self.worlds):
                    self.worlds.append(after)
                    self.parents.append((at, story))
                    self.todo[faults - costs].append(number)
                if helps:
                    self.helped[0].append(at)
                    self.helped[1].append(number)
        except Violation as violation:
            self._tell(at, str(violation))

    def _look_for_dead_ends(self) -> None:
        """From every world a recovered one must be reachable without any luck."""
        good = [number for number, world in enumerate(self.worlds) if recovered(world)]
        self.result.recovered = len(good)
        alive = bytearray(len(self.worlds))
        todo = deque(good)
        for number in good:
            alive[number] = 1
        befores, starts = self._backwards()
        while todo:
            at = todo.popleft()
            for before in befores[starts[at] : starts[at + 1]]:
                if not alive[before]:
                    alive[before] = 1
                    todo.append(before)
        dead = alive.find(0)
        if dead >= 0:
            self._tell(dead, "no recovery leads out of here")

    def _backwards(self) -> tuple[array[int], array[int]]:
        """The helpful moves by where they lead to: for world n, those from starts[n] on."""
        sources, targets = self.helped
        counts = Counter(targets)
        total = itertools.accumulate((counts[n] for n in range(len(self.worlds))), initial=0)
        starts = array("I", total)
        free = array("I", starts)
        befores = array("I", bytes(sources.itemsize * len(sources)))
        for source, target in zip(sources, targets, strict=True):
            befores[free[target]] = source
            free[target] += 1
        return befores, starts

    def _tell(self, at: int, problem: str) -> None:
        story: list[str] = []
        while at > 0:
            before, line = self.parents[at]
            new = sorted(kind for kind, _ in self.worlds[at].said - self.worlds[before].said)
            story.append(f"{line}, {' and '.join(new)} is sent" if 0 < len(new) < _MANY else line)
            at = before
        self.result.problem = problem
        self.result.story = story[::-1]


class Space(NamedTuple):
    """How far an exploration goes."""

    migrations: int
    faults: int

    def __str__(self) -> str:
        """In words."""
        return f"{self.migrations} migration(s) in a row, up to {self.faults} fault(s)"


SPACES = (Space(1, 3), Space(2, 3), Space(3, 0))


def explore(space: Space) -> Result:
    """Explore the real rules."""
    return Exploration(Rules(), space.migrations, space.faults).run()


def hunt(mutant: Mutant) -> Result:
    """Explore until a planted bug is found."""
    return Exploration(mutant.rules, mutant.migrations, mutant.faults).run()


def main() -> int:
    """Explore the real rules and then the mutants; 0 only if all is as it must be."""
    say = sys.stdout.write
    failed = 0
    total = Result()
    for space in SPACES:
        result = explore(space)
        say(f"{space}:\n  {result}\n")
        failed += bool(result.problem)
        total.states += result.states
        total.transitions += result.transitions
    say(f"together {total.states:,} states, {total.transitions:,} transitions\n\n")
    for mutant in MUTANTS:
        result = hunt(mutant)
        say(f"planted: {mutant.name}\n  {result}\n\n")
        failed += not result.problem
    say(f"{len(MUTANTS)} bugs planted; {f'{failed} FAILED' if failed else 'all is as it must be'};")
    say(f" {time.process_time():.0f} s of processor time\n")
    return min(failed, 1)


if __name__ == "__main__":
    raise SystemExit(main())
