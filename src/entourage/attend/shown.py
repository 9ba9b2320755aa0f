"""What is shown of attended domains: files in the run directory, written by the daemon.

``entourage status``, ``list`` and ``attend --check`` read them; they need no daemon for it. They
stay when the daemon ends, so that the next one knows what became of the last migration, and are
gone after a reboot: what must be known after a crash is in the journal.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from entourage.events import AnyEvent, CopyProgress, Finished, MigrationStarted
from entourage.journal.lock import lock_holder
from entourage.report.text import escaped
from entourage.settings.model import Settings
from entourage.steps import Refusal

LOCK: Final = "attend"
"""Whose lock, in the run directory, the daemon holds as long as it runs."""
_LEFT = "it does not run here any more"
_NO_DAEMON = "no daemon runs on this host (systemctl start entourage-attend)"


class LastTry(msgspec.Struct, frozen=True, kw_only=True):
    """The last attended migration of a domain from here, whatever became of it.

    Attributes:
        target: Where to.
        ended: When, ISO 8601 with this host's offset.
        outcome: ``moved``, ``rolled-back``, ``refused``, …, as in the event ``finished``.
        message: Why, where it did not move.
        remedy: What the user can do.
        refusals: What TEST has found.
        blackout: Seconds; None where the guest was never stopped.
    """

    target: str
    ended: str
    outcome: str
    message: str = ""
    remedy: str = ""
    refusals: tuple[Refusal, ...] = ()
    blackout: float | None = None


class AttendedDomain(msgspec.Struct, frozen=True, kw_only=True):
    """A domain as the daemon attends it.

    Attributes:
        domain, uuid: Its name and UUID.
        devices: The labels of the devices that are ours.
        problem: Why it cannot be attended now; empty where it can.
        off: Whether its user has switched that off.
        last: The last attended migration from here.
    """

    domain: str
    uuid: str
    devices: tuple[str, ...] = ()
    problem: str = ""
    off: bool = False
    last: LastTry | None = None


def directory(settings: Settings) -> Path:
    """Where the files are, and the daemon's sockets."""
    return Path(settings.paths.run, "attend")


def write(settings: Settings, one: AttendedDomain) -> None:
    """Write a domain's file anew."""
    place = directory(settings)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = place / f".{one.uuid}.new"
    scratch.touch(mode=0o600)
    scratch.write_bytes(msgspec.json.encode(one))
    scratch.replace(place / f"{one.uuid}.json")


class EventsFile:
    """The events of a domain's last attended migration from here, as ``--json`` prints them.

    Those that only say how far a copy is are left out. It is in memory (tmpfs): a line takes no
    longer than that, also within the blackout.

    Args:
        settings: This host's.
        uuid: The domain's; its file is begun anew.
    """

    def __init__(self, settings: Settings, uuid: str) -> None:
        place = directory(settings)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        opened = os.open(place / f"{uuid}.jsonl", flags, 0o600)
        self._file = os.fdopen(opened, "w", encoding="utf-8", buffering=1)
        self._encoder = msgspec.json.Encoder()

    def write(self, event: AnyEvent) -> None:
        """Add an event; the last one closes the file."""
        if self._file.closed or isinstance(event, CopyProgress):
            return
        with contextlib.suppress(OSError):  # no room: the migration is worth more than its record
            self._file.write(escaped(self._encoder.encode(event).decode(), pairs=True) + "\n")
        if isinstance(event, Finished):
            self.close()

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self._file.close()


def forget(settings: Settings, uuid: str) -> None:
    """Remove a domain's file."""
    (directory(settings) / f"{uuid}.json").unlink(missing_ok=True)


def left(settings: Settings, one: AttendedDomain) -> None:
    """A domain is here no more; only where its last migration failed its user may still ask why."""
    if one.last is None or one.last.outcome == "moved":
        forget(settings, one.uuid)
    else:
        write(settings, msgspec.structs.replace(one, problem=_LEFT, off=False))


def read_all(settings: Settings) -> list[AttendedDomain]:
    """All of them, by name, those that are attended first; what cannot be read is left out.

    Where no daemon runs, none is attended, whatever one has written that was killed.
    """
    found: list[AttendedDomain] = []
    alone = lock_holder(Path(settings.paths.run), LOCK) is None
    for path in directory(settings).glob("*.json"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            one = msgspec.json.decode(path.read_bytes(), type=AttendedDomain)
            if alone and not one.problem:
                one = msgspec.structs.replace(one, problem=_NO_DAEMON)
            found.append(one)
    return sorted(found, key=lambda one: (one.domain, bool(one.problem), one.uuid))


def last_events(settings: Settings, name: str) -> tuple[AnyEvent, ...]:
    """The events of a domain's last attended migration from here; none where there is none.

    Args:
        settings: This host's.
        name: The domain's name or UUID; of several of that name, the one that migrated last.
    """
    decoder = msgspec.json.Decoder[AnyEvent](AnyEvent)
    found: list[tuple[float, tuple[AnyEvent, ...]]] = []
    for path in directory(settings).glob("*.jsonl"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            events = tuple(decoder.decode(line) for line in path.read_bytes().splitlines())
            of = {
                text
                for event in events
                if isinstance(event, MigrationStarted)
                for text in (event.domain, event.uuid)
            }
            if name in of:
                found.append((path.stat().st_mtime, events))
    return max(found, key=lambda one: one[0])[1] if found else ()


_WEAKER = (
    "  weaker     whoever migrates it decides which host runs it, not Entourage",
    "  weaker     a guest that waits for its devices goes back after 20 s at the latest",
)


def lines(one: AttendedDomain, *, brief: bool = False) -> list[str]:
    """What is told of a domain.

    Args:
        one: The domain.
        brief: Leave out what is the same for all of them.
    """
    if one.off:
        said = "not attended: switched off (`entourage attend --on`)"
    elif one.problem:
        said = f"not attended: {one.problem}"
    else:
        said = "attended: whoever migrates it takes these devices along"
    told = [f"{one.domain}: {said}", *(f"  device     {label}" for label in one.devices)]
    if not (one.off or one.problem or brief):
        told += _WEAKER
    if (last := one.last) is not None:
        told.append(f"  last       to {last.target}, {last.ended}: {last.outcome}")
        told += [f"             {refusal}" for refusal in last.refusals]
        if last.message and not last.refusals:
            told.append(f"             {last.message}")
        if last.remedy:
            told.append(f"  remedy     {last.remedy}")
    return told
