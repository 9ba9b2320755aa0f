"""What a user maps must be there, once."""

from __future__ import annotations

from typing import Any

import pytest

from entourage.devices.base import Options, check_options
from entourage.domain import Block, Domain, Net, Pci, Usb
from entourage.errors import UsageError

DOMAIN = Domain(
    name="web1",
    memory=1 << 28,
    block=(Block(id="xvda", path="/srv/a"),),
    net=(Net(id="vif0", bridge="lan"),),
    usb=(
        Usb(id="tablet", model="usb-tablet"),
        Usb(id="usb0", vendor=0x1050, product=0x0407, place="1-1.4"),
        Usb(id="usb1", vendor=0x1050, product=0x0407, place="1-1.5"),
    ),
    pci=(Pci(id="rng", model="virtio-rng-pci"), Pci(id="pci0", host="41:00.0")),
)


@pytest.mark.parametrize(
    "options",
    [
        {"nets": {"lan": "lan2"}, "disks": {"xvda": "/b"}},
        {"usb": {"usb0": "1.6", "1-1.5": "1.7"}},
        {"pci": {"pci0": "0000:05:00.0"}},
        {"pci": {"0000:41:00.0": "0000:05:00.0"}},
    ],
)
def test_what_is_there(options: dict[str, Any]) -> None:
    check_options(DOMAIN, Options(**options))


@pytest.mark.parametrize(
    ("options", "message", "remedy"),
    [
        ({"nets": {"br0": "x"}}, "--net br0=…: web1 has no 'br0'", "it has: lan"),
        ({"disks": {"sda": "/x"}}, "--disk sda=…: web1 has no 'sda'", "it has: xvda"),
        (
            {"pci": {"0000:03:00.0": "0000:05:00.0"}},
            "--pci 0000:03:00.0=…: web1 has no",
            "it has: pci0 or 0000:41:00.0",
        ),
        ({"pci": {"rng": "0000:05:00.0"}}, "web1 has no 'rng'", "it has: pci0"),
        ({"usb": {"tablet": "1.6"}}, "web1 has no 'tablet'", "usb0 or 1-1.4 or 1050:0407"),
        (
            {"usb": {"1050:0407": "1.6"}},
            "--usb 1050:0407=…: web1 has more than one",
            "usb0 or usb1",
        ),
        (
            {"usb": {"usb0": "1.6", "1-1.4": "1.7"}},
            "--usb 1-1.4=…: web1 cannot have it mapped twice",
            "name it by its id: usb0",
        ),
    ],
)
def test_what_is_not(options: dict[str, Any], message: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(DOMAIN, Options(**options))
    assert message in caught.value.message
    assert remedy in caught.value.remedy
