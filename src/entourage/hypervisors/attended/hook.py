#!/usr/bin/python3 -IS
"""libvirt's hook: asks the daemon of this host before a domain may come. And Proxmox VE's.

``/etc/libvirt/hooks/qemu.d/entourage`` is this file. It is called for each domain and each of its
operations, and libvirt waits for it: so it imports nothing but Python's own, does nothing for a
domain that is not attended, and never calls libvirt.

With the words ``proxmox VMID PHASE`` it is the guest hookscript of Proxmox's
(``packaging/proxmox/entourage``).
"""

import os
import sys

_MARK = b"urn:entourage:attend"
_OBJECT = b"dbus-vmstate,id=entourage-attend,"
_RUN = "/run/entourage"
_SETTINGS = "/etc/entourage/entourage.toml"
_NOTES = "/etc/pve/priv/entourage"
_PHASES = {"pre-start": "begin", "post-start": "started"}
_OPERATIONS = frozenset({"migrate", "restore", "stopped", "release"})
_TOLD_WITHIN = 1.0  # seconds, of what nobody waits for
_LIVES_WITHIN = 30.0  # seconds: a daemon that works on an answer says so more often


def main(words: list[str]) -> int:
    """Answer libvirt; returns the exit status: another than 0 refuses the migration.

    Args:
        words: The domain's name, the operation, the sub-operation and a dash.
    """
    if words[:1] == ["proxmox"]:
        return _hookscript(words[1:])
    if len(words) < 3 or words[1] not in _OPERATIONS:  # noqa: PLR2004 - see hooks.html of libvirt
        return 0
    xml = sys.stdin.buffer.read()
    if _MARK not in xml and _OBJECT not in xml:
        return 0
    begins = words[1:3] == ["migrate", "begin"]
    restores = words[1] == "restore"  # what was saved has no state of ours in it
    without = without_object(xml) if (begins or restores) and _OBJECT in xml else xml
    answer: dict[str, str] = {}
    try:
        if _MARK in xml and not restores:
            answer = _asked(words[:3], without, _LIVES_WITHIN if begins else _TOLD_WITHIN)
    except (OSError, ValueError) as error:
        if begins and not _may_go_alone(words[0], error):
            return 1
    if why_not := answer.get("refuse"):
        print(f"entourage: {why_not}", file=sys.stderr)  # noqa: T201 - libvirt shows it
        return 1
    sys.stdout.write(answer.get("xml") or (without.decode() if without != xml else ""))
    return 0


def _hookscript(words: list[str]) -> int:
    """Answer Proxmox, which calls it for a VM's starts and stops; only arrivals are of interest.

    Args:
        words: The VM's number, and the phase.
    """
    source = os.environ.get("PVE_MIGRATED_FROM", "")
    what = _PHASES.get(words[1], "") if len(words) == 2 else ""  # noqa: PLR2004 - see pct(1), qm(1)
    notes = os.environ.get("ENTOURAGE_PROXMOX_NOTES", _NOTES)
    if not source or not what or not os.path.exists(f"{notes}/{words[0]}.json"):  # noqa: PTH110 - it would take its time
        return 0
    import json  # noqa: PLC0415 - not for VMs that are not attended

    said = json.dumps({"vmid": words[0], "source": source}).encode()
    try:
        why_not = _asked([words[0], "migrate", what], said, _LIVES_WITHIN).get("refuse")
    except (OSError, ValueError) as error:
        return 0 if _may_go_alone(f"VM {words[0]}", error) else 1
    if why_not:
        print(f"entourage: {why_not}", file=sys.stderr)  # noqa: T201 - it stands in the task's log
    return int(bool(why_not))


def without_object(xml: bytes) -> bytes:
    """The XML without QEMU's object of an earlier arrival: its bus was on another host."""
    import re  # noqa: PLC0415 - not for domains that never were attended

    ours = rb"<qemu:arg value=(['\"])-object\1/>\s*<qemu:arg value=(['\"])" + _OBJECT
    return re.sub(ours + rb"[^'\"]*\2/>\s*", b"", xml)


def _asked(words: list[str], xml: bytes, patience: float) -> dict[str, str]:
    """What the daemon says.

    Args:
        words: The operation.
        xml: What the hook was given.
        patience: Seconds that it may be silent. While it works on the answer, which may take it
            long, it says empty lines: one that hangs is not waited for.

    Raises:
        OSError, ValueError: It is not there, hangs, or has gone away.
    """
    import json  # noqa: PLC0415 - not for domains that are not attended
    import socket  # noqa: PLC0415 - same

    run = os.environ.get("ENTOURAGE_RUN_DIR") or str(_setting("paths", "run", _RUN))
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.settimeout(patience)
        daemon.connect(f"{run}/attend/control")
        daemon.sendall(json.dumps({"hook": words, "xml": xml.decode()}).encode() + b"\n")
        with daemon.makefile("rb") as answer:
            line = b"\n"
            while line == b"\n":
                line = answer.readline()
    if not line:
        raise ValueError("it went away")
    said: dict[str, str] = json.loads(line)
    return said


def _setting(table: str, key: str, usual: str) -> object:
    """What the settings say; the usual where they say nothing, or cannot be read."""
    try:
        import tomllib  # noqa: PLC0415 - not for domains that are not attended

        with open(os.environ.get("ENTOURAGE_CONFIG", _SETTINGS), "rb") as file:  # noqa: PTH123
            return tomllib.load(file).get(table, {}).get(key, usual)
    except (ImportError, OSError, ValueError, AttributeError):
        return usual


def _may_go_alone(name: str, error: Exception) -> bool:
    """Whether a domain may leave its devices behind, as the settings say; else that is told."""
    if _setting("attend", "unattended", "refuse") == "allow":
        return True
    print(  # noqa: T201 - libvirt shows it
        f"entourage: {name} has devices that Entourage must bring, and its daemon does not answer"
        f" on this host ({error}): start it there (systemctl start entourage-attend), or set"
        ' attend.unattended = "allow" in its settings to leave these devices behind',
        file=sys.stderr,
    )
    return False


def command() -> None:
    """The program."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    command()
