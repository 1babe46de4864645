"""What the lab's tests of the product share: one lab for a class, and questions asked of it.

    class Life(LabCase):
        corms = {"lab": ("--uplink", "eth1")}

        def test_start(self) -> None:
            self.start(Vm("vm1", [Nic(network="banana-lab", address="10.77.0.10/24")]))
            self.reach("10.77.0.10")

Everything that a test makes goes with the test; a lab goes with its class, or with the program. Waits are for a
condition, with deadlines that a loaded machine keeps.
"""

import json
import os
import re
import signal
import sys
import unittest
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import lab_guest
import lab_hosts
import lab_image
from banana_lab import EXT, Lab, LabError, Process, Vm, lab_name, wait_until
from lab_base import namespaced_pid

PATIENCE = 60.0  # for what takes a second on an idle machine
OWN_DEVICE = re.compile(r"bn[a-z][0-9a-f]{8}")
# Stay as long as a Corm does: its bridge, and what is in that for headroom; as an adopted netdev: its stage, likewise.
LASTING_DEVICES = ("bnb", "bnh", "bns", "bng")
ENDPOINT = "bne"
SPIKE_ATTRIBUTES = ("interface", "name", "home", "corm", "epoch", "uuid", "mac")


class LabCase(unittest.TestCase):
    hosts = 2
    corms: dict[str, tuple[str, ...]] = {}  # made on hv1 for all tests of the class
    lab: Lab

    # ---- life ----------------------------------------------------------------------------------------------------

    @classmethod
    def setUpClass(cls) -> None:
        cls.lab = Lab(cls.hosts, name=f"{lab_name()[:12]}-{cls.__name__[:12]}{os.getpid()}")
        cls.addClassCleanup(cls.lab.down)
        cls.lab.up()
        for host in cls.lab.hypervisors:
            wait_until(lambda name=host.name: cls.is_whole(name), PATIENCE, f"peers and libvirt of {host.name}")
        for name, words in cls.corms.items():
            cls.banana("hv1", "corm", "create", name, *words)
            cls.await_network(name)

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        """A failure shows what the daemons said."""
        before = _bad(result)
        logs = [host.root / lab_hosts.BANANAD_LOG.lstrip("/") for host in self.lab.hypervisors]
        sizes = [log.stat().st_size for log in logs]
        done = super().run(result)
        if _bad(result) > before:
            for host, log, size in zip(self.lab.hypervisors, logs, sizes):
                lines = log.read_bytes()[size:].decode(errors="replace").splitlines()
                print(f"--- bananad on {host.name} during {self.id()}:", *lines[-30:], sep="\n", file=sys.stderr)
        return done

    @classmethod
    def is_whole(cls, host: str) -> bool:
        status = cls.banana(host, "status")
        peers = [peer["state"] for peer in status["peers"]]
        return len(peers) == cls.hosts - 1 and set(peers) <= {"up"} and status["libvirt"]["state"] == "connected"

    # ---- the product ---------------------------------------------------------------------------------------------

    @classmethod
    def banana(cls, host: str, *words: object) -> Any:
        return json.loads(cls.lab.exec(host, "banana", *words, "--json").stdout or "null")

    def refused(self, host: str, *words: object) -> str:
        """What a command says that must fail."""
        done = self.lab.exec(host, *words, check=False)
        self.assertNotEqual(done.returncode, 0, f"{host}: {' '.join(map(str, words))} was not refused: {done.stdout}")
        return done.stderr

    @classmethod
    def await_network(cls, corm: str) -> None:
        for host in cls.lab.hypervisors:
            wait_until(lambda name=host.name: f"banana-{corm}" in cls.lab.virsh(name, "net-list", "--name").split(),
                       PATIENCE, f"network banana-{corm} on {host.name}")

    def spike(self, host: str, name: str) -> dict[str, Any] | None:
        return next((one for one in self.banana(host, "spike", "list")["spikes"] if one["name"] == name), None)

    def await_spike(self, host: str, name: str, state: str = "wired") -> dict[str, Any]:
        return wait_until(lambda: next((one for one in [self.spike(host, name)] if one and one["state"] == state),
                                       None), PATIENCE, f"Spike {name} to be {state} on {host}")

    def wires(self, host: str, name: str) -> list[dict[str, Any]]:
        return [one for one in self.banana(host, "wire", "list")["wires"] if one["name"] == name]

    def own_devices(self, host: str) -> list[str]:
        """Banana's devices on a host, but those that stay as long as the Corm or the endpoint does."""
        links = json.loads(self.lab.exec(host, "ip", "-j", "link").stdout)
        return sorted(link["ifname"] for link in links
                      if OWN_DEVICE.fullmatch(link["ifname"]) and not link["ifname"].startswith(LASTING_DEVICES))

    def await_nothing_left(self, *names: str) -> None:
        """No host has a Spike or a wire of these names, nor any device of a wire."""
        for host in self.lab.hypervisors:
            wait_until(lambda at=host.name: not any(self.spike(at, name) or self.wires(at, name) for name in names),
                       PATIENCE, f"{', '.join(names)} to be gone from {host.name}")
            self.await_no_devices(host.name)

    def await_no_devices(self, host: str) -> None:
        try:
            wait_until(lambda: not self.own_devices(host), PATIENCE, "")
        except LabError:
            self.fail(f"left on {host}: {', '.join(self.own_devices(host))}")

    # ---- guests --------------------------------------------------------------------------------------------------

    def define(self, vm: Vm, host: str = "hv1", edit: Callable[[str], str] = lambda xml: xml) -> None:
        lab_guest.define(self.lab, edit(lab_guest.domain_xml(vm, lab_image.build())), host)
        self.addCleanup(self.remove, vm.name)

    def start(self, vm: Vm, host: str = "hv1", edit: Callable[[str], str] = lambda xml: xml) -> None:
        """Cold plug: defined, started, ready."""
        self.define(vm, host, edit)
        self.lab.virsh(host, "start", vm.name)
        lab_guest.wait_ready(self.lab, vm.name, host)

    def remove(self, *names: str) -> None:
        for host in self.lab.hypervisors:
            for name in names:
                self.lab.exec(host.name, "virsh", "destroy", name, check=False)
                self.lab.exec(host.name, "virsh", "undefine", name, "--managed-save", check=False)

    def qemu(self, host: str, name: str) -> int:
        """The guest's process, as seen from outside the lab."""
        inside = int((self.lab.host(host).root / f"run/libvirt/qemu/{name}.pid").read_text())
        return next(pid for pid in self.lab.pids(host, "qemu-system-x86_64") if namespaced_pid(pid) == inside)

    def kill_qemu(self, host: str, name: str) -> None:
        pid = self.qemu(host, name)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pid not in self.lab.pids(host, "qemu-system-x86_64"), PATIENCE, f"the end of {name}'s QEMU")

    def state(self, host: str, name: str) -> str:
        return self.lab.virsh(host, "domstate", name).strip()

    def metadata(self, host: str, name: str, *options: str) -> list[dict[str, str]]:
        """Banana's hints in a domain's XML."""
        root = ElementTree.fromstring(self.lab.virsh(host, "dumpxml", *options, name))
        return [dict(spike.attrib) for spike in root.iterfind("metadata/{urn:banana:1}domain/{urn:banana:1}spike")]

    def await_metadata(self, host: str, domain: str, /, *options: str, **values: str) -> dict[str, str]:
        """Until the first Spike's hints are all there, with these values."""
        def complete() -> dict[str, str] | None:
            hints = (self.metadata(host, domain, *options) or [{}])[0]
            whole = all(hints.get(key) for key in SPIKE_ATTRIBUTES)
            return hints if whole and all(hints[key] == value for key, value in values.items()) else None

        try:
            return wait_until(complete, PATIENCE, "")
        except LabError:
            self.fail(f"metadata of {domain} on {host} ({' '.join(options) or 'live'}), {values} wanted: "
                      f"{self.metadata(host, domain, *options)}")

    def tap(self, host: str, name: str) -> str:
        """The guest's first interface, as `virsh domiflist` has it."""
        return self.lab.virsh(host, "domiflist", name).split()[0]

    # ---- traffic -------------------------------------------------------------------------------------------------

    def answers(self, address: str, host: str = EXT, size: int = 100, count: int = 1, timeout: float = 2,
                space: str = "") -> bool:
        """Whether UDP packets of this size, that may not be cut, all come back. `space`: from a Box of the host."""
        inside = ("ip", "netns", "exec", space) if space else ()
        return self.lab.exec(host, *inside, "traffic", "df", "--peer", address, "--size", size, "--count", count,
                             "--timeout", timeout, check=False).returncode == 0

    def reach(self, address: str, host: str = EXT, size: int = 100, space: str = "") -> None:
        wait_until(lambda: self.answers(address, host, size, space=space), PATIENCE,
                   f"{address} to answer {space or host} with packets of {size} B")

    def reach_whole(self, address: str, host: str = EXT, size: int = 1500, space: str = "") -> None:
        """Full-size frames, DF set; many of them, as some may pass by luck of a fragment's path."""
        self.reach(address, host, space=space)
        self.assertTrue(self.answers(address, host, size, count=50, timeout=20, space=space),
                        f"packets of {size} B, not to be cut, do not all come back from {address}")

    def unreachable(self, address: str, host: str = EXT, space: str = "") -> None:
        self.assertFalse(self.answers(address, host, count=2, timeout=1, space=space), f"{address} answers {host}")


class Box:
    """A network namespace within a host, joined to it by a veth `name`; `traffic serve` runs in it."""

    def __init__(self, case: LabCase, host: str, name: str, address: str, mtu: int = 1500) -> None:
        self.name, self.host, self.address = name, host, address.partition("/")[0]
        case.lab.exec(host, "ip", "-batch", "-", stdin=f"""\
netns add {name}
link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}
link set {name} up
""")
        case.addCleanup(case.lab.exec, host, "sh", "-c", f"ip link del {name}; ip netns del {name}")
        case.lab.exec(host, "ip", "netns", "exec", name, "sh", "-c",
                      "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up;"
                      f"ip address add {address} dev eth0; ip link set eth0 up")
        self._serve: Process = case.lab.spawn(host, "ip", "netns", "exec", name, "traffic", "serve")
        case.addCleanup(self._serve.kill)
        self._serve.expect("LISTENING")

    def run(self, case: LabCase, *words: object) -> str:
        return case.lab.exec(self.host, "ip", "netns", "exec", self.name, *words).stdout


def _bad(result: unittest.TestResult | None) -> int:
    return len(result.failures) + len(result.errors) if result is not None else 0

