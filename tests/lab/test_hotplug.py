#!/usr/bin/python3
"""Interfaces that come, change and go while their guest runs; and what libvirt hangs on their taps.

    ext --- eth1 hv1 [Corm lab] === guest plug, on hv1 or hv2
            box  hv1 [Corm other], an etherstub
"""

import re
import sys
import unittest
import xml.etree.ElementTree as ElementTree

sys.dont_write_bytecode = True

import lab_guest  # noqa: E402
import lab_measure  # noqa: E402
import lab_product  # noqa: E402
from banana_lab import EXT, Nic, Vm, wait_until  # noqa: E402
from lab_case import PATIENCE, Box, LabCase  # noqa: E402

ADDRESS, PLUGGED = "10.77.0.30", "10.77.1.31"  # two subnets: a guest answers by the NIC that was asked
SPIKE = "hv1/plug/net0"


class Hotplug(LabCase):
    corms = {"lab": ("--uplink", "eth1"), "other": ("--etherstub",)}

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.lab.exec(EXT, "ip", "address", "add", "10.77.1.1/24", "dev", "eth0")

    def device(self, host: str, verb: str, xml: str, *options: str) -> None:
        self.lab.exec(host, "virsh", "-q", verb, "plug", "/dev/stdin", *options, stdin=xml)

    def guest(self, nics: int = 1) -> Vm:
        addresses = (f"{ADDRESS}/24", f"{PLUGGED}/24")
        return Vm("plug", [Nic(network="banana-lab", address=at) for at in addresses[:nics]],
                  spare_addresses=addresses[nics:])

    def test_plug_and_unplug(self) -> None:
        # Started without any: the whole of Banana comes and goes while the guest runs. On hv2, so by a VXLAN wire.
        self.start(self.guest(0), "hv2")
        for index, address in enumerate((ADDRESS, PLUGGED)):
            name = f"hv2/plug/net{index}"
            self.device("hv2", "attach-device", lab_guest.nic_xml("plug", Nic(network="banana-lab"), index), "--live")
            self.await_spike("hv2", name)
            self.assertEqual(self.wires("hv1", name)[0]["format"], "vxlan")
            self.reach_whole(address)
        hints = wait_until(lambda: [one for one in [self.metadata("hv2", "plug")] if len(one) == 2], PATIENCE,
                           "hints of both interfaces")[0]
        self.assertEqual([(one["interface"], one["name"]) for one in hints],
                         [("net0", "hv2/plug/net0"), ("net1", "hv2/plug/net1")])
        # The first goes, the second does not notice.
        self.device("hv2", "detach-device", lab_guest.nic_xml("plug", Nic(network="banana-lab"), 0), "--live")
        wait_until(lambda: self.spike("hv2", "hv2/plug/net0") is None, PATIENCE, "the unplugged Spike to go")
        wait_until(lambda: not self.wires("hv1", "hv2/plug/net0"), PATIENCE, "the unplugged wire to go")
        self.unreachable(ADDRESS)
        self.reach_whole(PLUGGED)
        self.device("hv2", "detach-device", lab_guest.nic_xml("plug", Nic(network="banana-lab"), 1), "--live")
        self.await_nothing_left("hv2/plug/net0", "hv2/plug/net1")

    def test_attach_interface_and_restart(self) -> None:
        """virsh attach-interface gives no alias, so libvirt calls it net0 beside ua-net0: each keeps its name here. And
        what was plugged in live only is not there at the next start."""
        self.start(self.guest(1))
        self.lab.virsh("hv1", "attach-interface", "plug", "network", "banana-lab", "--model", "virtio", "--live")
        self.reach_whole(PLUGGED)
        self.reach_whole(ADDRESS)
        spikes = self.banana("hv1", "spike", "list")["spikes"]
        self.assertEqual([(spike["format"], spike["state"]) for spike in spikes], [("native", "wired")] * 2)
        hints = lambda host: {one["interface"]: one["name"] for one in self.metadata(host, "plug")}  # noqa: E731
        names = {"net0": SPIKE, "net0-2": f"{SPIKE}-2"}
        wait_until(lambda: hints("hv1") == names, PATIENCE, "hints of both interfaces")
        for host in ("hv2", "hv1"):
            lab_measure.migrate(self.lab, "plug", host)
            self.reach_whole(PLUGGED)
            self.reach_whole(ADDRESS)
            self.assertEqual({name for name in names.values() if self.await_spike(host, name)}, set(names.values()))
            self.await_metadata(host, "plug", epoch=str(self.await_spike(host, SPIKE)["epoch"]))
            self.assertEqual(hints(host), names)
        self.lab.virsh("hv1", "destroy", "plug")
        self.await_nothing_left(*(spike["name"] for spike in spikes))
        self.lab.virsh("hv1", "start", "plug")
        self.reach_whole(ADDRESS)

    def test_hotplug_is_refused(self) -> None:
        """What cannot be wired is not plugged in, and the guest goes on."""
        self.define(self.guest())
        self.lab.virsh("hv1", "start", "--paused", "plug")
        self.define(Vm("second", []))
        self.lab.virsh("hv1", "start", "--paused", "second")
        words = ("virsh", "-q", "attach-interface", "second", "network", "banana-lab", "--model", "virtio", "--live")
        self.assertIn(SPIKE, self.refused("hv1", *words, "--mac", lab_guest.mac_of("plug", 0)))
        self.assertEqual(self.lab.virsh("hv1", "domiflist", "second").split(), [])
        self.lab.virsh("hv1", *words[2:], "--mac", "52:54:00:00:00:32")
        wait_until(lambda: len(self.banana("hv1", "wire", "list")["wires"]) == 2, PATIENCE, "the second wire")

    def test_update_link_state(self) -> None:
        self.start(self.guest())
        self.reach(ADDRESS)
        before = self.wires("hv1", SPIKE)
        for state in ("down", "up"):
            self.lab.virsh("hv1", "domif-setlink", "plug", self.tap("hv1", "plug"), state)
            if state == "down":
                self.unreachable(ADDRESS)
        self.reach_whole(ADDRESS)
        self.assertEqual(self.wires("hv1", SPIKE), before)
        # The same by update-device, which passes the whole interface.
        self.device("hv1", "update-device", self.live_interface("hv1", "<link state='down'/>"), "--live")
        self.unreachable(ADDRESS)
        self.device("hv1", "update-device", self.live_interface("hv1", "<link state='up'/>"), "--live")
        self.reach_whole(ADDRESS)
        self.assertEqual(self.wires("hv1", SPIKE), before)

    def test_migrated_and_saved_after_an_update_of_the_link_state(self) -> None:
        """libvirt keeps no more of the live interface's network than the bridge's name: here, the anchor's."""
        self.start(self.guest())
        self.reach(ADDRESS)
        for state in ("down", "up"):
            self.lab.virsh("hv1", "domif-setlink", "plug", self.tap("hv1", "plug"), state)
        lab_measure.migrate(self.lab, "plug", "hv2")
        self.await_spike("hv2", SPIKE)
        self.assertEqual([wire["format"] for wire in self.wires("hv1", SPIKE)], ["vxlan"])
        self.reach_whole(ADDRESS)
        self.await_metadata("hv2", "plug", name=SPIKE, corm="hv1/lab")
        self.lab.virsh("hv2", "managedsave", "plug")
        self.await_nothing_left(SPIKE)
        self.lab.virsh("hv2", "start", "plug")
        self.await_spike("hv2", SPIKE)
        self.reach_whole(ADDRESS)

    def live_interface(self, host: str, more: str = "", network: str = "banana-lab") -> str:
        """The running guest's first interface, as an administrator would edit it."""
        root = ElementTree.fromstring(self.lab.virsh(host, "dumpxml", "plug"))
        interface = root.find("devices/interface")
        assert interface is not None
        for name in ("link", "bandwidth"):
            for old in interface.findall(name):
                interface.remove(old)
        source = interface.find("source")
        assert source is not None
        interface.set("type", "network")  # a running guest's shows what the network made of it
        source.attrib = {"network": network}
        if more:
            interface.append(ElementTree.fromstring(more))
        return ElementTree.tostring(interface, encoding="unicode")

    def test_move_to_another_corm(self) -> None:
        self.move_on("hv1")

    def test_move_to_another_corm_of_another_host(self) -> None:
        self.move_on("hv2")

    def move_on(self, host: str) -> None:
        box = Box(self, "hv1", "otherbox", "10.77.0.39/24")
        self.banana("hv1", "spike", "adopt", "otherbox", "--device", "otherbox")
        self.addCleanup(self.banana, "hv1", "spike", "delete", "otherbox")
        self.banana("hv1", "connect", "otherbox", "other")
        self.addCleanup(self.banana, "hv1", "disconnect", "otherbox")
        self.start(self.guest(), host)
        self.reach(ADDRESS)
        self.unreachable(ADDRESS, "hv1", space=box.name)
        name, tap = f"{host}/plug/net0", self.tap(host, "plug")
        self.device(host, "update-device", self.live_interface(host, network="banana-other"), "--live")
        self.reach_whole(ADDRESS, "hv1", space=box.name)
        self.unreachable(ADDRESS)
        self.assertEqual(self.tap(host, "plug"), tap)
        self.assertEqual(self.await_spike(host, name)["corm"], "hv1/other")
        self.await_metadata(host, "plug", corm="hv1/other")
        self.assertEqual([wire["corm"] for wire in self.wires("hv1", name)], ["hv1/other"])
        self.device(host, "update-device", self.live_interface(host), "--live")
        self.reach_whole(ADDRESS)
        self.unreachable(ADDRESS, "hv1", space=box.name)
        self.await_metadata(host, "plug", corm="hv1/lab")

    def test_move_to_a_corm_that_does_not_allow_the_format(self) -> None:
        """Refused by the hook, while the old wire stands. By `auto` it would be allowed."""
        name = "hv2/plug/net0"
        self.banana("hv1", "corm", "create", "open", "--etherstub", "--allow-formats", "vxlan")
        self.addCleanup(self.banana, "hv1", "corm", "delete", "open")
        self.await_network("open")
        metadata = "<metadata><banana:domain xmlns:banana='urn:banana:1'>" \
                   "<banana:spike interface='net0' wire='dtls'/></banana:domain></metadata>"
        self.start(self.guest(), "hv2", edit=lambda xml: xml.replace("</uuid>", f"</uuid>{metadata}", 1))
        before = self.wires("hv1", name)
        self.assertEqual([wire["format"] for wire in before], ["dtls"])
        said = self.lab.exec("hv2", "virsh", "-q", "update-device", "plug", "/dev/stdin", "--live", check=False,
                             stdin=self.live_interface("hv2", network="banana-open"))
        self.assertNotEqual(said.returncode, 0)
        self.assertRegex(said.stderr, "wire format dtls.*allows: vxlan")
        self.assertEqual(self.wires("hv1", name), before)
        self.reach_whole(ADDRESS)

    def set_metadata(self, wire: str, definition: str) -> None:
        self.lab.virsh("hv2", "metadata", "plug", "--uri", "urn:banana:1", "--key", "banana", definition,
                       "--set", f"<domain><spike interface='net0' wire='{wire}'/></domain>")

    def plug(self, index: int, mtu: int | None = None) -> None:
        self.device("hv2", "attach-device", lab_guest.nic_xml("plug", Nic(network="banana-lab", mtu=mtu), index),
                    "--live")

    def await_said(self, words: str) -> None:
        wait_until(lambda: words in lab_product.bananad_log(self.lab, "hv2"), PATIENCE, f"bananad to say '{words}'")

    def test_each_definition_keeps_its_own_wishes(self) -> None:
        """What was changed for the next start, while NICs are plugged; one that is not wired leaves nothing."""
        self.start(self.guest(), "hv2")
        self.await_metadata("hv2", "plug", "--inactive")
        self.set_metadata("dtls", "--config")
        self.plug(1, mtu=9000)
        self.await_said("its MTU 9000 is larger")
        self.plug(2)
        self.await_spike("hv2", "hv2/plug/net2")
        wait_until(lambda: [one["interface"] for one in self.metadata("hv2", "plug")] == ["net0", "net2"], PATIENCE,
                   "hints of both interfaces that are wired")
        self.assertEqual(self.await_metadata("hv2", "plug", "--inactive", wire="dtls")["interface"], "net0")
        self.assertEqual(len(self.metadata("hv2", "plug", "--inactive")), 1)
        self.assertEqual(self.wires("hv1", "hv2/plug/net0")[0]["format"], "vxlan")
        self.lab.virsh("hv2", "destroy", "plug")
        self.lab.virsh("hv2", "start", "plug")
        self.await_spike("hv2", "hv2/plug/net0")
        self.assertEqual(self.wires("hv1", "hv2/plug/net0")[0]["format"], "dtls")

    def test_metadata_with_an_error_stays(self) -> None:
        self.start(self.guest(), "hv2")
        self.await_metadata("hv2", "plug")
        self.set_metadata("dtsl", "--live")
        self.plug(1)
        self.await_spike("hv2", "hv2/plug/net1")
        self.await_said("its metadata is left as it is: ")
        self.assertEqual(self.metadata("hv2", "plug"), [{"interface": "net0", "wire": "dtsl"}])

    def test_move_to_a_corm_that_cannot_be_reached_yet(self) -> None:
        box = Box(self, "hv1", "laterbox", "10.77.0.38/24")
        self.banana("hv1", "spike", "adopt", "laterbox", "--device", "laterbox")
        self.addCleanup(self.banana, "hv1", "spike", "delete", "laterbox")
        self.banana("hv1", "connect", "laterbox", "other")
        self.addCleanup(self.banana, "hv1", "disconnect", "laterbox")
        self.start(self.guest(), "hv2")
        with lab_product.rule(self.lab, "hv2", "prerouting", "udp dport 4789"):
            self.device("hv2", "update-device", self.live_interface("hv2", network="banana-other"), "--live")
            wait_until(lambda: "hv2/plug/net0: its guest is cut off" in lab_product.bananad_log(self.lab, "hv2"),
                       PATIENCE, "hv2's log to say that the guest is cut off")
        self.reach_whole(ADDRESS, "hv1", space=box.name)
        self.assertEqual(self.await_spike("hv2", "hv2/plug/net0")["corm"], "hv1/other")
        self.await_metadata("hv2", "plug", corm="hv1/other")

    def test_outbound_limit_is_refused_and_never_cuts_a_wire(self) -> None:
        """The cross-connect takes frames before libvirt's policing would see them: said, not silently ignored."""
        limit = "<bandwidth><outbound average='20000'/></bandwidth>"
        limited = re.sub("<alias", f"{limit}<alias", lab_guest.nic_xml("plug", Nic(network="banana-lab"), 1))
        self.define(self.guest(2), edit=lambda xml: xml.replace(
            lab_guest.nic_xml("plug", Nic(network="banana-lab"), 1), limited))
        self.assertIn("<outbound>", self.refused("hv1", "virsh", "start", "plug"))
        self.await_nothing_left(SPIKE, "hv1/plug/net1")
        self.remove("plug")
        self.start(self.guest())
        self.reach(ADDRESS)
        text = self.lab.exec("hv1", "virsh", "attach-device", "plug", "/dev/stdin", "--live", stdin=limited,
                             check=False).stderr
        self.assertIn("outbound", text)
        # When it runs, libvirt does not ask us; whatever it makes of that (it needs a kernel module), the wire stays.
        tap = self.tap("hv1", "plug")
        for kilobytes in ("20000", "0"):
            self.lab.exec("hv1", "virsh", "domiftune", "plug", tap, "--outbound", kilobytes, "--live", check=False)
            self.reach_whole(ADDRESS)


if __name__ == "__main__":
    unittest.main(verbosity=2)
