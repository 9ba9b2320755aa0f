from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from entourage.devices import registry
from entourage.devices.block.controller import BlockController
from entourage.devices.host.pci import PciController
from entourage.devices.host.usb import UsbController
from entourage.devices.net import NetController
from entourage.devices.tpm import TpmController
from entourage.domain import Block, Device, External, Net, Pci, Tpm, Usb
from entourage.errors import UsageError

DISK = Block(id="disk0", path="/srv/web1.img")
FPGA = External(id="f0", type="fpga")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A directory from which packages are found; there are none yet."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    registry._entries.cache_clear()  # pyright: ignore[reportPrivateUsage]
    yield tmp_path
    registry._entries.cache_clear()  # pyright: ignore[reportPrivateUsage]


def install(where: Path, package: str, entry: str, code: str) -> None:
    """A real package, as pip leaves it behind."""
    module = package.replace("-", "_")
    (where / f"{module}.py").write_text(code)
    info = where / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[entourage.devices]\n{entry} = {module}:Mine\n")


MINE = "from entourage.devices.base import Controller\n\n\nclass Mine(Controller):\n    pass\n"


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (DISK, BlockController),
        (Net(id="n", bridge="br0"), NetController),
        (Tpm(id="t"), TpmController),
        (Usb(id="u", model="usb-kbd"), UsbController),
        (Pci(id="p", model="virtio-rng-pci"), PciController),
        (FPGA, None),
    ],
)
def test_the_built_in_ones(device: Device, expected: type | None) -> None:
    assert registry.controller_class(device) is expected


def test_a_package_brings_a_controller(packages: Path) -> None:
    install(packages, "mine-one", "fpga", MINE)
    found = registry.controller_class(FPGA)
    assert found is not None
    assert found.__module__ == "mine_one"
    assert registry.controller_class(External(id="f1", type="other")) is None


def test_a_package_replaces_a_built_in_one(packages: Path) -> None:
    install(packages, "mine-two", "block", MINE)
    found = registry.controller_class(DISK)
    assert found is not None
    assert found.__module__ == "mine_two"


def test_a_package_is_not_imported_before_it_is_needed(packages: Path) -> None:
    install(packages, "mine-three", "fpga", "raise SystemError\n")
    assert registry.controller_class(DISK) is BlockController
    assert "mine_three" not in sys.modules


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_of_that_name\n", "cannot be loaded: ModuleNotFoundError"),
        ("Other = 1\n", "cannot be loaded: AttributeError"),
        ("Mine = object\n", "is no Controller"),
        ("Mine = 1\n", "is no Controller"),
    ],
)
def test_a_package_that_cannot_be_used(packages: Path, code: str, message: str) -> None:
    install(packages, f"bad-{abs(hash(code))}", "fpga", code)
    with pytest.raises(UsageError, match=message) as caught:
        registry.controller_class(FPGA)
    assert caught.value.device == "external/f0"
    assert "mend or remove bad-" in caught.value.remedy


def test_two_packages_bring_the_same(packages: Path) -> None:
    install(packages, "mine-four", "fpga", MINE)
    install(packages, "mine-five", "fpga", MINE)
    with pytest.raises(UsageError, match="mine-five and mine-four both bring"):
        registry.controller_class(FPGA)
