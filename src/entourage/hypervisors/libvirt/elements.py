"""The elements of a domain's XML that are known here: what becomes of each is in docs/libvirt.md.

They are those of libvirt's own schema up to 11.x, in so far as QEMU knows of them. Of one that is
not among them nobody here can say what becomes of it on the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.etree import ElementTree as ET

# Each element and those that may be in it.
_TEXT = """
domain: blkiotune clock cpu cputune currentMemory defaultiothread description devices features
    genid iothreadids iothreads keywrap launchSecurity maxMemory memory memoryBacking memtune
    metadata name numatune on_crash on_lockfailure on_poweroff on_reboot os perf pm resource
    seclabel sysinfo throttlegroups title uuid vcpu vcpus
blkiotune: device weight
blkiotune/device: path read_bytes_sec read_iops_sec weight write_bytes_sec write_iops_sec
clock: timer
clock/timer: catchup
cpu: cache deprecated_features feature maxphysaddr model numa topology vendor
cpu/numa: cell interconnects
cpu/numa/cell: cache distances
cpu/numa/cell/cache: line size
cpu/numa/cell/distances: sibling
cpu/numa/interconnects: bandwidth latency
cputune: cachetune emulator_period emulator_quota emulatorpin emulatorsched global_period
    global_quota iothread_period iothread_quota iothreadpin iothreadsched memorytune period
    quota shares vcpupin vcpusched
cputune/cachetune: cache monitor
cputune/memorytune: monitor node
defaultiothread: poll
devices: audio channel console controller crypto disk emulator filesystem graphics hostdev hub
    input interface iommu lease memballoon memory nvram panic parallel pstore redirdev
    redirfilter rng serial shmem smartcard sound tpm video vsock watchdog
devices/audio: input output
devices/audio/input: settings
devices/audio/output: settings
devices/channel: log protocol source target
devices/channel/source: clipboard mouse reconnect seclabel
devices/channel/source/seclabel: label
devices/console: log protocol source target
devices/console/source: clipboard mouse reconnect seclabel
devices/console/source/seclabel: label
devices/console/target: model
devices/controller: driver master model pcihole64 target
devices/controller/driver: iothreads
devices/controller/driver/iothreads: iothread
devices/controller/target: node
devices/crypto: backend driver
devices/disk: auth backingStore blockio driver encryption geometry iotune mirror product
    readonly serial shareable source target throttlefilters transient vendor wwn
devices/disk/auth: secret
devices/disk/backingStore: backingStore format source
devices/disk/backingStore/format: metadata_cache
devices/disk/backingStore/format/metadata_cache: max_size
devices/disk/driver: iothreads metadata_cache statistics
devices/disk/driver/iothreads: iothread
devices/disk/driver/iothreads/iothread: queue
devices/disk/driver/metadata_cache: max_size
devices/disk/driver/statistics: statistic
devices/disk/encryption: cipher ivgen secret
devices/disk/iotune: group_name read_bytes_sec read_bytes_sec_max read_bytes_sec_max_length
    read_iops_sec read_iops_sec_max read_iops_sec_max_length size_iops_sec total_bytes_sec
    total_bytes_sec_max total_bytes_sec_max_length total_iops_sec total_iops_sec_max
    total_iops_sec_max_length write_bytes_sec write_bytes_sec_max write_bytes_sec_max_length
    write_iops_sec write_iops_sec_max write_iops_sec_max_length
devices/disk/source: address auth config cookies dataStore encryption fuse host identity
    initiator knownHosts readahead reconnect reservations seclabel slices snapshot ssh ssl
    timeout
devices/disk/source/auth: secret
devices/disk/source/cookies: cookie
devices/disk/source/encryption: cipher ivgen secret
devices/disk/source/initiator: iqn
devices/disk/source/reservations: source
devices/disk/source/reservations/source: reconnect
devices/disk/source/seclabel: label
devices/disk/source/slices: slice
devices/disk/throttlefilters: throttlefilter
devices/filesystem: binary driver idmap readonly source space_hard_limit space_soft_limit target
devices/filesystem/binary: cache lock openfiles sandbox thread_pool
devices/filesystem/idmap: gid uid
devices/graphics: audio channel clipboard filetransfer gl image jpeg listen mouse playback
    streaming zlib
devices/hostdev: driver ip origstates readonly rom route shareable source teaming
devices/hostdev/origstates: removeslot reprobe unbind
devices/hostdev/source: adapter address auth block char host initiator interface product vendor
devices/hostdev/source/adapter: parentaddr
devices/hostdev/source/adapter/parentaddr: address
devices/hostdev/source/auth: secret
devices/hostdev/source/initiator: iqn
devices/input: driver source
devices/interface: backend bandwidth coalesce downscript driver filterref guest ip link mac
    model mtu port portForward rom route script source target teaming tune virtualport vlan
