"""The QEMU program of this host: its version, its machine types, and whether KVM really works."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from entourage.errors import DeviceError, HypervisorError
from entourage.hosts import programs
from entourage.settings.model import Settings

_NAMES = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-kvm")
_ANSWERS_WITHIN = 30.0  # seconds
_PROBE_PATIENCE = 3.0  # where KVM works it takes a tenth of that
_PROBE_EXIT = 0x21
_KVM = Path("/dev/kvm")
# Devices of which another object, or each instance, has what is to be saved.
_SAVED_ELSEWHERE = ("virtio-", "vhost-", "i8255", "i82562", "i82801", "pxb")

# A firmware of 64 KiB that enters long mode by way of its own page tables and ends QEMU with status
# 0x21 through isa-debug-exit. Some hosts have a /dev/kvm that runs real mode and hangs here.
#
#     cli; xor ax,ax; mov ds,ax
#     mov dword [0x1000],0x2003; mov dword [0x2000],0x3003; mov dword [0x3000],0x83   ; page tables
#     lgdt cs:[0x78]
#     mov eax,0x20; mov cr4,eax; mov eax,0x1000; mov cr3,eax                          ; PAE
#     mov ecx,0xc0000080; rdmsr; or eax,0x100; wrmsr                                  ; EFER.LME
#     mov eax,cr0; or eax,0x80000001; mov cr0,eax; jmp dword 8:0xf005d
#     long: mov al,0x10; out 0xf4,al; hlt                                             ; 64 bits
#     0x68: the descriptor table; 0x78: its limit and address; 0xfff0: jmp 0xf000:0
_PROBE_CODE = bytes.fromhex(
    "fa31c08ed866c70600100320000066c70600200330000066c706003083000000"
    "2e660f0116780066b8200000000f22e066b8001000000f22d866b9800000c00f"
    "32660d000100000f300f20c0660d010000800f22c066ea5d000f000800b010e6"
    "f4f4000000000000000000000000000000000000009a20000f0068000f00"
)
_PROBE_RESET = bytes.fromhex("ea000000f0")
_FIRMWARE_SIZE = 0x10000
_RESET_VECTOR = 0xFFF0


def find_qemu() -> str | None:
    """QEMU's path; None where it is not installed."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def qemu() -> str:
    """QEMU's path.

    Raises:
        HypervisorError: It is not installed.
    """
    path = find_qemu()
    if path is None:
        raise HypervisorError(
            f"{_NAMES[0]} is not installed", remedy="install it (qemu-system-x86 on Debian)"
        )
    return path


def tls_in_threads(version: tuple[int, int, int]) -> bool:
    """Whether QEMU can serve an encrypted export in a thread of its own; these versions abort.

    What is encrypted is read in the main loop there, and in nothing that QEMU does within that.
    """
    return not (8, 2, 0) <= version < (8, 2, 5) and version != (9, 0, 0)


async def version() -> tuple[int, int, int]:
    """QEMU's version.

    Raises:
        HypervisorError: It is not installed, or does not say.
    """
    text = await _ask("--version")
    found = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", text)
    if found is None:
        raise HypervisorError(f"QEMU does not say its version: {text[:200]!r}")
    major, minor, micro = found.groups(default="0")
    return int(major), int(minor), int(micro)


async def machine_types() -> dict[str, str]:
    """The machine types that QEMU has; what is only another name leads to what it stands for."""
    return parse_machine_types(await _ask("-machine", "help"))


def parse_machine_types(text: str) -> dict[str, str]:
    """Read ``-machine help``."""
    types: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        name, _, about = line.partition(" ")
        if not name:
            continue
        alias = re.search(r"\(alias of (\S+)\)", about)
        types[name] = alias[1] if alias else name
    return types


async def loses_state(models: Iterable[str]) -> list[str]:
    """Those of the models whose state QEMU would drop without a word.

    It refuses to migrate what is marked so; but a device that was written without any thought of
    migration is not marked, and arrives as if it had just been switched on. QEMU can tell for which
    devices it knows what to save.
    """
    asked = [model for model in models if not model.startswith(_SAVED_ELSEWHERE)]
    if not asked:
        return []
    saved = json.loads(await _ask("-machine", "none", "-dump-vmstate", "/dev/stdout"))
    return [model for model in asked if model not in saved]


async def _ask(*arguments: str) -> str:
    asked = " ".join(arguments)
    try:
        status, out, said = await programs.run(qemu(), *arguments, within=_ANSWERS_WITHIN)
    except DeviceError as error:
        raise HypervisorError(f"QEMU is asked {asked}: {error.message}") from error
    if status:
        raise HypervisorError(f"QEMU does not answer {asked}: {said}")
    return out


async def kvm_works(settings: Settings) -> bool:
    """Whether KVM runs a guest on this host: tried once per boot, with a real one.

    That there is a /dev/kvm tells little: in a virtual machine it may run no 64-bit code.
    """
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return False
    status = _KVM.stat()  # noqa: ASYNC240 - /dev, /proc and /run
    key = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), status.st_rdev, qemu()]  # noqa: ASYNC240 - /dev, /proc and /run
    cache = Path(settings.paths.run, "kvm.json")
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(cache.read_text())  # noqa: ASYNC240 - /dev, /proc and /run
        if known["key"] == key:
            return bool(known["works"])
    works = await _probe_kvm()
    with contextlib.suppress(OSError):
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = cache.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps({"key": key, "works": works}))
        scratch.rename(cache)
    return works


def probe_firmware() -> bytes:
    """The guest with which KVM is tried."""
    image = bytearray(_FIRMWARE_SIZE)
    image[: len(_PROBE_CODE)] = _PROBE_CODE
    image[_RESET_VECTOR : _RESET_VECTOR + len(_PROBE_RESET)] = _PROBE_RESET
    return bytes(image)


async def _probe_kvm() -> bool:
    with tempfile.NamedTemporaryFile(prefix="entourage-kvm-") as firmware:
        firmware.write(probe_firmware())
        firmware.flush()
        return await run_probe(firmware.name, "kvm") == _PROBE_EXIT


async def run_probe(firmware: str, accel: str) -> int | None:
    """Run the guest with which KVM is tried; its exit status, None where it hangs."""
    process = await asyncio.create_subprocess_exec(
        qemu(), "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "pc", "-accel", accel, "-m", "4M", "-bios", firmware,
        "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_PROBE_PATIENCE):
            return await process.wait()
    except TimeoutError:
        return None
    finally:
        await programs.kill(process)
