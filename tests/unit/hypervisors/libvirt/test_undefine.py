"""Forgetting a domain that has left: nothing that the other host may see is deleted with it."""

from __future__ import annotations

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt.connection import RefusedError
from entourage.hypervisors.libvirt.undefine import flags, undefine

NVRAM, KEEP_NVRAM, TPM, KEEP_TPM = 4, 8, 32, 64


class Defined:
    """A fake of ``virDomain``: a libvirtd that knows these flags, or no such domain."""

    def __init__(self, version: int, known: int, *, gone: bool = False) -> None:
        self.version, self.known, self.gone = version, known, gone
        self.forgotten = False

    def connect(self) -> Defined:
        return self

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's
        return self.version

    def undefineFlags(self, asked: int) -> None:  # noqa: N802 - libvirt's
        if self.gone:
            raise RefusedError("Domain not found", 42)
        if asked & ~self.known:
            raise RefusedError(f"unsupported flags (0x{asked & ~self.known:x})", 8)
        self.forgotten = True

    def isPersistent(self) -> bool:  # noqa: N802 - libvirt's
        if self.gone:
            raise RefusedError("Domain not found", 42)
        return not self.forgotten


@pytest.mark.parametrize("version", [6_000_000, 9_000_000, 11_003_000])
@pytest.mark.parametrize("alone", [True, False])
def test_the_nvram_always_stays(version: int, *, alone: bool) -> None:
    asked = flags(version, tpm_is_alone=alone)
    assert asked & KEEP_NVRAM
    assert not asked & NVRAM


def test_the_tpm_goes_only_where_no_other_host_sees_it() -> None:
    assert flags(9_000_000, tpm_is_alone=True) & (TPM | KEEP_TPM) == TPM
    assert flags(9_000_000, tpm_is_alone=False) & (TPM | KEEP_TPM) == KEEP_TPM


async def test_an_older_libvirt_is_told_what_it_knows() -> None:
    old = Defined(8_000_000, 1 | 2 | 4 | 8 | 16)
    await undefine(old, "web1", here=True)
    assert old.forgotten


async def test_a_definition_that_stays_is_told() -> None:
    with pytest.raises(HypervisorError, match="does not forget web1: unsupported") as failure:
        await undefine(Defined(11_000_000, 1), "web1", here=True)
    assert failure.value.remedy == "virsh undefine --keep-nvram web1"


async def test_one_that_is_gone_is_no_error() -> None:
    await undefine(Defined(11_000_000, 0, gone=True), "web1", here=True)
