"""A UEFI firmware and the file that it keeps its variables in."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from entourage import durable
from entourage.domain import Block, Boot, Domain
from entourage.errors import HypervisorError, UsageError, plain_words
from entourage.hosts.resources import Ledger, place
from entourage.hypervisors.qemu.resolve import begins_like_qcow2

_BIOS_BLOCK = 64 << 10
_FLASH_BLOCK = 4 << 10
# Of the 8 MiB below 4 GiB that QEMU puts both files into.
_MOST = 8 << 20


def firmware_problems(domain: Domain) -> Iterator[UsageError]:
    """What keeps the machine from having its firmware: blocks, and changes nothing."""
    boot, variables = domain.boot, domain.variables
    if variables is None:
        if boot.firmware is not None:
            yield from _bios_problems(boot.firmware)
        return
    if boot.firmware is None:
        yield UsageError(
            "it keeps variables of a UEFI firmware, and none is given",
            device=variables.label,
            remedy="add firmware = … under [boot]",
        )
        return
    if not Path(variables.path).exists():
        yield from _template_problems(boot, variables)
    elif problem := _flash_problem(Path(variables.path)):
        yield UsageError(
            f"{variables.path} does not hold variables of a UEFI: {problem}",
            device=variables.label,
            remedy="name another file under [boot] (nvram), or move it away, to have it made anew",
        )
    if problem := _flash_problem(Path(boot.firmware)):
        yield UsageError(
            f"{boot.firmware} is not the code of a UEFI firmware: {problem}",
            remedy="name the firmware's code under [boot] (firmware)",
        )


def make_variables(domain: Domain, ledger: Ledger) -> None:
    """Make the file of the variables, if it is not there, as the template has them; durable.

    Args:
        domain: Without a problem in ``firmware_problems``.
        ledger: Takes what is made before it is.

    Raises:
        HypervisorError: It cannot be made.
    """
    variables, boot = domain.variables, domain.boot
    if variables is None or boot.firmware is None or Path(variables.path).exists():
        return
    path = Path(variables.path)
    try:
        content = _template(boot, boot.firmware).read_bytes()
        scratch = path.with_name(f".entourage-{secrets.token_hex(6)}.part")
        ledger.record("scratch", path=str(scratch))
        with open(scratch, "xb", opener=_private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # meanwhile: it is as good
            place(scratch, path, ledger)
        scratch.unlink(missing_ok=True)
        durable.sync_directory(path.parent)
    except OSError as error:
        raise HypervisorError(
            f"{path} cannot be made: {plain_words(error)}",
            device=variables.label,
            remedy="make room there, or name another file under [boot] (nvram)",
        ) from error


def notes(domain: Domain) -> list[str]:
    """What whoever starts the machine should know of its firmware."""
    firmware = domain.boot.firmware
    if domain.variables is not None or firmware is None or "CODE" not in Path(firmware).name:
        return []
    lost = f"what the UEFI firmware {firmware} keeps (its boot order, say) is lost at each stop"
    return [f"{lost}: add nvram = … under [boot]"]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _bios_problems(firmware: str) -> Iterator[UsageError]:
    try:
        size = Path(firmware).stat().st_size
    except OSError:  # that it is not there is told elsewhere
        return
    if size % _BIOS_BLOCK == 0 and size:
        return
    yield UsageError(
        f"{firmware} ({size} bytes) is no BIOS; as UEFI firmware it keeps variables in a file",
        remedy='add nvram = "/srv/NAME-vars.fd" under [boot]; the first start makes that file',
    )


def _template_problems(boot: Boot, variables: Block) -> Iterator[UsageError]:
    path = Path(variables.path)
    template = _template(boot, boot.firmware or "")
    if not path.parent.is_dir():
        yield UsageError(
            f"there is no directory {path.parent}, for {path} to be made in",
            device=variables.label,
            remedy="make it, or name another file under [boot] (nvram)",
        )
    elif path.is_symlink():
        yield UsageError(
            f"{path} is a link to a file that is not there",
            device=variables.label,
            remedy="put that file back, or remove the link",
        )
    elif not template.is_file():
        yield UsageError(
            f"there is no {path}, and no template {template} that it could be made from",
            device=variables.label,
            remedy="name the template that belongs to the firmware (nvram-template under [boot])",
        )
    elif not os.access(template, os.R_OK):
        yield UsageError(f"the template {template} cannot be read", device=variables.label)
    elif problem := _flash_problem(template):
        yield UsageError(
            f"{template} is no template of variables: {problem}",
            device=variables.label,
            remedy="name the one that belongs to the firmware (nvram-template under [boot])",
        )


def _flash_problem(path: Path) -> str:
    """Why QEMU does not take a file as a flash; empty where it does, or cannot be looked at."""
    if not path.is_file() or not os.access(path, os.R_OK):
        return ""
    if begins_like_qcow2(path):
        return "it is a qcow2 image, and must be raw"
    size = path.stat().st_size
    if 0 < size < _MOST and size % _FLASH_BLOCK == 0:
        return ""
    return f"it has {size} bytes, not a multiple of {_FLASH_BLOCK} below {_MOST}"


def _template(boot: Boot, firmware: str) -> Path:
    """The template that is named; or the one beside the firmware's code, by its name."""
    if boot.nvram_template is not None:
        return Path(boot.nvram_template)
    code = Path(firmware)
    names = [code.name.replace("CODE", "VARS").replace("code", "vars")]
    names.append(names[0].replace(".secboot", ""))  # the same, where there are no keys in it
    found = [code.with_name(name) for name in names if name != code.name]
    return next((path for path in found if path.is_file()), code.with_name(names[0]))
