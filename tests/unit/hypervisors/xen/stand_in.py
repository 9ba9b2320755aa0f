"""Stands in for xl: a program of that name on PATH that keeps its devices in a file.

It is no Xen. It answers as tools/xl/xl_pci.c and xl_usb.c of 4.17 do, and keeps its arguments.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from entourage.hosts import usb

PROGRAM = f"""#!{sys.executable}
import fcntl, json, sys, time
from pathlib import Path

at = Path(__file__).parent
command, *words = sys.argv[1:]
with open(at / "argv", "a") as log:
    log.write(json.dumps([command, *words]) + "\\n")
with open(at / "busy", "w") as busy:
    if command not in {{"list", "info"}}:
        try:
            fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("two at once")
    state = json.loads((at / "state").read_text())
    if command in state["slow"]:
        (at / "began").touch()
        while not (at / "go-on").exists():
            time.sleep(0.01)
    if command in state["fails"]:
        sys.exit("libxl: error: as it was told")
    ignored = command in state["ignores"]
    match [command, *words]:
        case ["info"]:
            print("virt_caps              :", state["virt_caps"])
        case ["list", "-l"]:
            print(json.dumps(state["domains"]))
        case ["pci-assignable-list"]:
            for bdf in state["assignable"]:
                print(bdf, "")
        case ["pci-list", _]:
            print("Vdev Device")
            for number, bdf in enumerate(state["pci"]):
                print(f"{{number:02x}}.0 {{bdf}}")
        case ["pci-attach", _, spec]:
            state["pci"] += [] if ignored else [spec.split(",")[0]]
        case ["pci-detach", _, bdf]:
            if bdf not in state["pci"]:
                sys.exit("libxl: error: PCI device not attached to this domain")
            state["pci"] = [other for other in state["pci"] if ignored or other != bdf]
        case ["usb-list", _]:
            for controller in sorted({{0}} | {{int(key.split(":")[0]) for key in state["usb"]}}):
                print("Devid  Type         BE  state usb-ver ports")
                print(f"{{controller:<6}} devicemodel  0   4     2       2    ")
                for port in (1, 2):
                    bus, address = state["usb"].get(f"{{controller}}:{{port}}", (0, 0))
                    has = f" Bus {{bus:03x}} Device {{address:03x}}" if bus else ""
                    print(f"  Port {{port}}:{{has}}")
        case ["usbdev-attach", _, *pairs]:
            said = dict(pair.split("=") for pair in pairs)
            place = f"{{said.get('controller', 0)}}:{{said.get('port', 2)}}"
            if place in state["usb"]:
                sys.exit("libxl: error: The controller port isn't available")
            if not ignored:
                state["usb"][place] = [int(said["hostbus"]), int(said["hostaddr"])]
        case ["usbdev-detach", _, controller, port]:
            if not ignored and state["usb"].pop(f"{{controller}}:{{port}}", None) is None:
                sys.exit(f"Unknown device at controller {{controller}} port {{port}}.")
        case _:
            sys.exit(f"no command {{command}}")
    (at / "state.new").write_text(json.dumps(state))
    (at / "state.new").rename(at / "state")
"""


class Xl:
    """The stand-in, and a sysfs with the USB devices of its host."""

    def __init__(self, at: Path) -> None:
        self._at = at / "bin"
        self._at.mkdir()
        self._usb = at / "usb"
        self._usb.mkdir()
        program = self._at / "xl"
        program.write_text(PROGRAM)
        program.chmod(stat.S_IRWXU)
        self._state: dict[str, Any] = {
            "pci": [],
            "usb": {},
            "assignable": [],
            "domains": [],
            "virt_caps": "pv hvm hvm_directio pv_directio hap",
            "fails": [],
            "ignores": [],
            "slow": [],
        }
        self.has()

    @property
    def path(self) -> str:
        return f"{self._at}:{os.environ['PATH']}"

    def has(self, **state: Any) -> None:
        """Change what it has: ``pci``, ``usb`` (``{"0:1": (bus, address)}``), ``fails``, …"""
        path = self._at / "state"
        now = json.loads(path.read_text()) if path.exists() else self._state
        path.write_text(json.dumps(now | state))

    def now(self, key: str) -> Any:
        return json.loads((self._at / "state").read_text())[key]

    def plugged(self, place: str, address: int, ids: str = "1050:0407", kind: str = "00") -> None:
        """Plug a USB device into its host."""
        folder = self._usb / place
        folder.mkdir(exist_ok=True)
        vendor, product = ids.split(":")
        for name, text in {
            "busnum": place.partition("-")[0],
            "devnum": str(address),
            "idVendor": vendor,
            "idProduct": product,
            "bDeviceClass": kind,
        }.items():
            (folder / name).write_text(f"{text}\n")
        (self._usb / f"{place}:1.0").mkdir(exist_ok=True)  # its interface

    def did(self) -> list[str]:
        """What it was told to change, since this was asked last."""
        path = self._at / "argv"
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return [
            " ".join(words)
            for words in map(json.loads, lines)
            if words[0].endswith(("attach", "detach"))
        ]

    @property
    def began(self) -> bool:
        return (self._at / "began").exists()

    def go_on(self) -> None:
        (self._at / "go-on").touch()


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Xl:
    """For a fixture."""
    made = Xl(tmp_path)
    monkeypatch.setenv("PATH", made.path)
    monkeypatch.setattr(usb, "DEVICES", tmp_path / "usb")
    return made
