"""What is done with a domain, and what is different with each: one table."""

from __future__ import annotations

from typing import Final, NamedTuple

from entourage.events import Kind


class Doing(NamedTuple):
    """One of them.

    Attributes:
        moves: Memory and disks go to another host's hypervisor; else a directory is at one end, and
            they go by unix sockets.
        runs_there: A guest runs at the target in the end.
        goes_on: It runs on where it was.
        done: What is said of the domain, before the target's name, once that has it.
        asked: What the target was told to do with it.
        stays: What is so here while nobody knows whether the target has done it.
        stuck: What is so where it cannot go back; has ``{name}`` and ``{source}``.
    """

    moves: bool = False
    runs_there: bool = True
    goes_on: bool = False
    done: str = "runs on"
    asked: str = "to run"
    stays: str = "the copy here stays stopped"
    stuck: str = "{name} may stand still on {source}, which cannot let it run again"


DOINGS: Final[dict[Kind, Doing]] = {
    "move": Doing(moves=True),
    "save": Doing(runs_there=False, done="is saved in", asked="to keep"),
    "checkpoint": Doing(goes_on=True),
    "restore": Doing(
        stays="the save stays claimed", stuck="the claim on {source} cannot be given up"
    ),
}
