"""``entourage migrate --all`` and ``restore-home``: campaigns that empty no host."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from entourage.cli import campaigns, options
from entourage.cli.fleeting import Wanted, limits
from entourage.cli.output import put
from entourage.cli.tell import say
from entourage.errors import EntourageError, UsageError
from entourage.fleet.fleetfile import FleetFile, HostEntry
from entourage.fleet.homes import at_home
from entourage.fleet.planner import Order
from entourage.fleet.remote import Remote, RoomThere
from entourage.fleet.values import Limits
from entourage.report.text import clean


@dataclass(frozen=True, slots=True)
class Several:
    """Which of this host's domains move, and where to.

    Attributes:
        patterns: Their names; none: all.
        host: Where to, as it was typed.
        at_once: How many move at once.
        bandwidth: What the memory of all of them together may take of the network.
        dry_run: Only plan.
    """

    patterns: Sequence[str]
    host: str
    at_once: int
    bandwidth: str
    dry_run: bool


def migrate(
    several: Several, *, for_each: Mapping[str, object], not_of_several: Mapping[str, object]
) -> int:
    """Move several domains of this host; returns the exit status of a campaign.

    Args:
        several: Which, and where to.
        for_each: By the option, what each of their migrations is given.
        not_of_several: By the option, what only one domain's migration can be given.

    Raises:
        UsageError: Something of the last was given, or the host cannot be one of a fleet.
    """
    wrong = [option for option, value in not_of_several.items() if value]
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)}: not of several domains", remedy="leave it out, or move one"
        )
    if not several.host:
        raise UsageError("HOST is missing", remedy="entourage migrate --all HOST")
    settings = options.read_settings(None, lambda note: say(clean(f"entourage: note: {note}")))
    asked = campaigns.Asked(settings, None, "")
    here, there = _hosts(asked.fleet, several.host)
    wanted = Wanted(
        sources=[here.name],
        targets=[there.name],
        patterns=several.patterns,
        empties=False,
        options=_words(for_each),
        besides=[here, there],
    )
    most = limits(at_once=several.at_once, per_target=several.at_once, bandwidth=several.bandwidth)
    if several.bandwidth and not most.bandwidth:  # 0: no limit, whatever the settings say
        wanted = msgspec.structs.replace(wanted, options=[*wanted.options, "--bandwidth=0"])
    return campaigns.evacuate(asked, wanted, most, name="", plan=None, dry_run=several.dry_run)


def _hosts(fleet: FleetFile, typed: str) -> tuple[HostEntry, HostEntry]:
    """This host and the one that was typed: as the fleet has them, or as what they are."""
    known = {one.name: one for one in fleet.host}
    name = socket.gethostname()
    here = known.get(name) or HostEntry(name=name)
    if typed in known:
        return here, known[typed]
    options.host_name(typed)
    if "/" in typed or options.destination(typed).route.agentless is not None:
        raise UsageError(
            f"{typed}: several domains move to a host that has Entourage",
            remedy="name it as ssh does; or move them one by one",
        )
    # Of the name only what a name may have: `root@[2001:db8::1]` is 2001-db8-1.
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", typed.rpartition("@")[2]).strip("-.") or "there"
    # What moves a domain is told what was typed: it reaches it from here.
    there = HostEntry(name=plain, ssh=typed, from_others=typed)
    if there.name in known or there.name == here.name:
        raise UsageError(f"{there.name} is known already", remedy=f"entourage migrate … {plain}")
    return here, there


def _words(given: Mapping[str, object]) -> list[str]:
    """Options as they are typed, without those that were not."""
    words: list[str] = []
    for option, value in given.items():
        if option == "--tls" and value is False:
            words.append("--no-tls")
        elif value is True:
            words.append(option)
        elif isinstance(value, list):
            words += [f"{option}={one}" for one in value]  # pyright: ignore[reportUnknownVariableType]
        elif value:
            words.append(f"{option}={value}")
    return words


def restore_home(
    asked: campaigns.Asked, host: str, most: Limits, *, order: Order, name: str, dry_run: bool
) -> int:
    """Move back to a host what evacuations moved away; returns the exit status.

    Args:
        asked: Where campaigns are kept, and who the hosts are.
        host: Its name in the fleet.
        most: How the campaign goes.
        order: In which they begin.
        name: The campaign's; empty: one is made.
        dry_run: Only plan.

    Raises:
        UsageError: There is no such host.
    """
    asked.fleet.entry(host)
    away = at_home(asked.store(), host)
    found = asyncio.run(_found(asked.remote, away))
    for uuid in away.keys() - found.keys():
        say(clean(f"entourage: note: {away[uuid]} runs on no host that answers"))
    where = {uuid: other for uuid, other in found.items() if other != host}
    if not where:
        put(f"nothing of {host} runs elsewhere, as far as campaigns know")
        return 0
    wanted = Wanted(
        sources=sorted(set(where.values())),
        targets=[host],
        uuids=sorted(where),
        order=order,
        off=True,
    )
    name = name or f"restore-home-{host}"[:40] + time.strftime("-%m%d-%H%M%S")
    return campaigns.evacuate(asked, wanted, most, name=name, plan=None, dry_run=dry_run)


async def _found(remote: Remote, uuids: Collection[str]) -> Mapping[str, str]:
    """By UUID, the host on which a domain runs; where none does, one that has it off."""
    hosts = [one.name for one in remote.fleet.host]
    answers = await asyncio.gather(*map(remote.room, hosts), return_exceptions=True)
    off: dict[str, str] = {}
    running: dict[str, str] = {}
    for host, answer in zip(hosts, answers, strict=True):
        if isinstance(answer, RoomThere):
            off |= {one.uuid: host for one in answer.off_domains if one.uuid in uuids}
            running |= {one.uuid: host for one in answer.domains if one.uuid in uuids}
        elif isinstance(answer, EntourageError):
            say(clean(f"entourage: note: {answer}"))
        else:
            raise answer
    return off | running
