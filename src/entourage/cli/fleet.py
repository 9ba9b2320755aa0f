"""The words of the commands for more than one host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entourage.cli import complete
from entourage.cli.params import Config, DomainName, Json
from entourage.cli.tell import say
from entourage.report.text import clean

if TYPE_CHECKING:
    from entourage.settings.model import Settings

# ruff: noqa: PLC0415 - commands import when they run: `--help` and a shell's TAB must not wait

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


hosts = typer.Typer(
    help="The hosts of a fleet.", rich_markup_mode=None, invoke_without_command=True
)
fleet = typer.Typer(help="A controller of a fleet.", rich_markup_mode=None)
campaign = typer.Typer(help="Campaigns: what was begun by `evacuate`.", rich_markup_mode=None)

FLEET_STATUS_HELP = """\b
Exit status:
  0  all moved
  1  it failed
  2  wrong usage or settings
  3  none can move
  4  some stayed: each with why, and what to do
"""
Fleet = Annotated[
    Path | None,
    typer.Option(
        "--fleet",
        metavar="FILE",
        help="The fleet's file, or a directory of them.  [default: /etc/entourage/fleet.toml]",
        show_default=False,
    ),
]
Database = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="Where campaigns are kept: postgresql://…  [default: a file of this host's]",
        show_default=False,
    ),
]
HostName = Annotated[
    str,
    typer.Argument(metavar="HOST", help="Its name in the fleet.", autocompletion=complete.hosts),
]
To = Annotated[
    str, typer.Option("--to", metavar="HOST,…", help="Only to these.  [default: all others]")
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="NAME", help="Only these domains; a pattern. Repeatable."),
]
Spread = Annotated[
    bool | None,
    typer.Option(
        "--spread/--pack",
        help="Prefer the host with the most, or the least, memory left."
        "  [default: spread, unless only packed more find a place]",
        show_default=False,
    ),
]
OrderOf = Annotated[
    str,
    typer.Option(
        "--order",
        metavar="hardest|smallest|largest|name",
        help="Which begin first: those that the fewest hosts can take, or by memory, or name.",
    ),
]
Off = Annotated[
    str,
    typer.Option("--off", metavar="keep|move", help="What becomes of domains that do not run."),
]
AtOnce = Annotated[
    int,
    typer.Option("--at-once", metavar="N", min=1, max=64, help="How many leave a host at once."),
]
PerTarget = Annotated[
    int,
    typer.Option(
        "--per-target", metavar="N", min=1, max=64, help="How many arrive at a host at once."
    ),
]
Bandwidth = Annotated[
    str, typer.Option(metavar="RATE", help="What memory may use of a host's network in sum.")
]
Named = Annotated[str, typer.Option("--name", metavar="NAME", help="The campaign's.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
CampaignName = Annotated[str, typer.Argument(metavar="NAME", help="The campaign's.")]


@hosts.callback()
def _hosts(context: typer.Context, *, fleet: Fleet = None, json: Json = False) -> None:
    """List the hosts of the fleet; or add one, or take one away."""
    from entourage.cli import fleeting

    if context.invoked_subcommand is None:
        fleeting.hosts(fleet, as_json=json)


@hosts.command()
def add(
    name: Annotated[str, typer.Argument(metavar="HOST", help="Its name in the fleet.")],
    *,
    ssh: Annotated[
        str, typer.Option(metavar="DEST", help="How ssh reaches it, if not by its name.")
    ] = "",
    from_others: Annotated[
        str, typer.Option(metavar="DEST", help="How the other hosts' ssh does.")
    ] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="What domains may require. Repeatable."),
    ] = None,
    fleet: Fleet = None,
) -> None:
    """Add a host to the fleet, or change it."""
    from entourage.cli import fleeting

    fleeting.add(fleet, name, ssh, from_others, label or [])


@hosts.command()
def remove(name: HostName, *, fleet: Fleet = None) -> None:
    """Take a host out of the fleet."""
    from entourage.cli import fleeting

    fleeting.remove(fleet, name)


def plan(
    host: Annotated[list[str], typer.Argument(metavar="HOST...", help="The hosts to be emptied.")],
    *,
    to: To = "",
    only: Only = None,
    spread: Spread = None,
    order: OrderOf = "hardest",
    off: Off = "keep",
    fleet: Fleet = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Say which domain would go where, and why some cannot; nothing is touched."""
    from entourage.cli import fleeting

    ordered, moves = fleeting.order_of(order), fleeting.off_of(off)
    wanted = fleeting.wanted(host, to, only or [], spread=spread, order=ordered, off=moves)
    return fleeting.plan(_settings(config), fleet, wanted, as_json=json)


