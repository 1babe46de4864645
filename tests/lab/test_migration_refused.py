#!/usr/bin/python3
"""Migrations whose wire cannot be built: refused before the guest moves, in words that virsh shows. Root.

    ext -- hv1 (Corm lab; Corm near, which hv3 may not use) ... hv2 ... hv3
"""

import sys
import unittest

sys.dont_write_bytecode = True

import lab_product as product  # noqa: E402
from banana_lab import Lab, Nic, Vm, wait_until  # noqa: E402

ADDRESS = "10.77.0.10"


class RefusedMigrationTest(unittest.TestCase):
    lab: Lab

    @classmethod
    def setUpClass(cls) -> None:
        cls.lab = cls.enterClassContext(product.own_lab(cls, 3))
        product.wait_whole(cls.lab)
        product.banana(cls.lab, "hv1", "corm", "create", "lab", "--uplink", "eth1")
        product.banana(cls.lab, "hv1", "corm", "create", "near", "--etherstub", "--allow-hosts", "hv1,hv2")
        product.banana(cls.lab, "hv1", "corm", "create", "local", "--etherstub", "--allow-formats", "native")
        cls.lab.start_vm(Vm("vm1", [Nic(network="banana-lab", address=f"{ADDRESS}/24")]), "hv1")

    def setUp(self) -> None:
        product.wait_peers(self.lab)
        product.wait_tidy(self.lab)

    def refuse(self, source: str, destination: str, words: str, name: str = "vm1") -> None:
        """virsh says `words`; the guest runs on at the source, and nothing is as if it had been tried."""
        before = product.snapshot(self.lab)
        said = product.refused(self.lab, source, *product.migrate_words(name, destination), timeout=60)
        self.assertRegex(said, words)
        self.assertEqual(product.state(self.lab, source, name), "running")
        product.wait_tidy(self.lab)
        self.assertEqual(product.snapshot(self.lab), before)
        if name == "vm1":
            self.assertTrue(product.reaches(self.lab, ADDRESS))

    def test_1_underlay_drops_vxlan(self) -> None:
        with product.rule(self.lab, "hv2", "prerouting", "udp dport 4789"):
            self.refuse("hv1", "hv2", r"vxlan wire from hv2 \(10.99.0.2\) to hv1 \(10.99.0.1, UDP port 4789\) carries "
                                      r"no frames of 64 B.*is that port open")

    def test_2_underlay_drops_fragments(self) -> None:
        # Small frames pass, so only the full-size probe can tell that the guest's large ones would vanish.
        with product.rule(self.lab, "hv2", "prerouting", "ip frag-off & 0x1fff != 0"):
            self.refuse("hv1", "hv2", r"carries no frames of 1514 B.*also for IP fragments")

    def test_3_corm_does_not_allow_the_host(self) -> None:
        self.lab.start_vm(Vm("vm2", [Nic(network="banana-near")]), "hv1")
        self.refuse("hv1", "hv3", r"Corm hv1/near does not allow host hv3; it allows hv1, hv2", "vm2")
        self.lab.exec("hv1", *product.migrate_words("vm2", "hv2"))  # and hv2 it does allow
        self.assertEqual(self.lab.find_vm("vm2"), "hv2")

    def test_4_corm_does_not_allow_the_format(self) -> None:
        self.lab.start_vm(Vm("vm3", [Nic(network="banana-local")]), "hv1")
        self.refuse("hv1", "hv2", r"wire format vxlan .* not among those that the Corm allows: native", "vm3")

    def refuse_without(self, dead: str, source: str, destination: str, words: str) -> None:
        self.assertEqual(self.lab.find_vm("vm1"), source)
        with product.without_bananad(self.lab, dead):
            said = product.refused(self.lab, source, *product.migrate_words("vm1", destination), timeout=60)
            self.assertRegex(said, words)
            self.assertEqual(product.state(self.lab, source, "vm1"), "running")
            self.assertTrue(product.reaches(self.lab, ADDRESS))  # no traffic passes through a daemon
        product.wait_tidy(self.lab)
        self.assertTrue(product.reaches(self.lab, ADDRESS))

    def test_5_destination_without_bananad(self) -> None:
        self.refuse_without("hv2", "hv1", "hv2", r"banana: .*bananad.*(not running|connect)")

    def test_6_source_without_bananad(self) -> None:
        self.lab.exec("hv1", *product.migrate_words("vm1", "hv2"))
        product.wait_tidy(self.lab)
        self.refuse_without("hv2", "hv2", "hv3", r"peer hv2 is not up")

    def test_7_corm_host_without_bananad(self) -> None:
        self.refuse_without("hv1", "hv2", "hv3", r"peer hv1 is not up")

    def test_8_and_then_it_is_possible(self) -> None:
        self.assertEqual(self.lab.find_vm("vm1"), "hv2")
        self.lab.exec("hv2", *product.migrate_words("vm1", "hv3"))
        wait_until(lambda: product.reaches(self.lab, ADDRESS, 1), 20, "the guest on hv3")


if __name__ == "__main__":
    unittest.main(verbosity=2)
