"""A guest started by hand: proves the lab without the program that the lab is to prove."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lab import network
from lab.guest import Disk, cmdline
from lab.guest_image import guest_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from lab.host import Host

_TIMEOUT = 20.0


class HandMadeGuest:
    """QEMU, swtpm and a tap on a host; a context manager that takes them away again."""

    def __init__(
        self,
        host: Host,
        name: str,
        *,
        disks: Sequence[Disk] = (),
        tpm: bool = True,
        address: str = network.guest_address(),
    ) -> None:
        self.host = host
        self.name = name
        self.tap = f"tap-{name}"
        self.serial = f"/run/{name}.serial"
        self._socket = f"/run/{name}.qmp"
        host.run(["ip", "tuntap", "add", "dev", self.tap, "mode", "tap"])
        host.run(["ip", "link", "set", "dev", self.tap, "master", network.HOST_BRIDGE, "up"])
        argv = self._base(address)
        for disk in disks:
            argv += ["-drive", f"file={disk.path},format={disk.format},if=virtio,cache=none"]
        if tpm:
            argv += self._start_swtpm()
        # QEMU returns when it has made its sockets: nothing is waited for by looking.
        host.run([*argv, "-daemonize", "-pidfile", f"/run/{name}.pid"])
        self.pid = int(host.path(f"/run/{name}.pid").read_text())  # as the host counts

    def _base(self, address: str) -> list[str]:
        image = guest_image()
        mac = network.mac_of(address)
        return [
            "qemu-system-x86_64",
            *("-name", self.name, "-machine", "q35", "-accel", "tcg,thread=multi", "-m", "256M"),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
            *("-append", cmdline(address), "-serial", f"file:{self.serial}"),
            *("-qmp", f"unix:{self._socket},server=on,wait=off"),
            *("-netdev", f"tap,id=net0,ifname={self.tap},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net0,mac={mac},romfile="),
        ]

    def _start_swtpm(self) -> list[str]:
        state, control = f"/srv/{self.name}.tpm", f"/run/{self.name}.swtpm"
        self.host.run(["mkdir", "-p", state])
        options = ["--tpm2", "--tpmstate", f"dir={state}", "--daemon", "--terminate"]
        self.host.run(["swtpm", "socket", *options, "--ctrl", f"type=unixio,path={control}"])
        return [
            *("-chardev", f"socket,id=tpm,path={control}"),
            *("-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.host.is_on:
            with suppress(OSError):  # it may have powered itself off
                self.qmp("quit")
            self.host.run(["ip", "link", "delete", "dev", self.tap])

    def qmp(self, command: str, **arguments: object) -> Any:
        """Run one QMP command and return what it returns."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(_TIMEOUT)
            monitor.connect(str(self.host.path(self._socket)))
            with monitor.makefile("rw") as lines:
                lines.readline()  # the greeting
                self._send(lines, "qmp_capabilities", {})
                return self._send(lines, command, arguments)

    @staticmethod
    def _send(lines: Any, command: str, arguments: dict[str, Any]) -> Any:
        lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        lines.flush()
        for line in lines:
            message = json.loads(line)
            if "error" in message:
                raise RuntimeError(f"{command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]
        raise RuntimeError(f"{command}: QEMU closed the connection")
