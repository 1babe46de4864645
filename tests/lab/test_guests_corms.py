#!/usr/bin/python3
"""Corms of each kind, what they allow, and what may not be done to them.

    ext --- eth1 hv1 [Corm lab]    hv1 [Corm stub]            hv1 [Corm adopted] on br7 --- plain (a Box)
    guests and Boxes on hv1 and hv2
"""

import json
import os
import signal
import sys
import unittest

sys.dont_write_bytecode = True

import lab_product as product  # noqa: E402
from banana_lab import Nic, Vm, wait_until  # noqa: E402
from lab_base import build_dir  # noqa: E402
from lab_case import PATIENCE, Box, LabCase  # noqa: E402

MOVED = "192.0.2.1"
GATEWAY = "192.0.2.254"


class Corms(LabCase):
    corms = {"lab": ("--uplink", "eth1")}

    def corm(self, name: str, *words: str, host: str = "hv1") -> dict[str, object]:
        made: dict[str, object] = self.banana(host, "corm", "create", name, *words)
        self.addCleanup(self.lab.exec, host, "banana", "corm", "delete", name, check=False)
        self.await_network(name)
        return made

    def box(self, host: str, name: str, address: str, corm: str = "", mtu: int = 1500, wire: str = "auto") -> Box:
        """A Box; with a Corm, adopted as Spike HOST/dev/NAME and connected to it."""
        made = Box(self, host, name, f"{address}/24", mtu)
        if corm:
            self.banana(host, "spike", "adopt", name, "--device", name)
            self.addCleanup(self.banana, host, "spike", "delete", name)
            self.banana(host, "connect", name, corm, "--wire", wire)
            self.addCleanup(self.banana, host, "disconnect", name)
        return made

    # ---- adopted netdevs -----------------------------------------------------------------------------------------

    def test_adopted_natively(self) -> None:
        self.adopted("hv1", "10.77.0.61", "native")

    def test_adopted_by_vxlan(self) -> None:
        self.adopted("hv2", "10.77.0.62", "vxlan")

    def adopted(self, host: str, address: str, wire: str) -> None:
        spike = f"{host}/dev/ct0"
        box = self.box(host, "ct0", address, "lab")
        self.reach_whole(address)
        self.check_ext_is_reached(box)
        shown = self.wires("hv1", spike)[0]
        self.assertEqual((shown["format"], shown["mtu"]), (wire, 1500))
        self.assertEqual(self.await_spike(host, spike)["kind"], "netdev")
        self.assertIn("disconnect", self.refused(host, "banana", "spike", "delete", "ct0"))
        self.assertIn("already", self.refused(host, "banana", "connect", "ct0", "lab"))
        self.banana(host, "disconnect", "ct0")
        self.unreachable(address)
        wait_until(lambda: not self.wires("hv1", spike), PATIENCE, f"wire {spike} to go")
        for other in ("hv1", "hv2"):
            self.await_no_devices(other)
        self.assertIn("ct0@", self.lab.exec(host, "ip", "-br", "link").stdout)  # it is its owner's
        self.banana(host, "connect", "ct0", "lab")
        self.reach_whole(address)

    def check_ext_is_reached(self, box: Box) -> None:
        """The other way round: asked from within the Box, of a server in ext."""
        with self.lab.spawn("ext", "traffic", "serve") as server:
            server.expect("LISTENING")
            self.reach_whole("10.77.0.1", box.host, space=box.name)

    def test_adopted_with_a_mac(self) -> None:
        """What it sends from another is dropped; unless that is allowed."""
        spike, address = "hv2/dev/own0", "10.77.0.64"
        box = Box(self, "hv2", "own0", f"{address}/24")
        mac = json.loads(box.run(self, "ip", "-j", "link", "show", "eth0"))[0]["address"]
        adopt = ("spike", "adopt", "own0", "--device", "own0", "--mac", mac)
        self.banana("hv2", *adopt)
        self.addCleanup(self.lab.exec, "hv2", "banana", "spike", "delete", "own0", check=False)
        self.addCleanup(self.lab.exec, "hv2", "banana", "disconnect", "own0", check=False)
        self.assertRegex(self.lab.exec("hv2", "banana", "spike", "show", "own0").stdout, r"any mac +no\n")
        self.banana("hv2", "connect", "own0", "lab")
        self.reach(address)
        self.assertEqual(self.foreign_frames(spike), 0)
        box.run(self, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:64")
        self.unreachable("10.77.0.1", "hv2", space=box.name)  # it is the one that speaks
        self.assertGreater(self.foreign_frames(spike), 0)
        self.banana("hv2", "disconnect", "own0")
        self.banana("hv2", "spike", "delete", "own0")
        self.banana("hv2", *adopt, "--allow-any-mac")
        self.assertRegex(self.lab.exec("hv2", "banana", "spike", "show", "own0").stdout, r"any mac +yes\n")
        self.banana("hv2", "connect", "own0", "lab")
        before = self.foreign_frames(spike)
        self.reach(address)
        self.assertEqual(self.foreign_frames(spike), before)

    def foreign_frames(self, spike: str) -> int:
        """Frames from a Spike that were dropped for their source."""
        ports = self.banana("hv2", "wire", "show", spike)["counters"]["ports"]
        return sum(port["drops"].get("foreign_mac", {}).get("frames", 0) for port in ports if port["port"] == "spike")

    def test_adopted_across_the_underlay_costs_are_shown(self) -> None:
        self.box("hv2", "cost", "10.77.0.63", "lab")
        self.reach_whole("10.77.0.63")
        shown = json.dumps(self.banana("hv2", "wire", "show", "hv2/dev/cost"))
        self.assertIn("two IP fragments", shown)  # 1550 B on an underlay of 1500

    def test_adoption_is_refused(self) -> None:
        for device, why in (("nowhere0", "no device"), ("lo", "loopback"), ("eth0", "10.99.0.1"),
                            ("eth1", "port of another")):
            self.assertRegex(self.refused("hv1", "banana", "spike", "adopt", "odd", "--device", device), why)
        self.assertEqual(self.banana("hv1", "spike", "list")["spikes"], [])

    def test_mtu_is_the_uplinks(self) -> None:
        """By default; and every wire carries it whole, over an underlay of 1500."""
        for mtu in (1400, 9000):
            with self.subTest(mtu=mtu):
                uplink = Box(self, "hv1", f"up{mtu}", "10.78.0.1/24", mtu)
                self.assertEqual(self.corm(f"of{mtu}", "--uplink", uplink.name)["mtu"], mtu)
                for number, (host, wire) in enumerate((("hv1", "native"), ("hv2", "vxlan")), 2):
                    box = self.box(host, f"ct{mtu}", f"10.78.0.{number}", f"of{mtu}", mtu)
                    self.reach_whole(uplink.address, host, mtu, space=box.name)
                    self.assertFalse(self.answers(uplink.address, host, mtu + 1, space=box.name))
                    shown = self.wires("hv1", f"{host}/dev/{box.name}")[0]
                    self.assertEqual((shown["format"], shown["mtu"]), (wire, mtu))
                    network = self.lab.virsh(host, "net-dumpxml", f"banana-of{mtu}")
                    self.assertRegex(network, f"<banana:network [^>]* mtu=.{mtu}. ")  # libvirt refuses <mtu> here

    def test_a_host_that_was_away(self) -> None:
        """It learns of what was made and deleted meanwhile."""
        self.lab.kill_daemon("hv2", "bananad", signal.SIGKILL)
        try:
            words = ("corm", "create", "late", "--etherstub")
            self.assertRegex(self.refused("hv1", "banana", *words), "hv2 cannot be asked whether .* is free.*--force")
            self.banana("hv1", *words, "--force")
            self.addCleanup(self.lab.exec, "hv1", "banana", "corm", "delete", "late", check=False)
        finally:
            self.lab.start_bananad("hv2")
        self.await_network("late")
        self.lab.kill_daemon("hv2", "bananad", signal.SIGKILL)
        self.lab.kill_daemon("hv2", "libvirtd")
        try:
            self.banana("hv1", "corm", "delete", "late")
            self.lab.start_bananad("hv2")  # its unit comes before libvirtd's
            wait_until(lambda: "hv1/late" not in [corm["name"] for corm in self.banana("hv2", "corm", "list")["corms"]],
                       PATIENCE, "hv2 to forget the Corm")
        finally:
            self.lab.start_libvirtd("hv2")
        wait_until(lambda: "banana-late" not in self.lab.virsh("hv2", "net-list", "--all", "--name").split(), PATIENCE,
                   "network banana-late to leave hv2")
        self.assertNotIn("hv1/late", [corm["name"] for corm in self.banana("hv2", "corm", "list")["corms"]])
        wait_until(lambda: all(self.is_whole(host) for host in ("hv1", "hv2")), PATIENCE, "both hosts")

    def test_made_again_and_again_while_libvirt_is_slow(self) -> None:
        """What is removed for a Corm that is gone must not hit the next one of its name."""
        self.corm("again", "--etherstub")
        libvirtd, = self.lab.pids("hv2", "libvirtd")
        os.kill(libvirtd, signal.SIGSTOP)
        self.addCleanup(os.kill, libvirtd, signal.SIGCONT)
        for _ in range(2):
            self.banana("hv1", "corm", "delete", "again")
            # Its peers are asked whether the name is free: again once hv2 has forgotten it, as an administrator would.
            wait_until(lambda: self.lab.exec("hv1", "banana", "corm", "create", "again", "--etherstub", "--force",
                                             check=False).returncode == 0, PATIENCE, "Corm again to be made anew")
        os.kill(libvirtd, signal.SIGCONT)
        made = self.banana("hv1", "corm", "show", "again")["id"]
        seen = lambda: [corm["id"] for corm in self.banana("hv2", "corm", "list")["corms"]  # noqa: E731
                        if corm["name"] == "hv1/again"]
        wait_until(lambda: seen() == [made], PATIENCE, "hv2 to know the last one")
        self.await_network("again")
        self.banana("hv1", "corm", "create", "marker", "--etherstub")
        self.addCleanup(self.lab.exec, "hv1", "banana", "corm", "delete", "marker", check=False)
        self.await_network("marker")
        self.assertEqual(seen(), [made])
        self.assertIn("bn-again", self.lab.exec("hv2", "ip", "-br", "link").stdout)

    # ---- kinds of Corm -------------------------------------------------------------------------------------------

    def test_two_guests_on_an_etherstub(self) -> None:
        made = self.corm("stub", "--etherstub", "--mtu", "1500")
        self.assertEqual((made["kind"], made["device"], made["mtu"]), ("etherstub", "", 1500))
        for host, name, address in (("hv1", "one", "10.77.0.71/24"), ("hv2", "two", "10.77.0.72/24")):
            self.start(Vm(name, [Nic(network="banana-stub", address=address)]), host)
        for name, other in (("one", "10.77.0.72"), ("two", "10.77.0.71")):
            wait_until(lambda at=name: self.asks(at, "traffic df --peer {} --size 100 --timeout 2", other), PATIENCE,
                       f"{name} to be answered by {other}")
            self.assertTrue(self.asks(name, "traffic df --peer {} --size 1500 --count 20 --timeout 15", other))
        self.assertEqual([wire["format"] for wire in self.banana("hv1", "wire", "list")["wires"]], ["native", "vxlan"])
        self.unreachable("10.77.0.71")  # no uplink: not a word to ext
        text = self.refused("hv1", "banana", "corm", "delete", "stub")
        self.assertIn("hv1/one/net0", text)
        self.assertIn("hv2/two/net0", text)
        self.assertIn("hv1/stub", self.refused("hv2", "banana", "corm", "delete", "stub"))  # it is hv1's
        self.remove("one", "two")
        self.await_nothing_left("hv1/one/net0", "hv2/two/net0")
        self.banana("hv1", "corm", "delete", "stub")
        for host in ("hv1", "hv2"):
            wait_until(lambda at=host: "banana-stub" not in self.lab.virsh(at, "net-list", "--all", "--name").split(),
                       PATIENCE, f"network banana-stub to leave {host}")
            wait_until(lambda at=host: "bn-stub" not in self.lab.exec(at, "ip", "-br", "link").stdout, PATIENCE,
                       f"anchor bn-stub to leave {host}")

    def asks(self, guest: str, command: str, address: str) -> bool:
        return self.lab.guest_sh(guest, f"{command.format(address)} >/dev/null; echo status $?",
                                 timeout=60).strip().endswith("status 0")

    def test_adopted_bridge(self) -> None:
        plain = self.box("hv1", "plain", "10.77.8.1")
        self.lab.exec("hv1", "ip", "-batch", "-", stdin="""\
link add br7 type bridge
link set plain master br7
link set br7 up
address add 10.77.8.254/24 dev br7
""")
        self.addCleanup(self.lab.exec, "hv1", "ip", "link", "del", "br7")
        before = self.bridge_facts("br7")
        made = self.corm("adopted", "--bridge", "br7")
        self.assertEqual((made["kind"], made["bridge"], made["mtu"]), ("bridge", "br7", 1500))
        for host, name, address in (("hv1", "near", "10.77.8.2"), ("hv2", "away", "10.77.8.3")):
            box = self.box(host, name, address, "adopted")
            self.reach_whole(plain.address, host, space=box.name)
            self.reach_whole(address, "hv1")  # the bridge's own address, too
        self.doCleanups_but_bridge()
        self.banana("hv1", "corm", "delete", "adopted")
        self.assertEqual(self.bridge_facts("br7"), before)
        self.reach("10.77.8.1", "hv1")

    def doCleanups_but_bridge(self) -> None:
        for host, name in (("hv1", "near"), ("hv2", "away")):
            self.banana(host, "disconnect", name)
        for host in ("hv1", "hv2"):
            self.await_no_devices(host)

    def bridge_facts(self, bridge: str) -> list[object]:
        links = json.loads(self.lab.exec("hv1", "ip", "-j", "-d", "link").stdout)
        addresses = self.lab.exec("hv1", "ip", "-br", "address", "show", "dev", bridge).stdout
        return [sorted((link["ifname"], link["mtu"], link.get("master"), link.get("address"), link.get("promiscuity"))
                       for link in links if link["ifname"] == bridge or link.get("master") == bridge), addresses]

    def test_move_addresses(self) -> None:
        uplink = self.box("hv1", "up0", GATEWAY)
        self.lab.exec("hv1", "ip", "-batch", "-", stdin=f"""\
address add {MOVED}/24 dev up0
address add 192.0.2.2/24 dev up0
address add 198.51.100.1/25 dev up0
route add 203.0.113.0/24 via {GATEWAY} metric 7
route add default via {GATEWAY} src {MOVED}
""")
        addresses, routes = self.addresses("up0"), self.routes()
        text = self.refused("hv1", "banana", "corm", "create", "moved", "--uplink", "up0")
        self.assertIn("--move-addresses", text)
        self.assertEqual((self.addresses("up0"), self.routes()), (addresses, routes))
        self.reach(GATEWAY, "hv1")
        made = self.corm("moved", "--uplink", "up0", "--move-addresses")
        bridge = str(made["bridge"])
        self.assertEqual(self.addresses("up0"), [])
        self.assertEqual(self.addresses(bridge), addresses)
        self.assertEqual(self.routes(), sorted(route.replace("dev up0", f"dev {bridge}") for route in routes))
        self.reach_whole(GATEWAY, "hv1")
        with self.lab.spawn("hv1", "traffic", "serve") as server:
            server.expect("LISTENING")
            self.reach_whole(MOVED, "hv1", space=uplink.name)
        # They outlive the daemon, and are not moved twice.
        self.lab.kill_daemon("hv1", "bananad")
        self.lab.start_bananad("hv1")
        self.assertEqual(self.addresses(bridge), addresses)
        self.reach(GATEWAY, "hv1")
        wait_until(lambda: self.is_whole("hv1"), PATIENCE, "hv1 to have its peer and libvirt")
        self.banana("hv1", "corm", "delete", "moved")
        self.assertEqual((self.addresses("up0"), self.routes()), (addresses, sorted(routes)))
        self.reach_whole(GATEWAY, "hv1")

    def addressed(self, device: str) -> None:
        """A netdev of hv1's that holds an address, for the length of a test."""
        self.lab.exec("hv1", "ip", "-batch", "-", stdin=f"""\
link add {device} type veth peer name {device}far
link set {device}far up
link set {device} up
address add {MOVED}/24 dev {device}
""")
        self.addCleanup(self.lab.exec, "hv1", "ip", "link", "del", device, check=False)

    def test_move_addresses_of_both_families(self) -> None:
        """With the uplink's IPv6 addresses its bridge speaks IPv6, and after a boot, too."""
        def held(device: str) -> list[str]:
            told = self.lab.exec("hv1", "ip", "-6", "-json", "address", "show", "dev", device, "scope", "global")
            return [one["local"] for link in json.loads(told.stdout) for one in link.get("addr_info", []) if one]

        def add(device: str) -> None:
            self.lab.exec("hv1", "ip", "-batch", "-", stdin=f"""\
address add 2001:db8::2/64 dev {device} nodad
route add 2001:db8:1::/48 via 2001:db8::1 dev {device}
""")
        self.addressed("up2")
        self.lab.exec("hv1", "tee", "/proc/sys/net/ipv6/conf/up2/disable_ipv6", stdin="0")  # the lab has it off
        add("up2")
        bridge = str(self.corm("both", "--uplink", "up2", "--move-addresses")["bridge"])
        for _ in ("at first", "as after a boot"):
            self.assertEqual((held("up2"), held(bridge)), ([], ["2001:db8::2"]))
            self.assertEqual((self.addresses("up2"), len(self.addresses(bridge))), ([], 1))
            self.assertIn(f"via 2001:db8::1 dev {bridge}",
                          self.lab.exec("hv1", "ip", "-6", "route", "show", "2001:db8:1::/48").stdout)
            with product.without_bananad(self.lab, "hv1"):
                self.lab.exec("hv1", "ip", "link", "del", bridge)
                self.lab.exec("hv1", "ip", "address", "add", f"{MOVED}/24", "dev", "up2")
                add("up2")
            wait_until(lambda: held("up2") == [] and self.addresses(bridge), PATIENCE, "the addresses to move")
        wait_until(lambda: self.is_whole("hv1"), PATIENCE, "hv1 to have its peer and libvirt")
        self.banana("hv1", "corm", "delete", "both")
        self.assertEqual(held("up2"), ["2001:db8::2"])

    def test_moved_addresses_return_before_the_corm_goes(self) -> None:
        """Whatever dies in between: here libvirt hangs, and the daemon is killed while it waits."""
        self.addressed("up1")
        addresses = self.addresses("up1")
        self.corm("halfway", "--uplink", "up1", "--move-addresses")
        self.assertEqual(self.addresses("up1"), [])
        libvirtd, = self.lab.pids("hv1", "libvirtd")
        os.kill(libvirtd, signal.SIGSTOP)
        self.addCleanup(os.kill, libvirtd, signal.SIGCONT)
        with self.lab.spawn("hv1", "banana", "corm", "delete", "halfway"):
            wait_until(lambda: "halfway" not in json.dumps(self.banana("hv1", "corm", "list")), PATIENCE,
                       "Corm halfway to go")
            self.assertEqual(self.addresses("up1"), addresses)
            self.lab.kill_daemon("hv1", "bananad", signal.SIGKILL)
        os.kill(libvirtd, signal.SIGCONT)
        self.lab.start_bananad("hv1")
        wait_until(lambda: self.is_whole("hv1"), PATIENCE, "hv1 to have its peer and libvirt")
        self.assertEqual(self.addresses("up1"), addresses)
        self.assertNotIn("halfway", json.dumps(self.banana("hv1", "corm", "list")))
        self.lab.virsh("hv1", "net-destroy", "banana-halfway")
        self.lab.virsh("hv1", "net-undefine", "banana-halfway")

    def test_a_corm_that_cannot_be_deleted_stays(self) -> None:
        self.addressed("up2")
        bridge = str(self.corm("stays", "--uplink", "up2", "--move-addresses")["bridge"])
        self.lab.exec("hv1", "ip", "link", "del", "up2")
        held = self.addresses(bridge)
        self.assertRegex(self.refused("hv1", "banana", "corm", "delete", "stays"),
                         rf"delete Corm hv1/stays: bridge {bridge} holds the address {MOVED}/24 of uplink up2: ")
        self.assertEqual(self.addresses(bridge), held)
        self.assertIn("hv1/stays", json.dumps(self.banana("hv1", "corm", "list")))
        self.lab.exec("hv1", "ip", "address", "flush", "dev", bridge)
        self.banana("hv1", "corm", "delete", "stays")
        self.assertNotIn(bridge, self.lab.exec("hv1", "ip", "-br", "link").stdout)

    def test_another_hosts_name_in_the_configuration(self) -> None:
        """Under it, the Corm and its bridge would be nobody's. bananad does not start, and touches nothing."""
        self.addressed("up3")
        at_first = self.addresses("up3")
        bridge = str(self.corm("named", "--uplink", "up3", "--move-addresses")["bridge"])
        config = self.lab.host("hv1").root / "etc/banana/bananad.toml"
        before, links = config.read_text(), self.lab.exec("hv1", "ip", "-br", "link").stdout
        self.lab.kill_daemon("hv1", "bananad")
        try:
            config.write_text(before.replace('host = "hv1"', 'host = "hv9"'))
            said = self.refused("hv1", "timeout", "20", build_dir() / "bananad", "--config", "/etc/banana/bananad.toml")
            self.assertRegex(said, 'state.db has the records of host hv1, but bananad.toml says host = "hv9".*'
                                   'Put host = "hv1" back')
            self.assertEqual(self.lab.exec("hv1", "ip", "-br", "link").stdout, links)
            self.assertEqual(self.addresses(bridge), at_first)
        finally:
            config.write_text(before)
            self.lab.start_bananad("hv1")
        wait_until(lambda: self.is_whole("hv1"), PATIENCE, "hv1 to have its peer and libvirt")
        self.banana("hv1", "corm", "delete", "named")
        self.assertEqual(self.addresses("up3"), at_first)

    def addresses(self, device: str) -> list[str]:
        found = json.loads(self.lab.exec("hv1", "ip", "-4", "-j", "address", "show", "dev", device).stdout)
        return [f"{one['local']}/{one['prefixlen']} {one.get('broadcast')} {one['scope']} {one.get('secondary')}"
                for link in found for one in link.get("addr_info", [])]

    def routes(self) -> list[str]:
        lines = self.lab.exec("hv1", "ip", "-4", "route").stdout.splitlines()
        return sorted(line.strip() for line in lines if " eth0" not in line and "linkdown" not in line)

    # ---- what a Corm allows --------------------------------------------------------------------------------------

    def test_allowed_formats(self) -> None:
        self.corm("formats", "--etherstub", "--allow-formats", "native")
        self.box("hv1", "near", "10.77.9.1", "formats")
        Box(self, "hv2", "away", "10.77.9.2/24")
        self.banana("hv2", "spike", "adopt", "away", "--device", "away")
        self.addCleanup(self.banana, "hv2", "spike", "delete", "away")
        for wire in ("auto", "vxlan"):
            text = self.refused("hv2", "banana", "connect", "away", "formats", "--wire", wire)
            self.assertRegex(text, "formats.*native|native.*formats")
        self.define(Vm("late", [Nic(network="banana-formats")]), "hv2")
        self.assertRegex(self.refused("hv2", "virsh", "start", "late"), "hv1/formats.*native|native.*hv1/formats")
        self.assertEqual(self.state("hv2", "late"), "shut off")
        self.assertEqual([wire["name"] for wire in self.banana("hv1", "wire", "list")["wires"]], ["hv1/dev/near"])

    def test_allowed_hosts(self) -> None:
        self.corm("hosts", "--etherstub", "--allow-hosts", "hv1")
        self.box("hv1", "near", "10.77.9.3", "hosts")
        self.define(Vm("late", [Nic(network="banana-hosts")]), "hv2")
        text = self.refused("hv2", "virsh", "start", "late")
        self.assertIn("Corm hv1/hosts does not allow host hv2; it allows hv1", text)
        Box(self, "hv2", "away", "10.77.9.4/24")
        self.banana("hv2", "spike", "adopt", "away", "--device", "away")
        self.addCleanup(self.banana, "hv2", "spike", "delete", "away")
        self.assertIn("does not allow host hv2", self.refused("hv2", "banana", "connect", "away", "hosts"))
        self.assertEqual([wire["name"] for wire in self.banana("hv1", "wire", "list")["wires"]], ["hv1/dev/near"])

    def test_refused_before_anything_is_changed(self) -> None:
        links = self.lab.exec("hv1", "ip", "-br", "link").stdout
        for words, why in ((("new", "--uplink", "nowhere0"), "nowhere0"), (("new", "--uplink", "eth1"), "eth1"),
                           (("lab", "--etherstub"), "taken"), (("new", "--bridge", "eth0"), "eth0"),
                           (("new", "--uplink", "eth0"), "--move-addresses"), (("Odd", "--etherstub"), "Odd"),
                           (("thirteen-long", "--etherstub"), "thirteen-long"),
                           (("new", "--etherstub", "--mtu", "1000"), "mtu")):
            self.assertIn(why.lower(), self.refused("hv1", "banana", "corm", "create", *words).lower())
        self.assertIn("lab", self.refused("hv2", "banana", "corm", "create", "lab", "--etherstub"))
        self.assertEqual(self.lab.exec("hv1", "ip", "-br", "link").stdout, links)
        self.assertEqual([corm["name"] for corm in self.banana("hv1", "corm", "list")["corms"]], ["hv1/lab"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
