"""QEMU without a manager in between: Entourage starts it, drives it by QMP and moves it."""

from entourage.hypervisors.qemu.hypervisor import QemuHypervisor

__all__ = ["QemuHypervisor"]
