#!/usr/bin/python3
"""Live migration: the Corm's place, the guest's state and virsh's options, under traffic. Root.

    ext -- hv1 (Corm lab) ... hv2 ... hv3        vm1 goes round: the Corm is at its source, nowhere near, at its goal
"""

import sys
import unittest

sys.dont_write_bytecode = True

import lab_guest  # noqa: E402
import lab_measure  # noqa: E402
import lab_product as product  # noqa: E402
from banana_lab import Lab, Nic, Vm, wait_until  # noqa: E402

ADDRESS = "10.77.0.10"
SPIKE = "hv1/vm1/net0"
MOST_LOST = 20  # frames each way, of 1 000 a second


class MigrationTest(unittest.TestCase):
    lab: Lab

    @classmethod
    def setUpClass(cls) -> None:
        cls.lab = cls.enterClassContext(product.own_lab(cls, 3))
        product.wait_whole(cls.lab)
        product.create_corm(cls.lab)
        cls.lab.start_vm(Vm("vm1", [Nic(network="banana-lab", address=f"{ADDRESS}/24")], timed=True), "hv1")
        product.wait_tidy(cls.lab)

    def bring(self, host: str) -> None:
        """The guest stands on `host`, running, all settled."""
        product.bring(self.lab, "vm1", host)
        self.assertTrue(product.reaches(self.lab, ADDRESS))

    def wire(self, host: str) -> dict:
        seen = product.wire(self.lab, host, SPIKE)
        assert seen is not None, f"{host} has no wire of {SPIKE}"
        return seen

    def cross(self, source: str, destination: str, before: str, after: str) -> None:
        """One migration under traffic, and all that must be true of it."""
        self.bring(source)
        lab_measure.despite_panics(
            self.lab, "vm1", lambda punctual: self.cross_once(source, destination, before, after, punctual))

    def cross_once(self, source: str, destination: str, before: str, after: str, punctual: bool) -> None:
        self.bring(source)
        old, port = self.wire("hv1"), product.learned_port(self.lab, lab_guest.mac_of("vm1", 0))
        self.assertEqual((old["format"], old["spike_host"]), (before, source))
        self.assertEqual(port, old["port"])
        measured = lab_measure.migrate_under_traffic(self.lab, "vm1", destination, ADDRESS, punctual=punctual)
        print(lab_measure.row(f"{before} to {after}", measured), file=sys.stderr)
        new = self.wire("hv1")
        self.assertEqual((new["format"], new["spike_host"], new["epoch"]), (after, destination, old["epoch"] + 1))
        self.assertEqual(new["port"], old["port"])
        for host in (source, destination):
            told, = product.ask(self.lab, host, "migration.list", spike=SPIKE)["migrations"]
            self.assertEqual((told["from"], told["to"]), (source, destination), host)
        # The guest has not moved as far as the Corm's network can see.
        self.assertEqual(product.learned_port(self.lab, lab_guest.mac_of("vm1", 0)), port)
        to, back, tcp = (measured.traffic[key] for key in ("to_guest", "from_guest", "tcp"))
        self.assertTrue(measured.traffic["complete"])
        self.assertTrue(tcp["survived"], tcp)
        for flow in (to, back):
            self.assertLessEqual(flow["lost"], MOST_LOST, flow)
            self.assertEqual(flow["duplicates"], 0, flow)
        product.wait_tidy(self.lab)  # the old wire's devices and filters have gone, on every host
        if old["connector"]:
            for host in ("hv1", source):
                self.assertNotIn(old["device"], product.devices(self.lab, host))
                self.assertNotIn(product.vni(old["connector"]), {n for _, n in product.allowed_senders(self.lab, host)})
        self.assertFalse(product.spikes(self.lab, source))

    def test_1_corm_on_the_source(self) -> None:
        self.cross("hv1", "hv2", "native", "vxlan")

    def test_2_corm_on_neither(self) -> None:
        self.cross("hv2", "hv3", "vxlan", "vxlan")

    def test_3_corm_on_the_destination(self) -> None:
        self.cross("hv3", "hv1", "vxlan", "native")

    def go(self, source: str, destination: str, *options: str, ends: str = "running") -> None:
        self.bring(source)
        epoch = self.wire("hv1")["epoch"]
        if "paused" in options:
            self.lab.virsh(source, "suspend", "vm1")
        words = [option for option in options if option != "paused"]
        self.lab.exec(source, *product.migrate_words("vm1", destination, "--persistent", *words), timeout=120)
        self.assertEqual(product.state(self.lab, destination, "vm1"), ends)
        # The wire went with it, also when the guest has not sent a frame since.
        wait_until(lambda: self.wire("hv1")["spike_host"] == destination, 20, "the wire to be the destination's", 0.1)
        self.assertEqual(self.wire("hv1")["epoch"], epoch + 1)
        product.wait_tidy(self.lab)
        if ends == "paused":
            self.assertFalse(product.reaches(self.lab, ADDRESS, 1))
            self.lab.virsh(destination, "resume", "vm1")
        self.assertTrue(product.reaches(self.lab, ADDRESS))

    def test_4_paused_guest(self) -> None:
        self.go("hv1", "hv2", "--live", "paused", ends="paused")

    def test_5_suspend_option(self) -> None:
        self.go("hv2", "hv3", "--live", "--suspend", ends="paused")

    def test_6_without_live(self) -> None:
        self.go("hv3", "hv1")

    def test_7_peer_to_peer(self) -> None:
        self.go("hv1", "hv2", "--live", "--p2p")

    def test_8_undefining_the_source(self) -> None:
        self.go("hv2", "hv1", "--live", "--undefinesource")
        self.assertNotIn("vm1", self.lab.virsh("hv2", "list", "--all", "--name").split())


if __name__ == "__main__":
    unittest.main(verbosity=2)
