"""The file of a fleet: its hosts, and what is to hold of which domains.

TOML, which a user writes or `entourage hosts add`; a directory of such files is one fleet. Packages
may add hosts by the entry point group ``entourage.hosts``: a function that returns ``HostEntry``
values.
"""

from __future__ import annotations

import fnmatch
import os
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from entourage import durable
from entourage.errors import ConfigError, UsageError, plain_words, what_to_do
from entourage.settings.textfile import decode, parse_toml, read_bytes, shown
from entourage.settings.typed import Dialect, build

DEFAULT: Final = Path("/etc/entourage/fleet.toml")
VARIABLE: Final = "ENTOURAGE_FLEET"
GROUP: Final = "entourage.hosts"
HostName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,252}\Z")]


class HostEntry(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """A host of the fleet.

    Attributes:
        name: What it is called in plans.
        ssh: How ssh reaches it from here, ``root@b.example``; the name, if empty.
        from_others: How the other hosts' ssh reaches it; the name, if empty.
        labels: What domains may require.
    """

    name: HostName
    ssh: str = ""
    from_others: str = ""
    labels: Mapping[str, str] = {}


class DomainRule(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """What is to hold of domains.

    Attributes:
        name: Of which; a pattern as a shell's.
        require: The labels that their host must have.
        together: Domains with the same word go to one host.
        apart: Of the domains with the same word, no host has two.
        pinned: They stay where they are.
    """

    name: Annotated[str, Meta(min_length=1)]
    require: Mapping[str, str] = {}
    together: str = ""
    apart: str = ""
    pinned: bool = False


class FleetFile(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """All of it."""

    host: tuple[HostEntry, ...] = ()
    domain: tuple[DomainRule, ...] = ()

    def entry(self, name: str) -> HostEntry:
        """The host of that name; raises UsageError where there is none."""
        for one in self.host:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.host) or "none"
        raise UsageError(
            f"{name} is no host of the fleet ({known})", remedy=f"entourage hosts add {name}"
        )

    def with_hosts(self, entries: Iterable[HostEntry]) -> FleetFile:
        """The same with more hosts; those whose names it has stay as they are in it."""
        known = {one.name for one in self.host}
        return FleetFile(
            host=(*self.host, *(one for one in entries if one.name not in known)),
            domain=self.domain,
        )

    def rule(self, domain: str) -> DomainRule:
        """What holds of a domain: all the rules that mean it, as one."""
        found = DomainRule(name=domain)
        for one in self.domain:
            if fnmatch.fnmatchcase(domain, one.name):
                found = DomainRule(
                    name=domain,
                    require={**found.require, **one.require},
                    together=one.together or found.together,
                    apart=one.apart or found.apart,
                    pinned=one.pinned or found.pinned,
                )
        return found


def where(given: Path | None) -> Path:
    """The fleet's file: the one given, that of the environment, or the usual."""
    return given or Path(os.environ.get(VARIABLE) or DEFAULT)


def load(given: Path | None) -> FleetFile:
    """Read a fleet.

    Args:
        given: A file, or a directory of files that end in ``.toml``; None: the usual one, which
            need not be there.

    Raises:
        ConfigError: A file cannot be read, or holds what it may not; or two hosts have one name.
    """
    path = where(given)
    if path.is_dir():
        files = sorted(path.glob("*.toml"))
    else:
        files = [path] if given is not None or path.exists() else []
    hosts: list[HostEntry] = []
    rules: list[DomainRule] = []
    for file in files:
        read = build(parse_toml(decode(read_bytes(file), file), file), FleetFile, _dialect(file))
        hosts += read.host
        rules += read.domain
    hosts += _of_packages()
    seen: set[str] = set()
    for one in hosts:
        if one.name in seen:
            raise ConfigError(f"the host {one.name} is there twice", path=shown(path), key="host")
        seen.add(one.name)
    return FleetFile(host=tuple(hosts), domain=tuple(rules))


def _dialect(path: Path) -> Dialect:
    return Dialect(shown(path))


def _of_packages() -> Iterable[HostEntry]:
    for entry in entry_points(group=GROUP):
        yield from msgspec.convert(entry.load()(), list[HostEntry], from_attributes=True)


def add(given: Path | None, entry: HostEntry) -> Path:
    """Add a host, or put it in the place of the one of its name; what else is there stays.

    Returns:
        The file.

    Raises:
        ConfigError: The file cannot be read.
        UsageError: It cannot be written, or the fleet is a directory.
    """
    path, text = _text(given)
    text = _without(text, entry.name, path)
    gap = "\n" if text and not text.endswith("\n\n") else ""
    _write(path, f"{text}{gap}{_block(entry)}")
    return path


def remove(given: Path | None, name: str) -> Path:
    """Take a host away; what else is there stays.

    Raises:
        ConfigError: The file cannot be read.
        UsageError: There is no such host in it, or it cannot be written.
    """
    path, text = _text(given)
    left = _without(text, name, path)
    if left == text:
        raise UsageError(f"{name} is no host in {path}", remedy="`entourage hosts` lists them")
    _write(path, left)
    return path


def _text(given: Path | None) -> tuple[Path, str]:
    path = where(given)
    if path.is_dir():
        raise UsageError(f"{path} is a directory", remedy="--fleet with a file in it")
    if not path.exists():
        return path, ""
    text = decode(read_bytes(path), path)
    build(parse_toml(text, path), FleetFile, _dialect(path))
    return path, text


def _write(path: Path, text: str) -> None:
    try:
        durable.write(path, text.encode())
        path.chmod(0o644)  # it holds no secret, and others plan by it as well
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error


def _without(text: str, name: str, path: Path) -> str:
    """The text without the table of that host, and without the comments that are in it."""
    lines = text.splitlines(keepends=True)
    starts = [at for at, line in enumerate(lines) if line.lstrip().startswith("[")]
    ends = [*starts[1:], len(lines)][: len(starts)]
    for at, end in zip(starts, ends, strict=True):
        if not lines[at].strip().startswith("[[host]]"):
            continue
        # A table of the host's own, [host.labels], belongs to it.
        while end < len(lines) and lines[end].strip().startswith("[host."):
            end = next((one for one in starts if one > end), len(lines))  # noqa: PLW2901
        table = tomllib.loads("".join(lines[at:end]))
        if table["host"][0].get("name") == name:
            return "".join(lines[:at] + lines[end:])
    if any(
        one.name == name for one in build(parse_toml(text, path), FleetFile, _dialect(path)).host
    ):
        raise UsageError(
            f"{path} has {name} in a form that is not changed by programs", remedy="edit it by hand"
        )
    return text


def _block(entry: HostEntry) -> str:
    lines = ["[[host]]", f"name = {_quoted(entry.name)}"]
    if entry.ssh:
        lines.append(f"ssh = {_quoted(entry.ssh)}")
    if entry.from_others:
        lines.append(f"from-others = {_quoted(entry.from_others)}")
    if entry.labels:
        pairs = ", ".join(f"{_quoted(key)} = {_quoted(each)}" for key, each in entry.labels.items())
        lines.append(f"labels = {{ {pairs} }}")
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    """A basic string of TOML, which is one of JSON's."""
    return msgspec.json.encode(text).decode()
