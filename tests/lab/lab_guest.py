"""Guests: their XML, their start, and a shell in them over the serial console."""

import hashlib
import os
import re
import select
import termios
import time
import tty
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

import lab_image
from lab_base import LabError, wait_until

if TYPE_CHECKING:
    from banana_lab import Lab

SPARE_PORTS = 4  # for NICs that are plugged in later
# QEMU before 9.0, emulating, loses writes of a guest that is being migrated: where a guest's memory is whole words of
# the dirty bitmap, cpu_physical_memory_sync_dirty_bitmap() clears their bits but leaves the TLB as it is, by which the
# guest then writes on unseen. Its kernel panics or hangs at the destination. Memory of another size goes by a path that
# resets the TLB; it halts QEMU for 3 us a page when a migration begins. libvirt rounds memory to MiB.
ODD_PAGES = 2
# For the kernel. Emulated, it starts in three quarters of the time without what patches its own code or nobody uses here.
BOOT_SOONER = "nokaslr noreplace-smp audit=0 apparmor=0 selinux=0 cryptomgr.notests random.trust_cpu=on"


@dataclass(frozen=True)
class Nic:
    """One of `network` (libvirt's name of it), `bridge` or `direct` (a netdev, macvtap passthrough)."""

    network: str = ""
    bridge: str = ""
    direct: str = ""
    address: str = ""  # A.B.C.D/P that the guest gives itself
    mac: str = ""      # made from the guest's name if empty
    mtu: int = 0       # 0: the network's
    wire: str = ""     # Banana's metadata: auto, native, vxlan, dtls


@dataclass(frozen=True)
class Vm:
    name: str
    nics: list[Nic] = field(default_factory=list)
    memory: int = 96  # MiB
    timed: bool = False  # its migrations are: no ODD_PAGES
    accelerator: str = "qemu"  # "kvm" by explicit choice only
    spare_addresses: tuple[str, ...] = ()  # for NICs plugged in later: eth1's, ... after those of `nics`


