"""What a host has on it: processes, interfaces, sockets, files; and what came since."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WATCHED = (
    *("/var/lib/entourage", "/etc/entourage", "/var/lib/libvirt", "/etc/libvirt"),
    *("/run", "/srv", "/tmp", "/root", "/dev/shm"),
)
"""Where files are looked for; all of it is the host's own."""

_TCP_LISTEN = "0A"
_ZOMBIE = "Z"


@dataclass(frozen=True)
class Snapshot:
    """All that could be left over on a host, at one moment; each value says what the key is."""

    processes: dict[tuple[int, int], str]  # (pid, start time)
    interfaces: frozenset[str]
    sockets: frozenset[str]  # unix sockets, by path
    ports: frozenset[str]  # listening TCP ports
    files: frozenset[str]


@dataclass(frozen=True)
class Leftovers:
    """What has come since a snapshot. Falsy if nothing has; prints as a list."""

    processes: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    sockets: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        lines = [
            f"{field.name}: {item}" for field in fields(self) for item in getattr(self, field.name)
        ]
        return "\n".join(lines) or "nothing"


def _processes(proc: Path) -> Iterator[tuple[tuple[int, int], str]]:
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            threads = len(list((entry / "task").iterdir()))
        except (FileNotFoundError, ProcessLookupError):
            continue
        name, rest = stat.split("(", 1)[1].rsplit(")", 1)
        state, *numbers = rest.split()
        if state != _ZOMBIE or threads > 1:  # the others may outlive the first by a little
            yield (int(entry.name), int(numbers[18])), f"{entry.name} {words.strip() or name}"


def _unix_sockets(proc: Path) -> Iterator[str]:
    for line in (proc / "net/unix").read_text().splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[7].startswith("/"):  # noqa: PLR2004  # the path's column
            yield words[7]


def _listening_ports(proc: Path) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        for line in (proc / "net" / table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == _TCP_LISTEN:
                yield f"{table} {int(local.rsplit(':', 1)[1], 16)}"


def _files(root: Path) -> Iterator[str]:
    """Walk what is watched, but not into what the machine shares with the host below it."""
    prefix = len(str(root))
    for watched in WATCHED:
        for directory, names, files in os.walk(f"{root}{watched}"):
            own = _device(directory)
            names[:] = [name for name in names if _device(f"{directory}/{name}") == own]
            for name in (*names, *files):
                yield f"{directory}/{name}"[prefix:]


def _device(path: str) -> int:
    try:
        return Path(path).lstat().st_dev
    except FileNotFoundError:
        return -1


def take(init_pid: int) -> Snapshot:
    """Look at the host whose first process is `init_pid`, without entering it."""
    root = Path(f"/proc/{init_pid}/root")
    own = Path(f"/proc/{init_pid}")
    return Snapshot(
        processes=dict(_processes(root / "proc")),
        interfaces=frozenset(path.name for path in (root / "sys/class/net").iterdir()),
        sockets=frozenset(_unix_sockets(own)),
        ports=frozenset(_listening_ports(own)),
        files=frozenset(_files(root)),
    )


def compare(before: Snapshot, now: Snapshot, ignore: Sequence[str]) -> Leftovers:
    """Name what `now` has and `before` had not, except paths that match a pattern of `ignore`."""
    new_files = sorted(now.files - before.files)
    return Leftovers(
        processes=tuple(
            text for key, text in sorted(now.processes.items()) if key not in before.processes
        ),
        interfaces=tuple(sorted(now.interfaces - before.interfaces)),
        sockets=tuple(sorted(now.sockets - before.sockets)),
        ports=tuple(sorted(now.ports - before.ports)),
        files=tuple(
            path for path in new_files if not any(fnmatch(path, pattern) for pattern in ignore)
        ),
    )
