"""What is asked of a migration when a machine is saved or restored."""

from __future__ import annotations

from pathlib import Path

import msgspec

from entourage.admission import known
from entourage.devices.base import Options
from entourage.errors import UsageError
from entourage.hosts.proxy_agent import THIS_HOST
from entourage.hosts.route import Route
from entourage.hypervisors.registry import starter_of_files
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.descriptor import save_name
from entourage.settings.model import Settings
from entourage.source.request import Request

_LOOPBACK = "127.0.0.1"  # where nothing goes: memory stays on this host
_INSTEAD = {"xen": "xl save"}


async def save_request(
    settings: Settings,
    name: str,
    directory: str,
    *,
    tool: str | None = None,
    dry_run: bool = False,
) -> Request:
    """To save a domain of this host.

    Args:
        settings: This host's.
        name: The domain's.
        directory: Where to.
        tool: An external tool for every class.
        dry_run: TEST only.

    Raises:
        UsageError: There is no such domain, or it cannot be saved yet.
    """
    hypervisor, _ = await known(settings, name)
    if hypervisor.name != starter_of_files():
        instead = _INSTEAD.get(hypervisor.name, "virsh save")
        raise UsageError(
            f"{name} is a domain of {hypervisor.name}, and only Entourage's own machines are saved",
            remedy=f"`{instead}` saves its memory, but not what is attached to it",
        )
    where = _absolute(directory)
    return Request(
        domain=name,
        route=Route(host=where, agentless=save_name(where), by_ssh="no"),
        connect=hypervisor.name,
        settings=_here(settings),
        options=Options(),
        live=False,
        tool=tool,
        dry_run=dry_run,
    )


def restore_request(
    settings: Settings,
    directory: str,
    *,
    paused: bool = False,
    only_copy: bool = False,
    nets: dict[str, str] | None = None,
    tool: str | None = None,
    dry_run: bool = False,
) -> Request:
    """To restore a saved machine on this host.

    Args:
        settings: This host's.
        directory: Where it is saved.
        paused: The guest is not to run at once.
        only_copy: The user vouches that this copy of the directory is the only one restored.
        nets: Other bridges, by those that it had.
        tool: An external tool for every class.
        dry_run: TEST only.

    Raises:
        UsageError: There is no save, or it is a copy of one.
    """
    where = _absolute(directory)
    manifest = manifests.read_manifest(Path(where))
    if not only_copy and manifests.is_copy(Path(where), manifest):
        raise UsageError(
            f"{where} is a copy of what was saved on {manifest.host}: whether that was restored"
            " already, or another copy, cannot be seen from here",
            remedy="if it was not, and will not be: --only-copy",
        )
    return Request(
        domain=manifest.domain.name,
        route=Route(host=THIS_HOST),
        connect=save_name(where),
        settings=_here(settings),
        options=Options(nets=nets or {}),
        live=False,
        tool=tool,
        dry_run=dry_run,
        paused=paused,
    )


def _absolute(directory: str) -> str:
    """A directory as it is called everywhere; its parent's links are resolved once."""
    path = Path(directory).absolute()
    if not path.name or path.name in {".", ".."} or not str(path).isprintable():
        raise UsageError(f"{directory!r} is no directory to save in", remedy="name one to be made")
    return str(path.parent.resolve() / path.name)


def _here(settings: Settings) -> Settings:
    """Nothing travels."""
    migration = msgspec.structs.replace(settings.migration, data_address=_LOOPBACK, tls=False)
    return msgspec.structs.replace(settings, migration=migration)
