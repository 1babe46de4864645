#!/usr/bin/python3
"""What a user can get wrong in a domain: refused in clear words, at the start, with nothing changed. Root.

    ext -- hv1 (Corm lab; Corm near allows native wires only) ... hv2
"""

import os
import re
import signal
import sys
import time
import unittest

sys.dont_write_bytecode = True

import lab_guest  # noqa: E402
import lab_image  # noqa: E402
import lab_product as product  # noqa: E402
from banana_lab import Lab, Nic, Vm, wait_until  # noqa: E402

HOOK_DEADLINE = 8.0
LAB_NIC = Nic("banana-lab")


def with_metadata(vm: Vm, *entries: str) -> str:
    """The domain's XML with these elements in <banana:domain>, which stands in line 5 and on."""
    text = lab_guest.domain_xml(vm, lab_image.build())
    metadata = "<metadata><banana:domain xmlns:banana='urn:banana:1'>\n" + "\n".join(entries) + \
        "\n</banana:domain></metadata>"
    return text.replace("</uuid>", f"</uuid>\n{metadata}", 1)


class BadDomainTest(unittest.TestCase):
    lab: Lab

    @classmethod
    def setUpClass(cls) -> None:
        cls.lab = cls.enterClassContext(product.own_lab(cls, 2))
        product.wait_whole(cls.lab)
        product.banana(cls.lab, "hv1", "corm", "create", "lab", "--uplink", "eth1")
        product.banana(cls.lab, "hv1", "corm", "create", "near", "--etherstub", "--allow-formats", "native")
        wait_until(lambda: "banana-near" in cls.lab.virsh("hv2", "net-list", "--name"), 20, "the networks on hv2")
        cls.lab.start_vm(Vm("vm1", [Nic("banana-lab", address="10.77.0.10/24")]), "hv1")
        product.wait_tidy(cls.lab)

    def define(self, text: str, host: str = "hv1") -> None:
        self.lab.exec(host, "virsh", "-q", "define", "/dev/stdin", stdin=text)

    def refuse(self, name: str, *words: str, host: str = "hv1") -> str:
        before = product.snapshot(self.lab)
        said = product.refused(self.lab, host, "virsh", "-q", "start", name)
        for word in words:
            self.assertRegex(said, word)
        self.assertEqual(product.state(self.lab, host, name), "shut off")
        self.assertEqual(product.snapshot(self.lab), before)
        return said

    def test_unknown_corm(self) -> None:
        self.define(lab_guest.domain_xml(Vm("bad", [Nic("banana-nope")]), lab_image.build()))
        self.refuse("bad", r"nope", r"hv1/lab", r"hv1/near", r"interface net0 of domain bad")

    def test_unknown_corm_with_a_network(self) -> None:
        self.lab.exec("hv1", "ip", "link", "add", "br-nope", "type", "bridge")
        self.addCleanup(self.lab.exec, "hv1", "ip", "link", "delete", "br-nope")
        self.lab.define_network("banana-nope", "br-nope", hosts=["hv1"])
        self.addCleanup(self.lab.virsh, "hv1", "net-undefine", "banana-nope")
        self.addCleanup(self.lab.virsh, "hv1", "net-destroy", "banana-nope")
        self.define(lab_guest.domain_xml(Vm("bad", [Nic("banana-nope")]), lab_image.build()))
        self.refuse("bad", r"nope", r"hv1/lab", r"hv1/near")

    # ---- Metadata: element and line ----------------------------------------------------------------------------------

    def line_of(self, name: str, entry: str, host: str = "hv1") -> int:
        """Where libvirt shows the element to the user."""
        lines = self.lab.virsh(host, "dumpxml", "--inactive", name).splitlines()
        return next(number for number, line in enumerate(lines, 1) if entry in line)

    def refuse_metadata(self, entries: list[str], faulty: str, *words: str) -> None:
        self.define(with_metadata(Vm("bad", [LAB_NIC]), *entries))
        said = self.refuse("bad", r"metadata of domain bad", *words)
        found = re.search(r"line (\d+): <banana:spike interface='([^']*)'", said)
        assert found, said
        self.assertIn(f'interface="{found.group(2)}"', faulty)
        self.assertEqual(int(found.group(1)), self.line_of("bad", faulty), said)

    def test_metadata_of_an_interface_that_is_not_there(self) -> None:
        self.refuse_metadata(["<banana:spike interface='net7'/>"], 'interface="net7"',
                             r"no such interface; it has net0")

    def test_metadata_with_an_unknown_wire(self) -> None:
        self.refuse_metadata(["<banana:spike interface='net0' wire='token-ring'/>"], 'interface="net0"',
                             r"wire='token-ring': must be auto, native, vxlan, dtls")

    def test_metadata_with_an_unknown_attribute(self) -> None:
        self.refuse_metadata(["<banana:spike interface='net0' color='red'/>"], 'interface="net0"',
                             r"unknown attribute 'color'")

    def test_metadata_with_two_entries_for_one_interface(self) -> None:
        self.refuse_metadata(["<banana:spike interface='net0'/>", "<banana:spike interface='net0' wire='vxlan'/>"],
                             'interface="net0" wire="vxlan"',
                             r"a second entry for this interface")
        first = self.line_of("bad", 'interface="net0"/>')
        self.refuse("bad", rf"the first is in line {first}\b")

    def test_metadata_with_a_format_that_the_corm_does_not_allow(self) -> None:
        self.define(with_metadata(Vm("bad", [Nic("banana-near")]), "<banana:spike interface='net0' wire='vxlan'/>"),
                    "hv2")
        said = self.refuse("bad", r"wire format vxlan", r"allows: native", host="hv2")
        line = self.line_of("bad", 'interface="net0" wire="vxlan"', "hv2")
        self.assertIn(f"line {line}: <banana:spike interface='net0'", said)

    def test_metadata_with_a_format_that_cannot_be_built_from_there(self) -> None:
        self.define(with_metadata(Vm("bad", [LAB_NIC]), "<banana:spike interface='net0' wire='native'/>"), "hv2")
        self.refuse("bad", r"a native wire joins", r"the Spike is on hv2, the Corm on hv1", host="hv2")

    # ---- One thing claimed twice -------------------------------------------------------------------------------------

    def test_clone_is_a_spike_of_its_own(self) -> None:
        self.define(with_metadata(Vm("first", [Nic("banana-lab", address="10.77.0.30/24")]),
                                  "<banana:spike interface='net0' wire='vxlan'/>"))
        self.lab.virsh("hv1", "start", "first")
        self.addCleanup(self.lab.virsh, "hv1", "undefine", "first")
        wait_until(lambda: "uuid=" in self.lab.virsh("hv1", "dumpxml", "--inactive", "first").partition("<memory")[0],
                   20, "the hints in the metadata of domain first", 0.1)
        self.lab.virsh("hv1", "destroy", "first")
        product.wait_tidy(self.lab)
        self.lab.exec("hv1", "virt-clone", "--connect", "qemu:///system", "-o", "first", "-n", "clone",
                      "--auto-clone")
        self.addCleanup(self.lab.virsh, "hv1", "undefine", "clone")
        text = self.lab.virsh("hv1", "dumpxml", "--inactive", "clone")
        self.assertIn("hv1/first/net0", text)  # it does carry the other's
        self.define(text.replace("first-serial.log", "clone-serial.log"))  # one log cannot be both's
        self.lab.virsh("hv1", "start", "first")
        self.addCleanup(self.lab.virsh, "hv1", "destroy", "first")
        original = product.wire(self.lab, "hv1", "hv1/first/net0")
        self.lab.virsh("hv1", "start", "clone")
        self.addCleanup(self.lab.virsh, "hv1", "destroy", "clone")
        cloned = product.wire(self.lab, "hv1", "hv1/clone/net0")
        assert original and cloned
        self.assertNotEqual(cloned["spike"], original["spike"])
        self.assertEqual(product.wire(self.lab, "hv1", "hv1/first/net0"), original)
        wait_until(lambda: "hv1/clone/net0" in self.lab.virsh("hv1", "dumpxml", "clone"), 20, "its own hints", 0.1)
        self.assertNotIn("hv1/first/net0", self.lab.virsh("hv1", "dumpxml", "clone"))

    def test_two_guests_with_one_mac(self) -> None:
        mac = lab_guest.mac_of("vm1", 0)
        for host in ("hv1", "hv2"):
            with self.subTest(host):
                self.define(lab_guest.domain_xml(Vm("twin", [Nic("banana-lab", mac=mac)]), lab_image.build()), host)
                self.refuse("twin", mac, r"hv1/vm1/net0", host=host)
        self.assertTrue(product.reaches(self.lab, "10.77.0.10"))

    def test_bandwidth_with_outbound(self) -> None:
        """libvirt's policer would never see the frames."""
        text = lab_guest.domain_xml(Vm("shaped", [Nic("banana-lab", address="10.77.0.31/24")]), lab_image.build())
        self.define(text.replace("<model type='virtio'/>", "<model type='virtio'/><bandwidth><outbound average='2000'/>"
                                                           "</bandwidth>", 1))
        self.refuse("shaped", r"interface net0 of domain shaped: <bandwidth> with <?outbound>?.*remove <outbound>")

    def test_mtu_larger_than_the_corms(self) -> None:
        self.define(lab_guest.domain_xml(Vm("bad", [Nic("banana-lab", mtu=9000)]), lab_image.build()))
        self.refuse("bad", r"MTU 9000 is larger than that of Corm hv1/lab, 1500")

    # ---- No controller -----------------------------------------------------------------------------------------------

    def test_start_without_bananad(self) -> None:
        self.define(lab_guest.domain_xml(Vm("alone", [LAB_NIC]), lab_image.build()))
        self.define(lab_guest.domain_xml(Vm("other", []), lab_image.build()))
        with product.without_bananad(self.lab, "hv1"):
            began = time.monotonic()
            said = product.refused(self.lab, "hv1", "virsh", "-q", "start", "alone")
            self.assertLess(time.monotonic() - began, HOOK_DEADLINE)
            self.assertRegex(said, r"bananad is not running on this host")
            self.lab.virsh("hv1", "start", "other")
            self.assertEqual(product.state(self.lab, "hv1", "other"), "running")
            self.lab.virsh("hv1", "destroy", "other")
        product.wait_tidy(self.lab)

    def test_start_with_a_bananad_that_hangs(self) -> None:
        self.define(lab_guest.domain_xml(Vm("alone", [LAB_NIC]), lab_image.build()))
        pid, = self.lab.pids("hv1", "bananad")
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            said = product.refused(self.lab, "hv1", "virsh", "-q", "start", "alone")
            took = time.monotonic() - began
        finally:
            os.kill(pid, signal.SIGCONT)
        self.assertRegex(said, r"bananad did not answer the prepare of alone")
        self.assertLess(took, 3 * HOOK_DEADLINE)  # libvirt calls `stopped` and `release` as well: each waits as long
        product.wait_peers(self.lab)
        product.wait_tidy(self.lab)


if __name__ == "__main__":
    unittest.main(verbosity=2)
