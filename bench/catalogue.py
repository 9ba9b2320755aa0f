"""What can be measured: every scenario, how often it is run, and of what guests."""

from __future__ import annotations

import dataclasses

from bench.guests import Shape
from bench.scenarios import (
    Scenario,
    beside_attended,
    beside_virsh,
    beside_xl,
    compare,
    devices,
    evacuate,
    far,
    on_libvirt,
    rollback,
    save,
    startup,
    syncs,
    test,
)

MEMORY = Shape("memory", disks=())
DISK = Shape("disk")
TPM = Shape("tpm", tpm=True)
CLEAR = {"tls": False}

SCENARIOS = (
    Scenario("floor-memory", "memory", 30, 2, compare, MEMORY),
    Scenario("floor-disk", "memory and a disk", 30, 0, compare, DISK),
    Scenario("floor-tpm", "memory, disk and TPM", 30, 5, compare, TPM),
    Scenario(
        "floor-memory-clear", "memory, no TLS", 30, 0, compare,
        dataclasses.replace(MEMORY, **CLEAR),
    ),
    Scenario(
        "floor-tpm-clear", "memory, disk and TPM, no TLS", 30, 0, compare,
        dataclasses.replace(TPM, **CLEAR),
    ),
    Scenario(
        "virsh", "beside virsh migrate: memory, disk and TPM, no TLS", 15, 2, beside_virsh,
        dataclasses.replace(TPM, **CLEAR),
    ),
    Scenario(
        "libvirt", "a domain of libvirt's, by virsh and by Entourage, no TLS", 15, 0, on_libvirt,
        dataclasses.replace(TPM, **CLEAR),
    ),
    Scenario(
        "attended", "virsh migrate, attended and not: memory, disk and TPM, no TLS", 12, 0,
        beside_attended, dataclasses.replace(TPM, **CLEAR),
    ),
    Scenario("xl", "beside xl migrate: memory and a shared disk, nested Xen", 5, 0, beside_xl),
    Scenario("devices", "devices of 200 ms each in step 2", 5, 0, devices),
    Scenario("rollback", "from a failure in step 3 to the guest running", 11, 1, rollback),
    Scenario("startup", "start-up", 15, 5, startup),
    Scenario(
        "test", "TEST of 8 disks, 1 ms each way", 15, 3, test,
        Shape("test", disks=("64M",) * 8, tpm=True),
    ),
    Scenario(
        "save", "save, restore and checkpoint, beside virsh's: memory and a disk", 10, 2, save, DISK
    ),
    Scenario(
        "save-large", "the same of 2 GiB, of which 1.5 cannot be compressed", 4, 0, save,
        Shape("large", memory="2G", filled=1536),
    ),
    Scenario(
        "evacuate", "a host of libvirt guests emptied, beside a shell loop, no TLS", 4, 0, evacuate,
        dataclasses.replace(MEMORY, memory="128M"),
    ),
    Scenario("syncs", "syncs within the blackout", 3, 1, syncs, TPM),
    Scenario("far", "20 ms of delay each way", 10, 0, far, TPM),
    Scenario(
        "big-disk", "a disk of 10 GiB with 200 MiB of data", 7, 0, compare,
        Shape("big-disk", disks=("10G",), data=200),
    ),
    Scenario(
        "disks", "8 disks", 10, 0, compare, Shape("disks", disks=("64M",) * 8),
    ),
    Scenario(
        "big-memory", "2 GiB of mostly zero memory", 10, 0, compare,
        Shape("big-memory", disks=(), memory="2G"),
    ),
)  # fmt: skip
