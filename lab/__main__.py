"""The lab by hand: `python -m lab up`, `shell a`, `guest a web1`, `watch`, `cut a b`, `down`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import get_args

from lab import network
from lab.guest import Disk, domain_toml
from lab.guest_image import GuestImageError
from lab.host import HostError
from lab.hosts import Lab, clean_up_stale, default_state_dir
from lab.observer import Observer


def _up(options: argparse.Namespace) -> None:
    lab = Lab.up(options.hosts or ("a", "b"), name=options.name, persistent=True)
    names = " ".join(name for name, host in lab.hosts.items() if host.config.sshd)
    print(f"up: {names}. A shell: python -m lab shell a. The end: python -m lab down")


def _down(options: argparse.Namespace) -> None:
    Lab.attach(options.name).down()


def _clean(_options: argparse.Namespace) -> None:
    base = default_state_dir()
    if base.exists():
        clean_up_stale(base, persistent_too=True)


def _shell(options: argparse.Namespace) -> None:
    host = Lab.attach(options.name)[options.host]
    command = options.command or ["bash", "--norc"]
    entrance = host.entrance()
    environment = host.environment({"PS1": rf"{host.name}:\w\$ "})
    os.execvpe(entrance[0], [*entrance, *command], environment)  # noqa: S606  # no shell wanted


def _guest(options: argparse.Namespace) -> None:
    host = Lab.attach(options.name)[options.host]
    disks = [Disk(f"/srv/{options.guest}-disk{index}.raw") for index in range(options.disks)]
    for disk in disks:
        disk.create(host)
    address = network.guest_address(options.number)
    file = f"/srv/{options.guest}.toml"
    host.write_files({file: domain_toml(options.guest, disks=disks, address=address)})
    print(f"{file} on {host.name}; its address is {address}")


def _watch(options: argparse.Namespace) -> None:
    address = network.guest_address(options.number)
    with Observer.start(Lab.attach(options.name), (address,)) as observer:
        while True:
            mark = observer.mark()
            time.sleep(1)
            gap, report = observer.longest_gap(mark), observer.report()
            writes = " ".join(f"{disk}:{number}" for disk, number in report.acked.items())
            print(
                f"longest gap {gap.seconds * 1000:7.1f} ms  lost {gap.lost:4}"
                f"  ticks {report.ticks}  boots {len(report.boots)}  {writes}"
                f"  {' '.join(report.errors[-1:])}"
            )


def _cut(options: argparse.Namespace) -> None:
    Lab.attach(options.name).cut(
        options.a,
        options.b,
        how=options.how,
        direction=options.direction,
        traffic=options.traffic,
    )


def _mend(options: argparse.Namespace) -> None:
    Lab.attach(options.name).mend_all()


def _power(options: argparse.Namespace) -> None:
    host = Lab.attach(options.name)[options.host]
    if options.state == "cut":
        host.power_cut()
    else:
        host.power_on()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m lab", description=__doc__)
    parser.add_argument("--name", default="lab", help="of the lab (default: lab)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="make hosts that stay until `down`")
    up.add_argument("hosts", nargs="*")
    up.set_defaults(run=_up)
    commands.add_parser("down", help="tear it down").set_defaults(run=_down)
    commands.add_parser("clean", help="tear down every lab that nobody uses").set_defaults(
        run=_clean
    )
    shell = commands.add_parser("shell", help="a root shell on a host, or a command")
    shell.add_argument("host")
    shell.add_argument("command", nargs=argparse.REMAINDER)
    shell.set_defaults(run=_shell)
    guest = commands.add_parser("guest", help="write a guest's domain file and disks to a host")
    guest.add_argument("host")
    guest.add_argument("guest", metavar="NAME")
    guest.add_argument("--disks", type=int, default=1)
    guest.add_argument("--number", type=int, default=0, help="of its address, from 0")
    guest.set_defaults(run=_guest)
    watch = commands.add_parser("watch", help="ping a guest and print what it says")
    watch.add_argument("--number", type=int, default=0)
    watch.set_defaults(run=_watch)
    cut = commands.add_parser("cut", help="cut two hosts off each other")
    cut.add_argument("a")
    cut.add_argument("b")
    cut.add_argument("--how", choices=get_args(network.How), default="drop")
    cut.add_argument("--direction", choices=get_args(network.Direction), default="both")
    cut.add_argument("--traffic", choices=get_args(network.Traffic), default="all")
    cut.set_defaults(run=_cut)
    commands.add_parser("mend", help="undo all cuts").set_defaults(run=_mend)
    power = commands.add_parser("power", help="pull a host's plug, or put it back")
    power.add_argument("state", choices=("cut", "on"))
    power.add_argument("host")
    power.set_defaults(run=_power)
    return parser


def main() -> int:
    """Do what the command line says."""
    options = _parser().parse_args()
    try:
        options.run(options)
    except KeyError as error:
        print(f"lab: there is no host {error}", file=sys.stderr)
        return 1
    except (HostError, GuestImageError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
