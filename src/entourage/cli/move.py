"""The words of ``entourage migrate``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from entourage.cli import complete
from entourage.cli.params import (
    Config,
    Connect,
    DryRun,
    Events,
    Quiet,
    SshOptions,
    Tool,
    Verbose,
)
from entourage.errors import UsageError

_PATTERN: Final = frozenset("*?")


def migrate(
    domain: Annotated[
        str,
        typer.Argument(
            metavar="DOMAIN",
            help="Its name; or a pattern, as 'web*', for several. With --all, the HOST.",
            autocompletion=complete.domains,
        ),
    ],
    host: Annotated[
        str | None,
        typer.Argument(
            metavar="HOST|URI",
            help="Where to, as ssh knows it; or a libvirt, as qemu+ssh://HOST/system.",
            autocompletion=complete.hosts,
            show_default=False,
        ),
    ] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="All that run here, one after the other.")
    ] = False,
    at_once: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=64,
            help="Of several: how many move at once.  [default: 1]",
            show_default=False,
        ),
    ] = None,
    connect: Connect = None,
    dry_run: DryRun = False,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DOMAIN",
            help="Another domain to be checked, over the same connection; repeatable.",
            autocompletion=complete.domains,
        ),
    ] = None,
    max_blackout: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long the guest may be stopped, as 300ms; past it, everything goes back.",
        ),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="RATE", help="What memory may take of the network, as 100MiB/s; 0: no limit."
        ),
    ] = None,
    non_live: Annotated[
        bool,
        typer.Option("--non-live", help="Stop the guest before its memory moves."),
    ] = False,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Move a domain that is off, and whose disks are shared."),
    ] = False,
    no_host_has_it: Annotated[
        bool,
        typer.Option(
            "--no-host-has-it", help="With --offline: you guarantee that no host has it by now."
        ),
    ] = False,
    net: Annotated[
        list[str] | None,
        typer.Option(metavar="HERE=THERE", help="Another bridge there, as br0=br1; repeatable."),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DISK=PATH", help="Another place there, as disk0=/dev/vg/web1; repeatable."
        ),
    ] = None,
    usb: Annotated[
        list[str] | None,
        typer.Option(
            metavar="USB=THERE",
            help="What stands there for a USB device of this host, as usb0=1050:0407; repeatable.",
        ),
    ] = None,
    pci: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PCI=THERE",
            help="The same for a PCI device, as pci0=0000:41:00.0; repeatable.",
        ),
    ] = None,
    keep_source_disks: Annotated[
        bool,
        typer.Option(
            "--keep-source-disks", help="Do not delete the disks here after they have moved."
        ),
    ] = False,
    tool: Tool = None,
    remote_command: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help='What runs there, as "sudo entourage".'),
    ] = None,
    ssh_option: SshOptions = None,
    data_address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Where memory and disks go, if not to HOST."),
    ] = None,
    ports: Annotated[
        str | None,
        typer.Option(metavar="FIRST-LAST", help="TCP ports for them, there."),
    ] = None,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            help="Encrypt memory and disks, as is the default; or do not.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    json: Events = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Move a running domain to another host, with its disks, NICs, TPM and everything else.

    Where anything goes wrong before the hand-over, all of it goes back and the domain runs on here.
    Ctrl-C does the same.
    """
    # `--help` and a shell's TAB must not wait for the engine's import.
    import asyncio  # noqa: PLC0415

    from entourage.cli import options  # noqa: PLC0415
    from entourage.cli.migrate import attempt  # noqa: PLC0415
    from entourage.source.request import Request  # noqa: PLC0415

    if everything or _PATTERN.intersection(domain):
        from entourage.cli import bulk  # noqa: PLC0415

        return bulk.migrate(
            bulk.Several(
                patterns=() if everything else (domain,),
                host=(domain if everything else host) or "",
                at_once=at_once or 1,
                bandwidth=bandwidth or "",
                dry_run=dry_run,
            ),
            for_each={
                "--max-blackout": max_blackout,
                "--non-live": non_live,
                "--net": net,
                "--keep-source-disks": keep_source_disks,
                "--tool": tool,
                "--data-address": data_address,
                "--ports": ports,
                "--tls": tls,
            },
            not_of_several={
                "DOMAIN beside --all": everything and host,
                "--json": json,
                "--offline": offline,
                "--no-host-has-it": no_host_has_it,
                "--verbose": verbose,
                "--quiet": quiet,
                "--connect": connect,
                "--also": also,
                "--disk": disk,
                "--usb": usb,
                "--pci": pci,
                "--config": config,
                "--remote-command": remote_command,
                "--ssh-option": ssh_option,
            },
        )
    if host is None or at_once is not None:
        if host is None:
            raise UsageError("HOST is missing", remedy=f"entourage migrate {domain} HOST")
        raise UsageError("--at-once is of several domains", remedy="leave it out, or --all")

    if no_host_has_it and not offline:
        raise UsageError("--no-host-has-it is of --offline", remedy="leave it out")
    if offline:
        from entourage.cli import offline as off  # noqa: PLC0415

        of_running = {
            "--max-blackout": max_blackout,
            "--non-live": non_live,
            "--net": net,
            "--disk": disk,
            "--usb": usb,
            "--pci": pci,
            "--keep-source-disks": keep_source_disks,
            "--tool": tool,
            "--data-address": data_address,
            "--ports": ports,
            "--also": also,
            "--tls": tls is not None,
            "--bandwidth": bandwidth,
        }
        typed = options.Typed(remote_command=remote_command, ssh_options=tuple(ssh_option or ()))
        wanted = off.Wanted(
            domain=domain,
            host=host,
            connect=connect,
            config=config,
            typed=typed,
            certain=no_host_has_it,
            verbose=verbose,
        )
        return off.run(wanted, of_running, json=json, dry_run=dry_run)

    def request_of(name: str, note: Callable[[str], None]) -> Request:
        where = options.destination(host)
        typed = options.Typed(
            max_blackout=max_blackout,
            bandwidth=bandwidth,
            tls=tls,
            ports=ports,
            data_address=data_address,
            remote_command=remote_command,
            ssh_options=(*where.ssh_options, *(ssh_option or ())),
        )
        devices = options.Devices(
            nets=net or (),
            disks=disk or (),
            usb=usb or (),
            pci=pci or (),
            keep_source_disks=keep_source_disks,
        )
        return Request(
            domain=name,
            route=where.route,
            connect=connect,
            settings=options.with_typed(options.read_settings(config, note), typed),
            options=options.device_options(devices),
            live=not non_live,
            tool=tool,
            dry_run=dry_run,
        )

    if also:
        from entourage.cli.checking import check_several  # noqa: PLC0415

        return check_several(request_of, [domain, *also], json=json, verbose=verbose, quiet=quiet)

    async def make_request(note: Callable[[str], None]) -> Request:
        return request_of(domain, note)

    moved = attempt(make_request, json=json, verbose=verbose, quiet=quiet, dry_run=dry_run)
    return asyncio.run(moved).status


def check(domain: str, host: str | None = None, **words: Any) -> int:
    """Say what `migrate` would do with each device, and what is against it; touch nothing.

    It is the same as `migrate --dry-run`, and takes the same options.
    """
    return migrate(domain, host, dry_run=True, **words)


def _give(command: Callable[..., int], options: inspect.Signature, left_out: str) -> None:
    """Give a command all options but for one: typer reads them off the function."""
    left = {name: each for name, each in options.parameters.items() if name != left_out}
    command.__signature__ = options.replace(parameters=[*left.values()])  # type: ignore[attr-defined]
    command.__annotations__ = {name: each.annotation for name, each in left.items()}
    command.__annotations__["return"] = int


_ALL: Final = inspect.signature(migrate, eval_str=True)
_give(migrate, _ALL, "also")
_give(check, _ALL, "dry_run")
