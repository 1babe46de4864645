#!/usr/bin/python3
"""Guests as virt-install and virt-manager make them: no alias, no metadata, nothing that knows of Banana.

    ext --- eth1 hv1 [Corm lab] === guest made, on hv1, migrates to hv2
"""

import re
import sys
import unittest
import xml.etree.ElementTree as ElementTree

sys.dont_write_bytecode = True

import lab_guest  # noqa: E402
import lab_image  # noqa: E402
import lab_measure  # noqa: E402
from banana_lab import Nic, Vm  # noqa: E402
from lab_case import LabCase  # noqa: E402

ADDRESS = "10.77.0.40"
SPIKE = "hv1/made/net0"
# What virt-manager writes for a NIC chosen from its drop-down, and the element that it puts beside ours.
MANAGER_NIC = """
<interface type="network">
  <source network="banana-lab"/>
  <mac address="52:54:00:6d:61:6e"/>
  <model type="virtio"/>
</interface>
"""
MANAGER_METADATA = """
<metadata>
  <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
    <libosinfo:os id="http://debian.org/debian/12"/>
  </libosinfo:libosinfo>
</metadata>
"""


class MadeByTools(LabCase):
    corms = {"lab": ("--uplink", "eth1")}

    def install(self, *words: str, network: str = "network=banana-lab,model=virtio") -> str:
        image = lab_image.build()
        return self.lab.exec(
            "hv1", "virt-install", "--connect", "qemu:///system", "--name", "made", "--virt-type", "qemu", "--memory",
            "256", "--vcpus", "1", "--import", "--disk", "none", "--osinfo", "detect=off,require=off", "--graphics",
            "none", "--network", network, "--boot",
            f"kernel={image.kernel},initrd={image.initramfs},"
            f"kernel_args=console=ttyS0 quiet panic=-1 {lab_guest.BOOT_SOONER} banana.name=made banana.ip={ADDRESS}/24",
            *words, timeout=120).stdout

    def test_virt_install_prints(self) -> None:
        root = ElementTree.fromstring(self.install("--print-xml"))
        interface = root.find("devices/interface")
        assert interface is not None
        self.assertEqual(interface.get("type"), "network")
        source = interface.find("source")
        assert source is not None
        self.assertEqual(source.get("network"), "banana-lab")
        self.assertIsNone(interface.find("alias"))
        self.assertEqual(self.lab.virsh("hv1", "list", "--all", "--name").split(), [])

    def test_virt_install_makes_a_guest_that_migrates(self) -> None:
        self.addCleanup(self.remove, "made")
        self.install("--noautoconsole")
        self.reach_whole(ADDRESS)
        spike = self.await_spike("hv1", SPIKE)
        self.assertEqual((spike["corm"], spike["interface"], spike["format"]), ("hv1/lab", "net0", "native"))
        self.await_metadata("hv1", "made", interface="net0", name=SPIKE)
        for host, wire in (("hv2", "vxlan"), ("hv1", "native")):
            lab_measure.migrate(self.lab, "made", host)
            self.reach_whole(ADDRESS)
            spike = self.await_spike(host, SPIKE)
            self.assertEqual(spike["format"], wire)
            self.await_metadata(host, "made", epoch=str(spike["epoch"]), home="hv1")
        self.remove("made")
        self.await_nothing_left(SPIKE)

    def test_virt_install_on_no_corm(self) -> None:
        self.addCleanup(self.remove, "made")
        text = self.refused("hv1", "virt-install", "--connect", "qemu:///system", "--name", "made", "--virt-type",
                            "qemu", "--memory", "256", "--import", "--disk", "none", "--osinfo",
                            "detect=off,require=off", "--graphics", "none", "--noautoconsole", "--network",
                            "network=banana-nowhere")
        self.assertIn("there is no Corm 'nowhere'", text)
        self.assertIn("hv1/lab", text)  # which there are
        self.assertEqual(self.lab.virsh("hv1", "list", "--all", "--name").split(), [])

    def test_as_virt_manager_writes_it(self) -> None:
        """Its drop-down lists active networks; its XML has double quotes, other metadata, and no alias."""
        self.assertIn("banana-lab", self.lab.virsh("hv1", "net-list", "--name").split())

        def edit(xml: str) -> str:
            root = ElementTree.fromstring(xml)
            devices = root.find("devices")
            assert devices is not None
            devices.append(ElementTree.fromstring(MANAGER_NIC))
            root.append(ElementTree.fromstring(MANAGER_METADATA))
            return ElementTree.tostring(root, encoding="unicode")

        self.start(Vm("made", [], spare_addresses=(f"{ADDRESS}/24",)), edit=edit)
        self.reach_whole(ADDRESS)
        self.assertEqual(self.await_spike("hv1", SPIKE)["mac"], "52:54:00:6d:61:6e")
        hints = self.await_metadata("hv1", "made", "--inactive")
        self.assertEqual((hints["interface"], hints["name"]), ("net0", SPIKE))
        self.assertIn("http://debian.org/debian/12", self.lab.virsh("hv1", "dumpxml", "--inactive", "made"))
        # A second start finds the hints of the first, and the interface again without a name in the XML.
        self.lab.virsh("hv1", "destroy", "made")
        self.await_nothing_left(SPIKE)
        self.lab.virsh("hv1", "start", "made")
        self.reach(ADDRESS)
        self.assertEqual([spike["name"] for spike in self.banana("hv1", "spike", "list")["spikes"]], [SPIKE])

    def test_two_nics_and_a_stranger_without_names(self) -> None:
        """A banana NIC, one on a plain bridge, a banana NIC again: each has its own place among the interfaces."""
        self.lab.exec("hv1", "ip", "link", "add", "plain0", "type", "bridge")
        self.addCleanup(self.lab.exec, "hv1", "ip", "link", "del", "plain0")
        strip = lambda xml: re.sub("<alias name='ua-net.'/>", "", xml)  # noqa: E731
        self.start(Vm("made", [Nic(network="banana-lab", address=f"{ADDRESS}/24"), Nic(bridge="plain0"),
                               Nic(network="banana-lab", address="10.77.1.41/24")]), edit=strip)
        self.reach_whole(ADDRESS)
        self.await_spike("hv1", SPIKE)
        self.await_spike("hv1", "hv1/made/net2")
        self.assertEqual({spike["name"] for spike in self.banana("hv1", "spike", "list")["spikes"]},
                         {SPIKE, "hv1/made/net2"})


if __name__ == "__main__":
    unittest.main(verbosity=2)
