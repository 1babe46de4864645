#!/usr/bin/python3
"""Controllers that die: traffic does not notice, and what was half done ends one way or the other. Foreign VXLAN. Root.

    ext -- hv1 (Corm lab; vm1, box1) ... hv2 (vm2, box2) ... hv3        box: a network namespace behind an adopted veth
"""

import signal
import sys
import unittest

sys.dont_write_bytecode = True

import lab_guest  # noqa: E402
import lab_image  # noqa: E402
import lab_measure  # noqa: E402
import lab_product as product  # noqa: E402
from banana_lab import EXT, Lab, LabError, Nic, Vm, underlay_address, wait_until  # noqa: E402

GUESTS = {"vm1": ("hv1", "10.77.0.11"), "vm2": ("hv2", "10.77.0.12")}
BOXES = {"box1": ("hv1", "10.77.0.21"), "box2": ("hv2", "10.77.0.22")}
ETHERTYPE = 0x88b5  # for local experiments: nobody else's frames

# Sends a VXLAN datagram from the host's own underlay address: VNI, a broadcast frame inside.
INJECT = f"""
import socket, sys
vni, source, target, mark = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
mac = bytes.fromhex(sys.argv[5].replace(":", ""))
frame = b"\\xff" * 6 + mac + ({ETHERTYPE}).to_bytes(2, "big") + mark.encode().ljust(46, b"\\0")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    out.bind((source, 0))
    for _ in range(5):
        out.sendto(b"\\x08\\0\\0\\0" + vni.to_bytes(3, "big") + b"\\0" + frame, (target, 4789))
"""

# Prints the marks of the frames that arrive.
LISTEN = f"""
import socket
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons({ETHERTYPE})) as packets:
    packets.bind(("eth0", {ETHERTYPE}))
    print("READY", flush=True)
    while True:
        print(packets.recv(2048)[14:].rstrip(b"\\0").decode(), flush=True)
"""


def domain(vm: Vm) -> str:
    return lab_guest.domain_xml(vm, lab_image.build())


