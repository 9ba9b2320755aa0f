"""Brings a machine up, stopped: its swtpm, its taps, its QEMU. The same on source and target."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import msgspec

from entourage.domain import Domain, Net
from entourage.errors import DomainBusy, HypervisorError
from entourage.hosts.account import Account
from entourage.hosts.process import ProcessHandle, launch, start_time
from entourage.hosts.resources import Ledger
from entourage.hypervisors.qemu import tpm as tpms
from entourage.hypervisors.qemu.access import let_through, let_user_in
from entourage.hypervisors.qemu.binary import qemu
from entourage.hypervisors.qemu.cmdline import HostThings, command_line
from entourage.hypervisors.qemu.errors import start_failure
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.qmp import Monitor, MonitorLostError
from entourage.hypervisors.qemu.record import Running, read_running, write_running
from entourage.hypervisors.qemu.resolve import direct_works, tap_name
from entourage.hypervisors.qemu.sockets import listening
from entourage.hypervisors.qemu.taps import open_tap

_TAP_ATTEMPTS = 8


class Up(NamedTuple):
    """A machine that is up: what to drive it with, and what was written down of it.

    ``helpers`` are its TPM emulators: without them it is not what it was.
    """

    monitor: Monitor
    process: ProcessHandle
    running: Running
    helpers: tuple[ProcessHandle, ...] = ()


async def bring_up(
    domain: Domain,
    where: Places,
    ledger: Ledger,
    *,
    incoming: bool,
    account: Account | None,
    may_give: Callable[[str], bool] = lambda _path: True,
) -> Up:
    """Start everything that the machine consists of; the guest does not run.

    Args:
        domain: Resolved.
        where: The domain's places on this host.
        ledger: Takes every resource before it is made. After a failure, undoing it is up to the
            caller.
        incoming: The machine waits for another's memory.
        account: Whom its processes run as; None: as Entourage.
        may_give: See ``let_user_in``.

    Raises:
        DomainBusy: It runs here already.
        HypervisorError: Something cannot be made; QEMU's own words are in it.
    """
    running = read_running(where)
    if running is not None and running.alive:
        raise DomainBusy(f"{domain.name} runs here already, as process {running.pid}")
    new_tpms = {
        tpm.id: tpms.make_state(where, tpm, ledger, account)
        for tpm in domain.tpm
        if tpm.type == "emulator"
    }
    ledger.record("dir", path=str(where.run))
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(where.run)  # sockets of a machine that has ended
    where.run.mkdir(mode=0o700, parents=True)
    if account is not None:
        let_through(where.run, account.gid)
    await let_user_in(domain, where, ledger, account, may_give)
    marker = f"{domain.uuid}.{secrets.token_hex(4)}"
    ledger.record("process", marker=marker)
    unit = f"entourage-{marker}"
    helpers: list[ProcessHandle] = []
    for tpm in domain.tpm:
        if tpm.type == "emulator":
            if incoming and not new_tpms[tpm.id]:
                raise HypervisorError(
                    "there is a state of this TPM on this host already",
                    device=tpm.label,
                    remedy=f"move {where.tpm_state(tpm.id)} away",
                )
            if new_tpms[tpm.id] and not incoming:
                await tpms.manufacture(where, tpm, account)
            helper = await tpms.start(
                where, tpm, marker=marker, unit=f"{unit}-swtpm", account=account
            )
            helpers += [helper] if helper is not None else []
    with _taps(domain) as (placed, taps), _vhost(domain) as vhost:
        things = host_things(placed, where, taps=taps, vhost=vhost, incoming=incoming)
        up = await _start_qemu(placed, things, marker=marker, unit=unit, account=account)
    return up._replace(helpers=tuple(helpers))


def host_things(
    domain: Domain,
    where: Places,
    *,
    taps: dict[str, int] | None = None,
    vhost: dict[str, int] | None = None,
    incoming: bool = False,
) -> HostThings:
    """What of a machine is this host's alone, as it is now."""
    return HostThings(
        qemu=qemu(),
        places=where,
        monitors={},
        taps=taps or {},
        host_devices=frozenset(d.path for d in domain.block if _is_device(d.path)),
        buffered=frozenset(d.path for d in domain.block if not direct_works(d)),
        vhost=vhost or {},
        incoming=incoming,
    )


async def _start_qemu(
    domain: Domain, things: HostThings, *, marker: str, unit: str, account: Account | None
) -> Up:
    where = things.places
    with contextlib.ExitStack() as stack:
        monitors = {
            path.stem: stack.enter_context(listening(path)).fileno()
            for path in (where.qmp, where.guard, where.info)
        }
        console = stack.enter_context(listening(where.console)).fileno()
        things = dataclasses.replace(things, monitors=monitors, console=console)
        log_start = where.log.stat().st_size if where.log.exists() else 0
        pid = await launch(
            [*([] if account is None else account.command()), *command_line(domain, things)],
            marker=marker,
            log=where.log,
            unit=unit,
            pass_fds=(*monitors.values(), console, *things.taps.values(), *things.vhost.values()),
        )
    # Our copies of the listening sockets are closed: if QEMU dies, who has connected hears of it.
    process = ProcessHandle.open(pid)
    try:
        monitor = await Monitor.connect(where.qmp)
    except MonitorLostError as error:
        if process is not None:
            process.kill()
            await process.ended()
            process.close()
        raise start_failure(domain, where.log, log_start) from error
    except asyncio.CancelledError:
        if process is not None:
            process.close()
        raise
    began = start_time(pid)
    if process is None or began is None:
        await monitor.close()
        raise start_failure(domain, where.log, log_start)
    running = Running(
        domain=domain,
        pid=pid,
        began=began,
        marker=marker,
        incoming=things.incoming,
        uid=0 if account is None else account.uid,
        gid=0 if account is None else account.gid,
    )
    write_running(where, running)
    return Up(monitor, process, running)


@contextlib.contextmanager
def _taps(domain: Domain) -> Generator[tuple[Domain, dict[str, int]]]:
    """Open a tap for each NIC; ours are closed at the end, when QEMU has its own.

    A name that is taken (the other host may be another namespace of this one) is replaced.
    """
    opened: dict[str, int] = {}
    try:
        for index, net in enumerate(domain.net):
            name, opened[net.id] = _open_tap(domain, net, index)
            domain = domain.with_device(msgspec.structs.replace(net, tap=name))
        yield domain, opened
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


@contextlib.contextmanager
def _vhost(domain: Domain) -> Generator[dict[str, int]]:
    """Open the kernel's vhost-net for each virtio NIC, where there is one: QEMU's user may not."""
    opened: dict[str, int] = {}
    try:
        if domain.accel == "kvm":
            with contextlib.suppress(OSError):
                for net in domain.net:
                    if net.model == "virtio-net":
                        opened[net.id] = os.open("/dev/vhost-net", os.O_RDWR | os.O_CLOEXEC)
        yield opened
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def _open_tap(domain: Domain, net: Net, index: int) -> tuple[str, int]:
    if net.attach != "bridge":  # what the settings allow was asked of that
        raise HypervisorError("QEMU's NICs are ports of a bridge", device=net.label)
    wanted = [net.tap] if net.tap else []
    spare = [tap_name(str(domain.uuid), index, attempt) for attempt in range(_TAP_ATTEMPTS)]
    for name in (*wanted, *spare):
        try:
            return name, open_tap(name, net.bridge, net.mtu)
        except FileExistsError:
            continue
        except HypervisorError as error:
            error.device = net.label
            raise
    raise HypervisorError("no name is free for its tap", device=net.label)


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(Path(path).stat().st_mode)
    except OSError:
        return False
