"""The words of the commands for more than one host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from entourage.cli.params import Config, Json
from entourage.cli.tell import say
from entourage.report.text import clean

if TYPE_CHECKING:
    from pathlib import Path

    from entourage.settings.model import Settings

# Commands import what they need when they run: `--help` and a shell's TAB must not wait for it.
# ruff: noqa: PLC0415

CordonName = Annotated[
    str, typer.Option("--name", metavar="NAME", help="One of several, as a campaign's.")
]


def cordon(
    *,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="What whoever is refused is told.")
    ] = "",
    name: CordonName = "by-hand",
    config: Config = None,
) -> None:
    """Have this host take no domains from others, until `uncordon`."""
    from entourage.cli import room

    room.put_up(_settings(config), name, reason)


def uncordon(
    *,
    name: CordonName = "by-hand",
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Lift every cordon, a campaign's too.")
    ] = False,
    config: Config = None,
) -> None:
    """Have this host take domains again."""
    from entourage.cli import room

    room.lift(_settings(config), None if everything else name)


def room(*, json: Json = False, config: Config = None) -> None:
    """Say how much room for domains this host has, and what keeps it from taking any."""
    from entourage.cli import room

    room.room(_settings(config), as_json=json)


def _settings(config: Path | None) -> Settings:
    from entourage.cli import options

    return options.read_settings(config, lambda note: say(clean(f"entourage: note: {note}")))
