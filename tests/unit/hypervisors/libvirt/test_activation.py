"""QEMU takes the images of a guest that stays paused, at a socket that nobody finds."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt import activation
from entourage.hypervisors.libvirt.activation import take_images

DRIVES = [
    {"device": "", "inserted": {"node-name": "libvirt-1-format"}},
    {"device": "cd"},  # an empty drive
    {"device": "", "inserted": {"node-name": "libvirt-pflash1-format"}},
]


class Qemu:
    """A fake of libvirt's way to a QEMU."""

    def __init__(
        self,
        major: int,
        *,
        refuses: str = "",
        stays: int = 0,
        serves: bool = False,
        exports: tuple[str, ...] = (),
        monitor: str = "",
    ) -> None:
        self.monitor = monitor
        self.listens: dict[str, Any] = {}
        self.major, self.refuses, self.stays = major, refuses, stays
        self.serves, self.exports = serves, list(exports)
        self.told: list[str] = []
        self.nodes: list[str] = []

    def answer(self, command: str, arguments: dict[str, Any]) -> Any:
        self.told.append(command)
        match command:
            case "query-version":
                return {"qemu": {"major": self.major}}
            case "query-block":
                return DRIVES
            case "query-chardev":
                return [{"label": "charmonitor", "filename": self.monitor}]
            case "nbd-server-start" if self.serves:
                return None
            case "nbd-server-start":
                self.listens = arguments["addr"]
            case "block-export-add":
                if arguments["id"] in self.exports:
                    return None
                assert arguments["writable"] is False
                self.nodes.append(arguments["node-name"])
                self.exports.append(arguments["id"])
            case "block-export-del":
                if arguments["id"] not in self.exports:
                    return None
                self.exports.remove(arguments["id"])
            case "query-block-exports":
                self.stays -= 1
                return [{"id": "entourage-take"}] if self.stays >= 0 else []
            case _:
                pass
        return None if command == self.refuses else {}

    def with_files(self, _raw: Any, text: str, files: list[int], _flags: int) -> None:
        self.told.append(json.loads(text)["execute"])
        assert os.fstat(files[0])


def use(monkeypatch: pytest.MonkeyPatch, qemu: Qemu) -> None:
    async def tell(_raw: Any, command: str, **arguments: Any) -> Any:
        return qemu.answer(command, arguments)

    monkeypatch.setattr(activation, "tell_qemu", tell)
    library = SimpleNamespace(qemuMonitorCommandWithFiles=qemu.with_files)
    monkeypatch.setitem(sys.modules, "libvirt_qemu", library)


async def test_a_newer_one_has_a_command_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = Qemu(10)
    use(monkeypatch, qemu)
    await take_images(None)
    assert qemu.told == ["query-version", "blockdev-set-active"]


async def test_each_image_is_exported_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of UEFI as well; and the server ends, once each export has."""
    qemu = Qemu(7, stays=1)
    use(monkeypatch, qemu)
    monkeypatch.setattr(activation, "_SOON", 0.0)
    await take_images(None)
    assert qemu.nodes == ["libvirt-1-format", "libvirt-pflash1-format"]
    assert qemu.told[2:4] == ["getfd", "nbd-server-start"]
    assert qemu.told.count("query-block-exports") == 3
    assert qemu.told[-1] == "nbd-server-stop"


@pytest.mark.parametrize("major", [7, 10])
async def test_what_qemu_refuses_is_told(monkeypatch: pytest.MonkeyPatch, major: int) -> None:
    command = "block-export-add" if major < 10 else "blockdev-set-active"
    qemu = Qemu(major, refuses=command)
    use(monkeypatch, qemu)
    with pytest.raises(HypervisorError, match=command):
        await take_images(None)


async def test_a_server_that_is_there_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a backup, say: it is gone on with, and not ended."""
    qemu = Qemu(7, serves=True, exports=("backup",))
    use(monkeypatch, qemu)
    await take_images(None)
    assert qemu.nodes == ["libvirt-1-format", "libvirt-pflash1-format"]
    assert "nbd-server-stop" not in qemu.told
    assert qemu.exports == ["backup"]


async def test_what_a_process_that_was_killed_has_left_is_no_hindrance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    qemu = Qemu(7, serves=True, exports=("entourage-take",), stays=1)
    use(monkeypatch, qemu)
    monkeypatch.setattr(activation, "_SOON", 0.0)
    await take_images(None)
    assert qemu.nodes == ["libvirt-1-format", "libvirt-pflash1-format"]
    assert qemu.exports == []
    assert qemu.told.index("query-block-exports") < qemu.told.index("block-export-add")


@pytest.mark.parametrize(
    "monitor",
    ["/lib/domain-1-web1/monitor.sock,server=on", "/lib/domain-1-web1/monitor.sock,server"],
)
async def test_an_older_libvirt_has_qemu_listen_where_nobody_else_gets_to(
    monkeypatch: pytest.MonkeyPatch, monitor: str
) -> None:
    """It passes no socket on: QEMU makes one beside that of its monitor."""
    qemu = Qemu(7, monitor=f"unix:{monitor}")
    use(monkeypatch, qemu)
    monkeypatch.setitem(sys.modules, "libvirt_qemu", SimpleNamespace())
    await take_images(None)
    assert qemu.nodes == ["libvirt-1-format", "libvirt-pflash1-format"]
    path = "/lib/domain-1-web1/entourage-take.sock"
    assert qemu.listens == {"type": "unix", "data": {"path": path}}
    assert qemu.told[-1] == "nbd-server-stop"


async def test_one_whose_directory_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = Qemu(7, monitor="pty:/dev/pts/1")
    use(monkeypatch, qemu)
    monkeypatch.setitem(sys.modules, "libvirt_qemu", SimpleNamespace())
    with pytest.raises(HypervisorError, match="query-chardev"):
        await take_images(None)
    assert "nbd-server-start" not in qemu.told


async def test_an_export_that_stays_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = Qemu(7, stays=1000)
    use(monkeypatch, qemu)
    monkeypatch.setattr(activation, "_ENDS_WITHIN", 0.0)
    with pytest.raises(HypervisorError, match="query-block-exports"):
        await take_images(None)
    assert qemu.told[-1] == "nbd-server-stop"