def evacuate(
    host: Annotated[
        list[str] | None, typer.Argument(metavar="[HOST...]", help="The hosts to be emptied.")
    ] = None,
    *,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="What `entourage plan --json` has written."),
    ] = None,
    to: To = "",
    only: Only = None,
    spread: Spread = None,
    order: OrderOf = "hardest",
    off: Off = "keep",
    at_once: AtOnce = 2,
    per_target: PerTarget = 1,
    bandwidth: Bandwidth = "",
    window: Annotated[str, typer.Option(metavar="HH:MM-HH:MM", help="When moves may begin.")] = "",
    give_up_after: Annotated[
        int, typer.Option(metavar="N", min=1, max=100, help="How often a domain is tried.")
    ] = 3,
    stop_after: Annotated[
        int, typer.Option(metavar="N", min=1, help="Stop when so many in a row did not move.")
    ] = 5,
    name: Named = "",
    dry_run: Dry = False,
    fleet: Fleet = None,
    database: Database = "",
    config: Config = None,
) -> int:
    """Empty a host: move what runs there to others. Nothing is ever shut down for it.

    Ctrl-C begins nothing more; `campaign resume` goes on with it.
    """
    from entourage.cli import campaigns, fleeting

    ordered = fleeting.order_of(order)
    wanted = fleeting.wanted(
        host or [],
        to,
        only or [],
        spread=spread,
        order=ordered,
        has_plan=plan is not None,
        off=fleeting.off_of(off),
    )
    limits = fleeting.limits(
        at_once=at_once,
        per_target=per_target,
        attempts=give_up_after,
        in_a_row=stop_after,
        bandwidth=bandwidth,
        window=window,
    )
    asked = campaigns.Asked(_settings(config), fleet, database)
    return campaigns.evacuate(asked, wanted, limits, name=name, plan=plan, dry_run=dry_run)


def restore_home(
    host: HostName,
    *,
    order: OrderOf = "hardest",
    at_once: AtOnce = 2,
    per_target: PerTarget = 1,
    bandwidth: Bandwidth = "",
    name: Named = "",
    dry_run: Dry = False,
    fleet: Fleet = None,
    database: Database = "",
    config: Config = None,
) -> int:
    """Move back to a host what evacuations have moved away from it."""
    from entourage.cli import bulk, campaigns, fleeting

    limits = fleeting.limits(at_once=at_once, per_target=per_target, bandwidth=bandwidth)
    asked = campaigns.Asked(_settings(config), fleet, database)
    ordered = fleeting.order_of(order)
    return bulk.restore_home(asked, host, limits, order=ordered, name=name, dry_run=dry_run)


@campaign.command(name="list")
def list_(
    *, database: Database = "", fleet: Fleet = None, json: Json = False, config: Config = None
) -> None:
    """List campaigns, the newest first."""
    from entourage.cli import campaigns

    campaigns.list_campaigns(campaigns.Asked(_settings(config), fleet, database), as_json=json)


@campaign.command(name="show")
def show(
    name: CampaignName,
    *,
    database: Database = "",
    fleet: Fleet = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """Show a campaign, and how far each of its domains has come."""
    from entourage.cli import campaigns

    campaigns.show(campaigns.Asked(_settings(config), fleet, database), name, as_json=json)


@campaign.command()
def watch(
    name: CampaignName, *, database: Database = "", fleet: Fleet = None, config: Config = None
) -> int:
    """Show a campaign that runs elsewhere, until it is over."""
    from entourage.cli import campaigns

    return campaigns.watch(campaigns.Asked(_settings(config), fleet, database), name)


@campaign.command()
def pause(
    name: CampaignName, *, database: Database = "", fleet: Fleet = None, config: Config = None
) -> None:
    """Begin nothing more of a campaign; what moves is finished."""
    from entourage.cli import campaigns

    campaigns.wish(campaigns.Asked(_settings(config), fleet, database), name, "pause")


@campaign.command()
def resume(
    name: CampaignName, *, database: Database = "", fleet: Fleet = None, config: Config = None
) -> int:
    """Go on with a campaign that was paused, or whose controller has died."""
    from entourage.cli import campaigns

    return campaigns.resume(campaigns.Asked(_settings(config), fleet, database), name)


@campaign.command(name="abort")
def _abort_campaign(
    name: CampaignName,
    *,
    take_back: Annotated[
        bool, typer.Option("--take-back", help="Have what moves go back, where it still can.")
    ] = False,
    database: Database = "",
    fleet: Fleet = None,
    config: Config = None,
) -> None:
    """End a campaign: nothing more is begun, and what moves is finished."""
    from entourage.cli import campaigns

    wished = "take-back" if take_back else "abort"
    campaigns.wish(campaigns.Asked(_settings(config), fleet, database), name, wished)


@campaign.command()
def retry(
    name: CampaignName, *, database: Database = "", fleet: Fleet = None, config: Config = None
) -> int:
    """Try again what stayed in a campaign that is over."""
    from entourage.cli import campaigns

    return campaigns.retry(campaigns.Asked(_settings(config), fleet, database), name)


@fleet.command()
def serve(
    *,
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            metavar="WHERE",
            help="Have a page at unix:PATH or ADDRESS:PORT.  [default: no page]",
            show_default=False,
        ),
    ] = "",
    database: Database = "",
    fleet: Fleet = None,
    config: Config = None,
) -> int:
    """Be a controller: campaigns of controllers that are dead go on here; and have a page."""
    from entourage.cli import campaigns, serving

    return serving.serve(campaigns.Asked(_settings(config), fleet, database), listen)


@fleet.callback()
def _fleet() -> None:
    pass


def abort(domain: DomainName, *, config: Config = None) -> None:
    """Have a migration from this host go back, as Ctrl-C where it runs would."""
    from entourage.cli import room

    room.abort(_settings(config), domain)


def _settings(config: Path | None) -> Settings:
    from entourage.cli import options

    return options.read_settings(config, lambda note: say(clean(f"entourage: note: {note}")))
