"""Which domains their user has switched off: a file of the state directory's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from entourage import durable
from entourage.errors import ConfigError
from entourage.settings.model import Settings

ALL: Final = "*"
"""In the place of a domain's name: all of them."""


class SwitchedOff(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is not attended here.

    Attributes:
        all: No domain is, but for those that ``on`` names.
        names: Nor are these.
        on: These were switched on after all of them had been switched off.
    """

    all: bool = False
    names: tuple[str, ...] = ()
    on: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether the domain of that name is not attended."""
        return name in self.names or (self.all and name not in self.on)

    def switched(self, name: str, *, off: bool) -> SwitchedOff:
        """The same, with that domain, or all of them, attended no more, or again."""
        if name == ALL:
            return SwitchedOff(all=off)
        names, on = set(self.names) - {name}, set(self.on) - {name}
        if off:
            names.add(name)
        elif self.all:
            on.add(name)
        return SwitchedOff(all=self.all, names=tuple(sorted(names)), on=tuple(sorted(on)))


def _path(settings: Settings) -> Path:
    return Path(settings.paths.state, "attend.off")


def read(settings: Settings) -> SwitchedOff:
    """What is switched off here.

    Raises:
        ConfigError: The file is not one of ours.
        OSError: It cannot be read.
    """
    path = _path(settings)
    try:
        return msgspec.json.decode(path.read_bytes(), type=SwitchedOff)
    except FileNotFoundError:
        return SwitchedOff()
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(
            str(error),
            path=str(path),
            remedy="remove it, and say again with `entourage attend --off` what is not attended",
        ) from error


def write(settings: Settings, what: SwitchedOff) -> None:
    """Write it down; on the disk when this returns."""
    durable.write(_path(settings), msgspec.json.encode(what))
