"""What this host writes down of its domains: what runs (on tmpfs), what it owns (on disk)."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from entourage import durable
from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.process import start_time
from entourage.hypervisors.qemu.paths import Places, places, run_root, state_root
from entourage.settings.model import Settings

K = TypeVar("K", bound=msgspec.Struct)


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that was started here since this host came up; it may have ended.

    Attributes:
        domain: Its configuration, resolved, with this host's taps.
        pid: QEMU's process.
        began: When that started, in the kernel's ticks.
        marker: By what its processes are found.
        incoming: It was built for a migration, and this host does not own the domain yet.
        uid, gid: Whom it runs as; 0: as Entourage.
    """

    domain: Domain
    pid: int
    began: int
    marker: str
    incoming: bool = False
    uid: int = 0
    gid: int = 0

    @property
    def alive(self) -> bool:
        """Whether its QEMU runs."""
        return start_time(self.pid) == self.began


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down of one domain.

    Attributes:
        domain: Its newest configuration.
        places: Where its things are.
        running: What was started here last; None where nothing was since this host came up.
        owned: Whether this host owns the domain.
    """

    domain: Domain
    places: Places
    running: Running | None
    owned: bool

    @property
    def alive(self) -> bool:
        """Whether its QEMU runs here."""
        return self.running is not None and self.running.alive


def read_running(where: Places) -> Running | None:
    """What was started here last.

    Raises:
        HypervisorError: The directory for sockets is another domain's: its name is a short digest,
            and who chooses a UUID could choose one that has the same.
    """
    running = _read(where.running, Running)
    if running is not None and (running.domain.uuid or "").lower() != where.state.name:
        raise HypervisorError(
            f"{where.run} is the directory of {running.domain.name}",
            remedy="give this domain another UUID",
        )
    return running


def write_running(where: Places, running: Running) -> None:
    """Write down what runs."""
    scratch = where.running.with_suffix(".new")
    scratch.write_bytes(msgspec.json.encode(running))
    scratch.chmod(0o600)
    scratch.rename(where.running)


def write_owned(where: Places, domain: Domain) -> None:
    """Write down that this host owns the domain; durable when this returns."""
    durable.write(where.record, msgspec.json.encode(domain))
    for directory in (where.state.parent, where.state.parent.parent):
        durable.sync_directory(directory)


def disown(where: Places) -> None:
    """This host owns the domain no more; durable when this returns."""
    with contextlib.suppress(FileNotFoundError):
        where.record.unlink()
    # Also where it was gone: who has removed it may have been killed before that was on the disk.
    with contextlib.suppress(FileNotFoundError):
        durable.sync_directory(where.state)
    remove_if_empty(where.state)


def forget_ended(where: Places) -> None:
    """Remove what a machine that has ended left on tmpfs: it would stand for what is owned now.

    Raises:
        HypervisorError: The directory is another domain's.
        OSError: It cannot be removed.
    """
    running = read_running(where)
    if running is not None and not running.alive:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(where.run)


def remove_if_empty(directory: Path) -> None:
    """Remove a directory that holds nothing any more; one that holds something stays."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def entries(settings: Settings) -> list[Entry]:
    """All domains of which something is written down here, by name."""
    found: dict[str, Entry] = {}
    for running in _all(run_root(settings), "running.json", Running):
        uuid = running.domain.uuid or ""
        where = places(settings, uuid, running.domain.name)
        found[uuid] = Entry(domain=running.domain, places=where, running=running, owned=False)
    for owned in _all(state_root(settings), "domain.json", Domain):
        uuid = owned.uuid or ""
        entry = found.get(uuid)
        # A machine on its way in is not what this host owned before, if it ever did.
        incoming = entry is not None and entry.running is not None and entry.running.incoming
        found[uuid] = Entry(
            domain=entry.domain if entry is not None else owned,
            places=places(settings, uuid, owned.name),
            running=entry.running if entry is not None else None,
            owned=not incoming,
        )
    return sorted(
        (entry for entry in found.values() if entry.owned or entry.alive),
        key=lambda entry: entry.domain.name,
    )


def entry_of(settings: Settings, name: str) -> Entry | None:
    """What is written down of the domain of that name; None where nothing is."""
    return next((e for e in entries(settings) if e.domain.name == name), None)


def _all(root: Path, name: str, kind: type[K]) -> Iterator[K]:
    try:
        directories = sorted(root.iterdir())
    except FileNotFoundError:
        return
    for directory in directories:
        if (content := _read(directory / name, kind)) is not None:
            yield content


def _read(path: Path, kind: type[K]) -> K | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HypervisorError(
            f"{path} cannot be read: {error}", remedy="move it away if it is of no use"
        ) from error
