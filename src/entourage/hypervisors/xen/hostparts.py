"""Everything of a host that xl's configuration of a domain names.

xl and libxl run as root and do what it says: they run its scripts, boot loader and device model,
and give some of its words to QEMU. So whatever is not known to be harmless is told of: each key
that is not in a table here, and each value that stands for something of the host's. Numbers,
switches and plain words of the keys below are harmless; text that xl makes part of a longer word
has a shape, so that it is not two words there. ``libxl_types.idl`` of Xen 4.14 to 4.21 has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, cast

from entourage.errors import HypervisorError
from entourage.hosts.parts import HostPart, Kind
from entourage.hypervisors.xen.devicerules import RULES, VALUES, WORD, At, Config, shaped

Parts: TypeAlias = Iterator[HostPart]


def _paths(by_section: Mapping[str, str]) -> frozenset[str]:
    """Whole paths of keys that are listed by the object that they are in."""
    found = ((section, word) for section, words in by_section.items() for word in words.split())
    return frozenset("/".join(filter(None, path)) for path in found)


_KNOWN_BY_SECTION: Mapping[str, str] = {
    "": """c_info b_info disks nics pcidevs rdms dtdevs vfbs vkbs vtpms p9s channels usbctrls
        usbdevs on_poweroff on_reboot on_watchdog on_crash on_soft_reset""",
    "c_info": """type hap oos ssidref ssid_label name domid uuid poolid pool_name
        run_hotplug_scripts driver_domain passthrough xend_suspend_evtchn_compat""",
    "b_info": """type type.hvm type.pv type.pvh max_vcpus avail_vcpus cpumap nodemap
        vcpu_hard_affinity vcpu_soft_affinity numa_placement tsc_mode max_memkb target_memkb
        video_memkb shadow_memkb iommu_memkb rtc_timeoffset exec_ssidref exec_ssid_label localtime
        disable_migrate cpuid blkdev_start vnuma_nodes max_grant_frames max_maptrack_frames
        max_grant_version device_model_version device_model_stubdomain stubdomain_memkb
        stubdomain_kernel stubdomain_cmdline stubdomain_ramdisk device_model device_model_ssidref
        device_model_ssid_label device_model_user sched_params ioports irqs iomem llc_colors
        claim_mode event_channels kernel cmdline ramdisk device_tree acpi bootloader
        bootloader_restrict bootloader_user timer_mode nested_hvm apic dm_restrict tee arch_arm
        arch_x86 altp2m altp2m_count vmtrace_buf_kb vpmu trap_unmapped_accesses
        xenstore_feature_mask""",
    "b_info/vnuma_nodes": "memkb distances pnode vcpus",
    "b_info/sched_params": "sched weight cap period budget extratime slice latency",
    "b_info/ioports": "first number",
    "b_info/iomem": "start number gfn",
    "b_info/cpuid": "leaf subleaf eax ebx ecx edx cpuid msr",  # a list before 4.19
    "b_info/cpuid/cpuid": "leaf subleaf eax ebx ecx edx",
    "b_info/cpuid/msr": "index policy",
    "b_info/arch_arm": "gic_version vuart sve_vl nr_spis arm_sci",
    "b_info/arch_arm/arm_sci": "type",
    "b_info/arch_x86": "msr_relaxed",
    "b_info/type.hvm": """firmware bios pae apic acpi acpi_s3 acpi_s4 acpi_laptop_slate nx viridian
        viridian_enable viridian_disable timeoffset hpet vpt_align mmio_hole_memkb timer_mode
        nested_hvm altp2m system_firmware smbios_firmware smbios acpi_firmware hdtype nographic vga
        vnc keymap sdl spice gfx_passthru gfx_passthru_kind serial boot usb usbversion usbdevice
        vkb_device soundhw xen_platform_pci xen_platform_pci_bar_uc usbdevice_list vendor_device
        ms_vm_genid serial_list rdm rdm_mem_boundary_memkb mca_caps pirq""",
    "b_info/type.hvm/vga": "kind",
    "b_info/type.hvm/rdm": "strategy policy",
    "b_info/type.hvm/smbios": "key value",
    "b_info/type.pv": "kernel slack_memkb bootloader cmdline ramdisk features e820_host",
    "b_info/type.pvh": "pvshim pvshim_path pvshim_cmdline pvshim_extra",
    "disks": """backend_domid backend_domname pdev_path vdev backend format script removable
        readwrite is_cdrom direct_io_safe discard_enable specification transport irq base
        colo_enable colo_restore_enable trusted grant_usage""",
    "nics": """backend_domid backend_domname devid mtu vlan model mac ip bridge ifname script
        nictype rate_bytes_per_interval rate_interval_usecs gatewaydev trusted""",
    "pcidevs": """func dev bus domain vdevfn vfunc_mask msitranslate power_mgmt permissive seize
        rdm_policy name""",
    "rdms": "start size policy",
    "dtdevs": "path",
    "vfbs": "backend_domid backend_domname devid vnc sdl keymap",
    "vkbs": """backend_domid backend_domname devid backend_type unique_id feature_disable_keyboard
        feature_disable_pointer feature_abs_pointer feature_raw_pointer feature_multi_touch width
        height multi_touch_width multi_touch_height multi_touch_num_contacts""",
    "vtpms": "backend_domid backend_domname devid uuid",
    "p9s": """backend_domid backend_domname tag path security_model devid type max_space max_files
        max_open_files auto_delete""",
    "channels": """backend_domid backend_domname devid name connection connection.pty
        connection.socket""",
    "channels/connection.socket": "path",
    "usbctrls": "type devid version ports backend_domid backend_domname",
    "usbdevs": "ctrl port type type.hostdev",
    "usbdevs/type.hostdev": "hostbus hostaddr",
    **{
        f"{section}/{display}": words
        for section in ("b_info/type.hvm", "vfbs")
        for display, words in {
            "vnc": "enable listen passwd display findunused",
            "sdl": "enable opengl display xauthority",
        }.items()
    },
    "b_info/type.hvm/spice": """enable port tls_port host disable_ticketing passwd agent_mouse
        vdagent clipboard_sharing usbredirection image_compression streaming_video""",
}
_KNOWN = _paths(_KNOWN_BY_SECTION)

# What libxl reads as a libxl_defbool, by how the text begins: so only whole texts are taken.
_SWITCHED = "True|False|<default>"
_SWITCHES_BY_SECTION: Mapping[str, str] = {
    "c_info": "hap oos run_hotplug_scripts driver_domain xend_suspend_evtchn_compat",
    "b_info": """numa_placement localtime disable_migrate device_model_stubdomain claim_mode acpi
        nested_hvm apic dm_restrict bootloader_restrict vpmu trap_unmapped_accesses""",
    "b_info/arch_x86": "msr_relaxed",
    "b_info/type.hvm": """pae apic acpi acpi_s3 acpi_s4 acpi_laptop_slate nx viridian hpet vpt_align
        nested_hvm altp2m nographic gfx_passthru usb vkb_device xen_platform_pci
        xen_platform_pci_bar_uc pirq""",
    "b_info/type.hvm/spice": "enable disable_ticketing agent_mouse vdagent clipboard_sharing",
    "b_info/type.pv": "e820_host",
    "b_info/type.pvh": "pvshim",
    "disks": "discard_enable colo_enable colo_restore_enable trusted grant_usage",
    "nics": "trusted",
    **{
        f"{section}/{display}": words
        for section in ("b_info/type.hvm", "vfbs")
        for display, words in {"vnc": "enable findunused", "sdl": "enable opengl"}.items()
    },
}
_SWITCHES = _paths(_SWITCHES_BY_SECTION)

# Text that means nothing to the host, whatever it is: an argument of its own, or the guest's.
_FREE_TEXT = frozenset(
    {
        *("b_info/cmdline", "b_info/type.pv/cmdline", "b_info/stubdomain_cmdline"),
        *("b_info/type.pvh/pvshim_cmdline", "b_info/type.pvh/pvshim_extra"),
        *("b_info/type.hvm/smbios/value", "b_info/type.hvm/vnc/passwd", "vfbs/vnc/passwd"),
    }
)
_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # a NUL would end it for libxl
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
_MOST_DEVICES = 1024  # or of anything else in one list
_MOST_VALUES = 1 << 15  # a map of 180 processors for each of them
_MOST_PARTS = 4096

_LABELS: Mapping[str, str] = {
    "disks": "block/{vdev}",
    "nics": "net/vif{devid}",
    "vtpms": "tpm/vtpm{number}",
    "usbdevs": "usb/usb{number}",
    "pcidevs": "pci/pci{number}",
}
"""As ``configuration.read_domain`` calls them."""


def host_parts(config: Config) -> list[HostPart]:
    """What a configuration names of the host that the domain is to run on.

    Raises:
        HypervisorError: It is larger, or deeper, than libxl's.
    """
    found: list[HostPart] = []
    try:
        if _size(config) > _MOST_VALUES:
            raise HypervisorError(f"xl's configuration has more than {_MOST_VALUES} values")
        for part in _walk(At(config, "", "", "domain")):
            found.append(part)
            if len(found) > _MOST_PARTS:
                raise HypervisorError(
                    f"xl's configuration names more than {_MOST_PARTS} things of the host"
                )
    except RecursionError as error:
        raise HypervisorError("xl's configuration has no end of lists in lists") from error
    return found


def _size(value: Any) -> int:
    """How many values there are in one, itself among them."""
    if isinstance(value, dict):
        return 1 + sum(map(_size, cast("Config", value).values()))
    if isinstance(value, list):
        return 1 + sum(map(_size, cast("list[Any]", value)))
    return 1


def _walk(at: At) -> Parts:
    match at.value:
        case dict():
            yield from _of_object(at)
        case list():
            yield from _of_list(at)
        case bool() | int() | str() | None:
            yield from _ruled(_of_value, at)
        case _:
            yield at.part(
                Kind.MALFORMED, f"{at.place} in xl's configuration is of no kind of libxl's"
            )


def _ruled(rule: Callable[[At], Parts], at: At) -> Parts:
    """By a rule; what that does not understand is a part as well, of its device."""
    try:
        yield from rule(at)
    except HypervisorError as error:
        yield at.part(Kind.MALFORMED, error.message)


def _of_list(at: At) -> Parts:
    values: list[Any] = at.value
    if len(values) > _MOST_DEVICES:
        raise HypervisorError(f"xl's configuration has {len(values)} of {at.path}")
    for number, value in enumerate(values):
        label = at.label
        if isinstance(value, dict) and at.path in _LABELS:
            label = _label(at.path, number, cast("Config", value))
        yield from _walk(At(value, at.path, f"{at.place}[{number + 1}]", label))


def _of_object(at: At) -> Parts:
    keys: Config = at.value
    for key, value in keys.items():
        path = f"{at.path}/{key}" if at.path else key
        place = f"{at.place}/{key}" if at.place else key
        if path in _KNOWN:
            yield from _walk(At(value, path, place, at.label))
        elif not _is_empty(value):
            yield At(value, path, place, at.label).other(f"xen:{path}")
    if rule := RULES.get(at.path):
        yield from _ruled(rule, at)


def _of_value(at: At) -> Parts:
    if isinstance(at.value, int) and not _LEAST <= at.value <= _MOST:
        raise HypervisorError(f"{at.place} in xl's configuration is no number of libxl's")
    if isinstance(at.value, str) and _NOT_TEXT.search(at.value):
        raise HypervisorError(f"{at.place} in xl's configuration has control characters")
    if _is_empty(at.value):
        return
    if at.path in _SWITCHES:
        shaped(at, _SWITCHED)
        if at.value == "<default>":
            return
    if rule := VALUES.get(at.path):
        yield from rule(at)
    elif at.path not in _FREE_TEXT | _SWITCHES and isinstance(at.value, str):
        shaped(at, WORD)


def _is_empty(value: Any) -> bool:
    """Whether it says no more than if it were not there."""
    if isinstance(value, dict):
        return all(map(_is_empty, cast("Config", value).values()))
    if isinstance(value, list):
        return all(map(_is_empty, cast("list[Any]", value)))
    return value is None or value == ""


def _label(section: str, number: int, device: Config) -> str:
    known = {"number": number, "vdev": device.get("vdev"), "devid": device.get("devid", number)}
    return _LABELS[section].format(**known)
