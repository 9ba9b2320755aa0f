"""Finding and reading the settings: TOML, or the xend-config.sxp that a site still has.

Which file: ``--config``, else ``$ENTOURAGE_CONFIG``, else ``/etc/entourage/entourage.toml`` where
there is one, else every default. ``/etc/xen/xend-config.sxp`` is never read unless it is named: a
host that has Xen's files must not silently get a tool from them.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import inspect

from entourage.domain import DEVICE_CLASSES
from entourage.errors import ConfigError
from entourage.settings.command import split_command
from entourage.settings.model import MigrationSettings, Settings, ToolSettings
from entourage.settings.sxp import settings_from_sxp
from entourage.settings.textfile import decode, parse_toml, printable, read_bytes, shown
from entourage.settings.typed import RATE, SIZE, Dialect, build, did_you_mean, fields_of

DEFAULT_PATH = Path("/etc/entourage/entourage.toml")
CONFIG_VARIABLE = "ENTOURAGE_CONFIG"
PATH_VARIABLES = {
    "state": "ENTOURAGE_STATE_DIR",
    "run": "ENTOURAGE_RUN_DIR",
    "log": "ENTOURAGE_LOG_DIR",
}
_LAST_PORT = 65535


def load_settings(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Settings:
    """Read the settings of this host.

    Args:
        path: The file of ``--config``; None looks in the default places. It may be TOML or an
            xend-config.sxp: one whose first word is in round brackets, or that is called so.
        environ: The environment; None is the process's own.
        warn: Is told what is odd and stops nothing, a sentence each.

    Raises:
        ConfigError: The file cannot be read, or holds what it may not.
    """
    environ = os.environ if environ is None else environ
    settings = Settings()
    if path is None:
        path = Path(environ.get(CONFIG_VARIABLE) or DEFAULT_PATH)
        if path == DEFAULT_PATH and not path.exists():
            return _with_environment(settings, environ)
    data = read_bytes(path)
    if looks_like_sxp(data, path):
        # Comments of 2006 are in any encoding; only what is used must be text.
        settings, notes = settings_from_sxp(data.decode("utf-8", "surrogateescape"), path)
        if warn:
            for note in notes:
                warn(note)
    else:
        settings = settings_from_toml(decode(data, path), path)
    return _with_environment(settings, environ)


def looks_like_sxp(data: bytes, path: Path) -> bool:
    """Whether a file is S-expressions, by what comes first in it, else by its name."""
    for line in data.splitlines():
        start = line.strip()
        if start and not start.startswith(b"#"):
            return start.startswith(b"(") or (path.suffix == ".sxp" and not start.startswith(b"["))
    return path.suffix == ".sxp"


def settings_from_toml(text: str, path: Path) -> Settings:
    """The settings in a TOML file.

    Raises:
        ConfigError: It holds what it may not.
    """
    where = shown(path)
    raw = parse_toml(text, path)
    units = {"bandwidth": RATE, "domains-memory": SIZE}
    settings = build(raw, Settings, Dialect(where, units=units, elsewhere=_TABLES))
    _check_migration(settings.migration, where)
    _check_ports(settings.agent.ports, where, "agent.ports")
    _check_tool(settings.tool, where)
    _check_command(settings.ssh.remote_command, where, "ssh.remote-command")
    if settings.qemu.user is not None and not settings.qemu.user.strip():
        raise ConfigError("the user is empty", path=where, key="qemu.user")
    _check_proxies(settings.fleet.trusted_proxies, where)
    for name in PATH_VARIABLES:
        value: str = getattr(settings.paths, name)
        if not value.startswith("/"):
            raise ConfigError(
                f"expected an absolute path, not {value!r}", path=where, key=f"paths.{name}"
            )
    return settings


def _check_proxies(proxies: tuple[str, ...], where: str) -> None:
    for index, one in enumerate(proxies):
        try:
            ipaddress.ip_network(one)
        except ValueError as error:
            raise ConfigError(
                str(error),
                path=where,
                key=f"fleet.trusted-proxies[{index}]",
                remedy="an address, 10.0.0.2, or a network, 10.0.0.0/28",
            ) from error


def _check_ports(ports: tuple[int, int], where: str, key: str) -> None:
    first, last = ports
    for index, port in enumerate(ports):
        if not 1 <= port <= _LAST_PORT:
            raise ConfigError(
                f"expected a port from 1 to {_LAST_PORT}, not {port}",
                path=where,
                key=f"{key}[{index}]",
            )
    if first > last:
        raise ConfigError(
            f"the first port, {first}, is after the last, {last}",
            path=where,
            key=key,
            remedy=f"write ports = [{last}, {first}]",
        )


def _check_migration(migration: MigrationSettings, where: str) -> None:
    _check_ports(migration.ports, where, "migration.ports")
    before = -1.0
    for index, stage in enumerate(migration.convergence):
        if stage.after <= before:
            raise ConfigError(
                f"expected more than {before:g} s, the stage before it, not {stage.after:g} s",
                path=where,
                key=f"migration.convergence[{index}].after",
                remedy="stages are given in the order in which they come",
            )
        before = stage.after
    if migration.data_address is not None and not migration.data_address.strip():
        raise ConfigError("the address is empty", path=where, key="migration.data-address")


def _check_tool(tool: ToolSettings, where: str) -> None:
    for name in ("command", *DEVICE_CLASSES):
        command: str | None = getattr(tool, name)
        if command is not None:
            _check_command(command, where, f"tool.{name}")
    for name in tool.subtypes:
        if name not in DEVICE_CLASSES:
            raise ConfigError(
                f"no device class{did_you_mean(name, DEVICE_CLASSES)}",
                path=where,
                key=printable(f"tool.subtypes.{name}"),
                remedy=f"classes are {', '.join(DEVICE_CLASSES)}",
            )


def _check_command(command: str, where: str, key: str) -> None:
    try:
        split_command(command)
    except ValueError as error:
        remedy = "" if command.strip() else "leave the key out where no program is meant"
        raise ConfigError(printable(str(error)), path=where, key=key, remedy=remedy) from error


def _with_environment(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """Put the paths of the environment in the place of the file's."""
    paths: dict[str, str] = {}
    for name, variable in PATH_VARIABLES.items():
        value = environ.get(variable)
        if value and not value.startswith("/"):
            raise ConfigError(
                f"expected an absolute path, not {value!r}",
                path="environment",
                key=variable,
            )
        if value:
            paths[name] = value
    if not paths:
        return settings
    return msgspec.structs.replace(settings, paths=msgspec.structs.replace(settings.paths, **paths))


# Where a key belongs that was written into a wrong table, or above the first.
_TABLES = {
    key: table
    for table, field in fields_of(inspect.type_info(Settings)).items()
    for key in fields_of(field.type)
}