class FaultsTest(unittest.TestCase):
    lab: Lab

    @classmethod
    def setUpClass(cls) -> None:
        cls.lab = cls.enterClassContext(product.own_lab(cls, 3))
        product.wait_whole(cls.lab)
        product.create_corm(cls.lab, "hv2")
        for name, (host, address) in GUESTS.items():
            cls.lab.start_vm(Vm(name, [Nic(network="banana-lab", address=f"{address}/24")]), host)
        for name, (host, address) in BOXES.items():
            cls.make_box(name, host, address)

    @classmethod
    def make_box(cls, name: str, host: str, address: str) -> None:
        cls.lab.exec(host, "ip", "netns", "add", name)
        cls.lab.exec(host, "ip", "-batch", "-", stdin=f"link add {name} type veth peer name eth0 netns {name}\n"
                                                      f"link set {name} up\n")
        cls.lab.exec(host, "ip", "-n", name, "-batch", "-", stdin=f"address add {address}/24 dev eth0\n"
                                                                  "link set eth0 up\n")
        server = cls.lab.spawn(host, "nsenter", f"--net=/run/netns/{name}", "traffic", "serve")
        cls.addClassCleanup(server.kill)
        product.banana(cls.lab, host, "spike", "adopt", name, "--device", name)
        product.banana(cls.lab, host, "connect", name, "lab")

    def setUp(self) -> None:
        product.wait_peers(self.lab)
        product.wait_tidy(self.lab)

    def kill_under_traffic(self, ends: dict[str, tuple[str, str]]) -> None:
        formats = {product.wire(self.lab, "hv1", spike["name"])["format"]  # type: ignore[index]
                   for host in ("hv1", "hv2") for spike in product.spikes(self.lab, host)}
        self.assertEqual(formats, {"native", "vxlan"})
        flows = {name: lab_measure.Traffic(self.lab, address) for name, (_, address) in ends.items()}
        for flow in flows.values():
            self.addCleanup(flow.__exit__)
        for host in ("hv1", "hv2", "hv1"):
            product.restart_bananad(self.lab, host)
        product.wait_peers(self.lab)
        for name, flow in flows.items():
            report = flow.finish()
            with self.subTest(name):
                self.assertTrue(report["complete"])
                for way in ("to_guest", "from_guest"):
                    self.assertGreater(report[way]["sent"], 100)
                    self.assertEqual([report[way][key] for key in ("lost", "duplicates")], [0, 0], report[way])

    def test_1_killed_under_traffic_of_adopted_netdevs(self) -> None:
        self.kill_under_traffic(BOXES)

    def test_2_killed_under_traffic_of_guests(self) -> None:
        self.kill_under_traffic(GUESTS)

    def test_3_dead_at_the_end_of_a_guest(self) -> None:
        """libvirt goes on; who comes back finds out by himself, and so does the Corm's host."""
        for dead in (["hv2"], ["hv1"], ["hv1", "hv2"]):
            with self.subTest(dead=dead), product.without_bananad(self.lab, *dead):
                self.lab.virsh("hv2", "destroy", "vm2")
                self.assertEqual(product.state(self.lab, "hv2", "vm2"), "shut off")
            product.wait_tidy(self.lab)
            self.assertIsNone(product.wire(self.lab, "hv1", "hv2/vm2/net0"))
            self.lab.start_vm(Vm("vm2", [Nic(network="banana-lab", address="10.77.0.12/24")]), "hv2")

    def test_4_dead_when_libvirtd_comes_back(self) -> None:
        """A `reconnect` hook that fails would cost the guest its life."""
        with product.without_bananad(self.lab, "hv2"):
            self.lab.kill_daemon("hv2", "libvirtd")
            self.lab.start_libvirtd("hv2")
            self.assertEqual(product.state(self.lab, "hv2", "vm2"), "running")
            self.assertTrue(product.reaches(self.lab, "10.77.0.12"))
        product.wait_tidy(self.lab)
        self.assertTrue(product.reaches(self.lab, "10.77.0.12"))

    def test_5_dies_while_a_guest_starts(self) -> None:
        """Probing a wire that carries nothing takes a while: the middle of a start. libvirt gives the guest up, so
        does the controller that comes back, and the guest can be started, elsewhere too."""
        name = "hv2/vm3/net0"
        self.lab.exec("hv2", "virsh", "-q", "define", "/dev/stdin", stdin=domain(Vm("vm3", [Nic("banana-lab")])))
        with product.rule(self.lab, "hv2", "prerouting", "udp dport 4789"):
            start = self.lab.spawn("hv2", "virsh", "-q", "start", "vm3")
            self.addCleanup(start.kill)
            wait_until(lambda: any(one["name"] == name for one in product.spikes(self.lab, "hv2")), 20, "the wire")
            self.lab.kill_daemon("hv2", "bananad", signal.SIGKILL)
            self.assertNotEqual(start.wait(30), 0)
            self.lab.start_bananad("hv2")
        product.wait_tidy(self.lab)
        self.assertEqual({host for host in ("hv1", "hv2") if product.wire(self.lab, host, name)}, set())
        self.lab.start_vm(Vm("vm3", [Nic("banana-lab", address="10.77.0.13/24")]), "hv3")
        self.assertTrue(product.reaches(self.lab, "10.77.0.13"))
        self.lab.virsh("hv3", "destroy", "vm3")

    def test_6_dies_while_a_migration_is_prepared(self) -> None:
        with product.rule(self.lab, "hv3", "prerouting", "udp dport 4789"):
            moving = self.lab.spawn("hv2", *product.migrate_words("vm2", "hv3"))
            self.addCleanup(moving.kill)
            wait_until(lambda: product.spikes(self.lab, "hv3"), 20, "the standby wire")
            self.lab.kill_daemon("hv3", "bananad", signal.SIGKILL)
            self.assertNotEqual(moving.wait(30), 0)
            self.lab.start_bananad("hv3")
        product.wait_tidy(self.lab)
        self.assertEqual(self.lab.find_vm("vm2"), "hv2")
        self.assertTrue(product.reaches(self.lab, "10.77.0.12"))
        self.lab.exec("hv2", *product.migrate_words("vm2", "hv3"))
        product.wait_tidy(self.lab)
        self.lab.exec("hv3", *product.migrate_words("vm2", "hv2"))

    def test_7_dies_while_a_netdev_is_connected(self) -> None:
        product.banana(self.lab, "hv2", "disconnect", "box2")
        with product.rule(self.lab, "hv2", "prerouting", "udp dport 4789"):
            connecting = self.lab.spawn("hv2", "banana", "connect", "box2", "lab")
            self.addCleanup(connecting.kill)
            wait_until(lambda: product.wire(self.lab, "hv1", "hv2/dev/box2"), 20, "the wire")
            wait_until(lambda: product.wire(self.lab, "hv2", "hv2/dev/box2"), 20, "the wire's other end")
            self.lab.kill_daemon("hv2", "bananad", signal.SIGKILL)
            self.assertNotEqual(connecting.wait(30), 0)
            self.lab.start_bananad("hv2")
        product.wait_tidy(self.lab)
        self.assertIsNone(product.wire(self.lab, "hv1", "hv2/dev/box2"))
        product.banana(self.lab, "hv2", "connect", "box2", "lab")
        self.assertTrue(product.reaches(self.lab, "10.77.0.22"))

    # ---- Frames from elsewhere ---------------------------------------------------------------------------------------

    def dropped(self, host: str) -> int:
        return int(product.doctor(self.lab, host, "VXLAN senders")["text"].split()[0])

    def inject(self, source: str, target: str, mark: str) -> None:
        seen = product.wire(self.lab, "hv1", "hv2/vm2/net0")
        assert seen and seen["format"] == "vxlan"
        self.lab.exec(source, "python3", "-c", INJECT, product.vni(seen["connector"]), underlay_address(source),
                      underlay_address(target), mark, seen["mac"])

    def test_8_vxlan_from_a_third_address(self) -> None:
        listener = self.lab.spawn(EXT, "python3", "-c", LISTEN)
        self.addCleanup(listener.kill)
        listener.expect("READY")
        before = {host: self.dropped(host) for host in ("hv1", "hv2")}
        self.inject("hv3", "hv1", "foreign")
        self.inject("hv3", "hv2", "foreign")
        self.inject("hv2", "hv1", "peer")  # the same bytes from the wire's own peer: what was dropped was well formed
        listener.expect("peer")
        self.assertNotIn("foreign", listener.read(0.5))
        for host in ("hv1", "hv2"):
            self.assertEqual(self.dropped(host) - before[host], 5)
            self.assertFalse(product.doctor(self.lab, host, "VXLAN senders")["ok"])
            said = self.lab.exec(host, "banana", "doctor", check=False)
            self.assertEqual(said.returncode, 1)
            self.assertIn("foreign addresses", said.stdout)

    def test_9_a_name_that_is_free_again(self) -> None:
        """A Spike whose host never comes back is disconnected by hand at the Corm's, and its place is free."""
        with product.without_bananad(self.lab, "hv2"):
            wait_until(lambda: not self.is_up("hv1", "hv2"), 30, "hv1 to see that hv2 is gone")
            product.banana(self.lab, "hv1", "disconnect", "hv2/dev/box2")
            self.assertIsNone(product.wire(self.lab, "hv1", "hv2/dev/box2"))
            with self.assertRaisesRegex(LabError, "no wire of Spike"):
                product.banana(self.lab, "hv1", "wire", "show", "hv2/dev/box2")

    def is_up(self, host: str, peer: str) -> bool:
        return any(one["name"] == peer and one["state"] == "up" for one in product.ask(self.lab, host,
                                                                                     "peer.list")["peers"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