def mac_of(name: str, index: int) -> str:
    digest = hashlib.sha256(f"{name}/{index}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def nic_xml(vm_name: str, nic: Nic, index: int) -> str:
    """An <interface>, for a domain or for virsh attach-device."""
    if nic.network:
        kind, source = "network", f"<source network={quoteattr(nic.network)}/>"
    elif nic.bridge:
        kind, source = "bridge", f"<source bridge={quoteattr(nic.bridge)}/>"
    elif nic.direct:
        kind, source = "direct", f"<source dev={quoteattr(nic.direct)} mode='passthrough'/>"
    else:
        raise LabError(f"NIC {index} of {vm_name} is connected to nothing: name a network, a bridge or a netdev")
    mtu = f"<mtu size='{nic.mtu}'/>" if nic.mtu else ""
    return (f"<interface type='{kind}'><mac address='{nic.mac or mac_of(vm_name, index)}'/>{source}"
            f"<model type='virtio'/>{mtu}<rom enabled='no'/><alias name='ua-net{index}'/></interface>")


def network_xml(name: str, bridge: str, mtu: int | None) -> str:
    size = f"<mtu size='{mtu}'/>" if mtu else ""
    return (f"<network><name>{escape(name)}</name><forward mode='bridge'/><bridge name={quoteattr(bridge)}/>{size}"
            "</network>")


def domain_xml(vm: Vm, image: lab_image.Image) -> str:
    addresses = [nic.address for nic in vm.nics] + list(vm.spare_addresses)
    words = [f"banana.name={vm.name}"]
    words += [f"banana.ip{index or ''}={address}" for index, address in enumerate(addresses) if address]
    spikes = "".join(f"<banana:spike interface='net{index}' wire={quoteattr(nic.wire)}/>"
                     for index, nic in enumerate(vm.nics) if nic.wire)
    metadata = f"<metadata><banana:domain xmlns:banana='urn:banana:1'>{spikes}</banana:domain></metadata>"
    ports = "<controller type='pci' model='pcie-root-port'/>" * (len(vm.nics) + SPARE_PORTS)
    nics = "".join(nic_xml(vm.name, nic, index) for index, nic in enumerate(vm.nics))
    odd = vm.accelerator == "qemu" and not vm.timed
    return f"""\
<domain type='{vm.accelerator}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{escape(vm.name)}</name>
  <uuid>{uuid.uuid5(uuid.NAMESPACE_DNS, f'{vm.name}.banana-lab')}</uuid>
  {metadata if spikes else ''}
  <memory unit='MiB'>{vm.memory}</memory>
  <vcpu>1</vcpu>
  <cpu mode='maximum' migratable='off'/>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{image.kernel}</kernel>
    <initrd>{image.initramfs}</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 {BOOT_SOONER} {escape(' '.join(words))}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <clock offset='utc'/>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <controller type='pci' model='pcie-root'/>
    {ports}
    {nics}
    <serial type='pty'>
      <log file='{serial_log(vm.name)}' append='off'/>
      <target type='isa-serial' port='0'><model name='isa-serial'/></target>
    </serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <memballoon model='none'/>
  </devices>
  {odd_memory(vm.memory) if odd else ''}
</domain>
"""


def odd_memory(size: int) -> str:
    """For QEMU, on top of what libvirt tells it; size in MiB."""
    kibibytes = size * 1024 + ODD_PAGES * 4
    words = ("-object", f"memory-backend-ram,id=odd.ram,size={kibibytes}k", "-machine", "memory-backend=odd.ram", "-m",
             f"size={kibibytes}k")
    return f"<qemu:commandline>{''.join(f'<qemu:arg value={quoteattr(word)}/>' for word in words)}</qemu:commandline>"


def serial_log(name: str) -> str:
    return f"/var/log/libvirt/qemu/{name}-serial.log"


def serial_output(lab: "Lab", name: str, host: str) -> str:
    """What the guest has printed since it came to this host."""
    path = lab.host(host).root / serial_log(name).lstrip("/")
    return path.read_text(errors="replace") if path.exists() else ""


class GuestPanic(LabError):
    """The guest's own kernel gave up, or hangs."""


def has_panicked(lab: "Lab", name: str) -> bool:
    return any("Kernel panic" in serial_output(lab, name, host.name) for host in lab.hypervisors)


def must_answer(lab: "Lab", name: str) -> None:
    """On its console: whoever does not answer there is no matter of networks."""
    try:
        shell(lab, name, "true", 10, True)
    except GuestPanic:
        raise
    except LabError as error:
        raise GuestPanic(f"the console of guest {name} does not answer: {error}") from error


def forget_consoles(lab: "Lab", name: str) -> None:
    """A guest's next end is not to be taken for its last."""
    for host in lab.hypervisors:
        (host.root / serial_log(name).lstrip("/")).unlink(missing_ok=True)


def last_words(lab: "Lab", name: str, host: str, lines: int = 40) -> str:
    """What a host knows of a guest that should run: its state and why, and the ends of QEMU's log and the console's."""
    logs = [lab.host(host).root / path.lstrip("/") for path in (f"/var/log/libvirt/qemu/{name}.log", serial_log(name))]
    found = lab.exec(host, "virsh", "-q", "domstate", "--reason", name, check=False)
    ends = [f"{path}:\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for path in logs if path.exists()]
    return "\n".join([f"{host}: {(found.stdout or found.stderr).strip()}", *ends])


def start(lab: "Lab", vm: Vm, host: str, timeout: float) -> None:
    define(lab, domain_xml(vm, lab_image.build()), host)
    lab.virsh(host, "start", vm.name)
    wait_ready(lab, vm.name, host, timeout)


def define(lab: "Lab", xml: str, host: str) -> None:
    kernel = lab_image.build().kernel
    if not (lab.host(host).root / str(kernel).lstrip("/")).exists():
        raise LabError(f"{kernel} is not visible on {host}: BANANA_CACHE must not lie in /run, /etc or /var/lib")
    lab.exec(host, "virsh", "-q", "define", "/dev/stdin", stdin=xml)


def wait_ready(lab: "Lab", name: str, host: str, timeout: float = 180) -> None:
    """Until a guest that was started says that it is ready; LabError if it ends instead."""
    ready = f"BANANA-GUEST READY {name}"

    def ready_or_gone() -> bool:
        if ready in serial_output(lab, name, host):
            return True
        state = lab.virsh(host, "domstate", name).strip()
        if state != "running":
            raise LabError(f"guest {name} on {host} is {state}; its console:\n{serial_output(lab, name, host)}")
        return False

    wait_until(ready_or_gone, timeout, f"guest {name} on {host} to be ready (see {serial_log(name)} there)", 0.1)


def shell(lab: "Lab", name: str, command: str, timeout: float, check: bool) -> str:
    host = lab.find_vm(name)
    device = lab.virsh(host, "ttyconsole", name).strip()
    # Markers that the console's echo of our own line does not have.
    line = f"printf '@@%s\\n' begin; {{ {command}; }} 2>&1; printf '@@%s %s\\n' end $?\n"
    console = os.open(lab.host(host).root / device.lstrip("/"), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        tty.setraw(console, termios.TCSANOW)
        os.write(console, line.encode())
        output, deadline = "", time.monotonic() + timeout
        while not (found := re.search(r"@@begin\r*\n(.*?)@@end (\d+)\r*\n", output, re.DOTALL)):
            if time.monotonic() > deadline:
                raise LabError(f"guest {name} on {host} did not finish within {timeout:.0f} s: {command}: {output}")
            if select.select([console], [], [], 0.1)[0]:
                output += os.read(console, 65536).decode(errors="replace")
    finally:
        os.close(console)
    text = found.group(1).replace("\r", "")
    if check and found.group(2) != "0":
        raise LabError(f"in guest {name} on {host}: status {found.group(2)}: {command}: {text.strip()}")
    return text