devices/interface/bandwidth: inbound outbound
devices/interface/coalesce: rx
devices/interface/coalesce/rx: frames
devices/interface/driver: guest host
devices/interface/filterref: parameter
devices/interface/portForward: range
devices/interface/source: address dev ip local product reconnect route vendor vhost
devices/interface/tune: sndbuf
devices/interface/virtualport: parameters
devices/interface/vlan: tag
devices/iommu: driver
devices/lease: key lockspace target
devices/memballoon: driver stats
devices/memory: source target uuid
devices/memory/source: alignsize nodemask pagesize path pmem
devices/memory/target: address block current label node readonly requested size
devices/memory/target/label: size
devices/parallel: log protocol source target
devices/parallel/source: clipboard mouse reconnect seclabel
devices/parallel/source/seclabel: label
devices/parallel/target: model
devices/pstore: path size
devices/redirdev: log protocol source
devices/redirdev/source: clipboard mouse reconnect seclabel
devices/redirdev/source/seclabel: label
devices/redirfilter: usbdev
devices/rng: backend driver rate
devices/rng/backend: log protocol source
devices/rng/backend/source: clipboard mouse reconnect seclabel
devices/rng/backend/source/seclabel: label
devices/serial: log protocol source target
devices/serial/source: clipboard mouse reconnect seclabel
devices/serial/source/seclabel: label
devices/serial/target: model
devices/shmem: model msi server size
devices/smartcard: certificate database log protocol source target
devices/smartcard/source: clipboard mouse reconnect seclabel
devices/smartcard/source/seclabel: label
devices/smartcard/target: model
devices/sound: audio codec driver
devices/tpm: backend
devices/tpm/backend: active_pcr_banks device encryption profile source
devices/tpm/backend/active_pcr_banks: sha1 sha256 sha384 sha512
devices/video: driver model
devices/video/model: acceleration resolution
devices/vsock: cid driver
features: acpi aia apic async-teardown ccf-assist cfpc gic hpt htm hyperv ibs ioapic kvm msrs
    nested-hv pae pmu ps2 pvspinlock ras sbbc smm tcg vmcoreinfo vmport
features/hpt: maxpagesize
features/hyperv: avic emsr_bitmap evmcs frequencies ipi reenlightenment relaxed reset runtime
    spinlocks stimer synic tlbflush vapic vendor_id vpindex xmm_input
features/hyperv/stimer: direct
features/hyperv/tlbflush: direct extended
features/kvm: dirty-ring hidden hint-dedicated poll-control pv-ipi
features/smm: tseg
features/tcg: tb-cache
iothreadids: iothread
iothreadids/iothread: poll
keywrap: cipher
launchSecurity: cbitpos dhCert guestVisibleWorkarounds handle hostData idAuth idBlock mrConfigId
    mrOwner mrOwnerConfig policy quoteGenerationService reducedPhysBits session
memoryBacking: access allocation discard hugepages locked nosharepages source
memoryBacking/hugepages: page
memtune: hard_limit min_guarantee soft_limit swap_hard_limit
numatune: memnode memory
os: acpi bios boot bootmenu cmdline dtb firmware initrd kernel loader nvram shim smbios type
    varstore
os/acpi: table
os/firmware: feature
os/nvram: source
os/nvram/source: address auth config cookies host identity initiator readahead reconnect
    snapshot ssl timeout
os/nvram/source/auth: secret
os/nvram/source/cookies: cookie
os/nvram/source/initiator: iqn
perf: event
pm: suspend-to-disk suspend-to-mem
resource: appid partition
seclabel: baselabel imagelabel label
sysinfo: baseBoard bios chassis entry oemStrings system
sysinfo/baseBoard: entry
sysinfo/bios: entry
sysinfo/chassis: entry
sysinfo/oemStrings: entry
sysinfo/system: entry
throttlegroups: throttlegroup
throttlegroups/throttlegroup: group_name read_bytes_sec read_bytes_sec_max
    read_bytes_sec_max_length read_iops_sec read_iops_sec_max read_iops_sec_max_length
    size_iops_sec total_bytes_sec total_bytes_sec_max total_bytes_sec_max_length total_iops_sec
    total_iops_sec_max total_iops_sec_max_length write_bytes_sec write_bytes_sec_max
    write_bytes_sec_max_length write_iops_sec write_iops_sec_max write_iops_sec_max_length
vcpus: vcpu
"""
# In every device, and in each of its addresses.
_IN_ANY_DEVICE = frozenset({"acpi", "address", "alias", "boot"})
_IN_ANY_ADDRESS = frozenset({"zpci"})
# Images that a disk is built on, or is copied to, are described as the disk is.
_IMAGES = frozenset({"backingStore", "dataStore", "mirror"})
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def _read(text: str) -> Mapping[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for line in text.strip().replace("\n    ", " ").splitlines():
        path, _, children = line.partition(": ")
        found[path] = frozenset(children.split())
    return found


KNOWN = _read(_TEXT)


def unknown_elements(root: ET.Element) -> Iterator[str]:
    """The elements of a domain that are not known here, each by where it is.

    What its user has written into its metadata is libvirt's to keep, and what is passed on to QEMU
    must be allowed by the target.
    """
    yield from _unknown(root, "domain", "")


def _unknown(element: ET.Element, path: str, place: str) -> Iterator[str]:
    known = KNOWN.get(path, frozenset[str]())
    if path.startswith("devices/") and path.count("/") == 1:
        known |= _IN_ANY_DEVICE
    elif path.endswith("/address"):
        known |= _IN_ANY_ADDRESS
    for child in element:
        tag = str(child.tag)
        if tag.startswith(_QEMU) or (path == "domain" and tag == "metadata"):
            continue
        where = f"{place}/{tag}" if place else tag
        if tag not in known:
            yield where
        elif tag in _IMAGES:
            yield from _unknown(child, "devices/disk/backingStore", where)
        elif path == "devices/disk/backingStore" and tag == "source":
            yield from _unknown(child, "devices/disk/source", where)
        else:
            yield from _unknown(child, tag if path == "domain" else f"{path}/{tag}", where)
