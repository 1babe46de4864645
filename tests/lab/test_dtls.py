#!/usr/bin/python3
"""DTLS wires between two sites: guests, certificates, and the death of each daemon. Root. What is
timed is test_dtls_timed.py's.

    ext -- hv1 (site a; Corm lab) ... underlay, MTU 1500, later 1280 ... hv2 (site b)       vm1, vm2: guests
                                   \\... hv3 (site a): VXLAN to hv1, unless asked for
"""

import contextlib
import json
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time
import unittest
from collections.abc import Iterator

sys.dont_write_bytecode = True

import lab_guest  # noqa: E402
import lab_hosts  # noqa: E402
import lab_measure  # noqa: E402
import lab_product as product  # noqa: E402
from banana_lab import EXT, LabError, Nic, Vm, wait_until  # noqa: E402
from lab_dtls import ADDRESS, SPIKE, DtlsCase, tunnel_log, wait_tunnels  # noqa: E402
from lab_pki import redated  # noqa: E402

SECRET = "banana-in-clear"
DAY = 86400
MANY = 24  # wires of one tunnel
LIFE = 10  # seconds of a certificate that expires: a tunnel that was just refused must come up within them


class DtlsTest(DtlsCase):
    def whole(self, size: int = 1500, count: int = 50) -> bool:
        """Whether packets of this size, that may not be cut, all come back."""
        return self.lab.exec(EXT, "traffic", "df", "--peer", ADDRESS, "--size", size, "--count", count, "--timeout", 20,
                             check=False).returncode == 0

    def test_1_a_wire_and_what_it_says(self) -> None:
        wire = product.wire(self.lab, "hv1", SPIKE)
        assert wire is not None
        self.assertEqual((wire["format"], wire["device"]), ("dtls", f"bnd{wire['connector']}"))
        self.assertIn("other site", wire["why"])
        self.assertTrue(self.whole())
        shown = json.loads(product.banana(self.lab, "hv1", "--json", "wire", "show", SPIKE))
        lane = shown["tunnel"]["lanes"][0]
        self.assertEqual(lane["session"]["state"], "up")
        self.assertRegex(lane["session"]["cipher"], "AES-128-GCM|CHACHA20")
        self.assertGreater(shown["tunnel"]["received"]["frames"], 40)
        self.assertGreater(shown["tunnel"]["sent"]["frames"], 40)
        self.assertIn("cut inside the wire", shown["underlay"]["cost"])
        self.assertRegex(product.banana(self.lab, "hv1", "wire", "show", SPIKE), r"WAKE-UPS/S +FRAMES/WAKE-UP")
        for size in (64, 1514):
            self.assertIn("3 came back", product.banana(self.lab, "hv2", "ping", SPIKE, "--size", size))

    def test_1_asked_for_within_a_site(self) -> None:
        """hv1 and hv3 are of one site. By a guest's metadata, and by `banana connect`; without either it is VXLAN."""
        guest = Vm("vm2", [Nic(network="banana-lab", address="10.77.0.13/24", wire="dtls")])
        self.addCleanup(self.lab.exec, "hv3", "sh", "-c", "virsh -q destroy vm2; virsh -q undefine vm2", check=False)
        self.lab.start_vm(guest, "hv3")
        self.lab.exec("hv3", "ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1")
        self.addCleanup(self.lab.exec, "hv3", "ip", "link", "del", "d0")
        product.banana(self.lab, "hv3", "spike", "adopt", "s", "--device", "d0")
        self.addCleanup(product.banana, self.lab, "hv3", "spike", "delete", "s")
        product.banana(self.lab, "hv3", "connect", "s", "lab", "--wire", "dtls")
        self.addCleanup(product.banana, self.lab, "hv3", "disconnect", "s")
        for spike in ("hv3/vm2/net0", "hv3/dev/s"):
            for host in ("hv1", "hv3"):
                wire = product.wire(self.lab, host, spike)
                assert wire is not None
                self.assertEqual((wire["format"], wire["why"]), ("dtls", "asked for"))
                shown = product.banana(self.lab, host, "wire", "show", spike)
                self.assertRegex(shown, r"format +dtls\nwhy +asked for\n")
            self.assertIn("3 came back", product.banana(self.lab, "hv1", "ping", spike))
        self.assertTrue(product.reaches(self.lab, "10.77.0.13"))
        product.banana(self.lab, "hv3", "disconnect", "s")
        product.banana(self.lab, "hv3", "connect", "s", "lab")
        wire = product.wire(self.lab, "hv1", "hv3/dev/s")
        assert wire is not None
        self.assertEqual((wire["format"], wire["why"]), ("vxlan", "auto: same site (a)"))

    def test_2_nothing_in_clear(self) -> None:
        """What a guest says is not on the underlay; what is, is UDP of the tunnel."""
        sniff = self.lab.spawn("underlay", "python3", "-u", "-c", SNIFFER, SECRET)
        self.addCleanup(sniff.kill)
        sniff.expect("READY\n", 10)
        self.lab.exec(EXT, "python3", "-c", SAY, ADDRESS, SECRET)
        sniff.close_input()
        sniff.wait(10)
        seen = json.loads(sniff.output.splitlines()[-1])
        self.assertGreater(seen["tunnel"], 10)
        self.assertEqual(seen["clear"], 0)

    def test_4_bananad_killed(self) -> None:
        """Traffic is not bananad's: none of it is lost, and no session is made anew."""
        self.bring("hv2")
        before = {host: self.lab.pids(host, "banana-tunneld") for host in ("hv1", "hv2")}
        with lab_measure.Traffic(self.lab, ADDRESS) as flow:
            for host in ("hv1", "hv2"):
                product.restart_bananad(self.lab, host)
            product.wait_peers(self.lab)
            wait_tunnels(self.lab)
            report = flow.finish()
        self.assertTrue(report["complete"])
        for way in ("to_guest", "from_guest"):
            self.assertGreater(report[way]["sent"], 100)
            self.assertEqual([report[way][key] for key in ("lost", "duplicates")], [0, 0], report[way])
        self.assertEqual({host: self.lab.pids(host, "banana-tunneld") for host in ("hv1", "hv2")}, before)
        product.wait_tidy(self.lab)

    def await_ping(self, spike: str) -> None:
        wait_until(lambda: "3 came back" in self.lab.exec("hv1", "banana", "ping", spike, check=False).stdout, 10,
                   f"an answer over {spike}'s wire", 0.1)

    def test_5_many_wires_of_a_killed_tunneld(self) -> None:
        """All are told to the next process, of either end, and carry frames."""
        names = [f"m{number}" for number in range(MANY)]
        links = "".join(f"link add {name} type veth peer name p{name}\nlink set {name} up\n" for name in names)
        self.lab.exec("hv2", "ip", "-batch", "-", stdin=links)
        for name in names:
            self.addCleanup(self.lab.exec, "hv2", "ip", "link", "del", name)
            product.banana(self.lab, "hv2", "spike", "adopt", name, "--device", name)
            self.addCleanup(product.banana, self.lab, "hv2", "spike", "delete", name)
            product.banana(self.lab, "hv2", "connect", name, "lab")
            self.addCleanup(product.banana, self.lab, "hv2", "disconnect", name)
        for host in ("hv2", "hv1"):
            self.lab.kill_daemon(host, "banana-tunneld", signal.SIGKILL)
            for name in names:
                self.await_ping(f"hv2/dev/{name}")
        product.wait_tidy(self.lab)

    def test_6_hotplug(self) -> None:
        self.bring("hv2")
        xml = lab_guest.nic_xml("vm1", Nic(network="banana-lab"), 1)
        self.lab.exec("hv2", "virsh", "-q", "attach-device", "vm1", "/dev/stdin", "--live", stdin=xml)
        mac = lab_guest.mac_of("vm1", 1)
        wait_until(lambda: mac in [one["mac"] for one in product.spikes(self.lab, "hv2")], 10, "its Spike")
        spike = next(one for one in product.spikes(self.lab, "hv2") if one["mac"] == mac)
        wait_until(lambda: (product.wire(self.lab, "hv1", spike["name"]) or {}).get("format") == "dtls", 10, "its wire")
        self.assertIn("3 came back", product.banana(self.lab, "hv1", "ping", spike["name"]))
        self.assertTrue(product.reaches(self.lab, "10.77.0.12"))
        self.lab.exec("hv2", "virsh", "-q", "detach-device", "vm1", "/dev/stdin", "--live", stdin=xml)
        wait_until(lambda: product.wire(self.lab, "hv1", spike["name"]) is None, 20, "its wire to go", 0.1)
        product.wait_tidy(self.lab)

    @contextlib.contextmanager
    def tunnel_pki(self, host: str, stem: str, pki: pathlib.Path) -> Iterator[None]:
        """A host's tunnel shows another certificate meanwhile."""
        target = self.lab.host(host).root / "etc/banana/pki"
        files = {f"{host}-tunnel.crt": f"{stem}.crt", f"{host}-tunnel.key": f"{stem}.key", "ca.crt": "ca.crt"}
        with tempfile.TemporaryDirectory(prefix="banana-pki-") as kept:
            shown = {name: (pki / source).read_bytes() for name, source in files.items()}
            for name, text in shown.items():
                shutil.copy(target / name, kept)
                (target / name).write_bytes(text)
            self.lab.kill_daemon(host, "banana-tunneld", signal.SIGKILL)
            try:
                yield
            finally:
                for name in files:
                    shutil.copy(pathlib.Path(kept) / name, target)
                with contextlib.suppress(LabError):
                    self.lab.kill_daemon(host, "banana-tunneld", signal.SIGKILL)
                wait_tunnels(self.lab, 30)

    def abilities(self, host: str, peer: str) -> dict:
        return next(one["info"]["capabilities"] for one in product.ask(self.lab, host, "peer.list")["peers"]
                    if one["name"] == peer)

    def told(self, words: str, host: str = "hv1") -> None:
        def seen() -> bool:
            return re.search(words, product.banana(self.lab, host, "peer", "list")) is not None
        try:
            wait_until(seen, 15, words, 0.1)
        except LabError:
            self.fail(f"not /{words}/ but: {product.banana(self.lab, host, 'peer', 'list')}")

    def test_7_wrong_ca(self) -> None:
        """Refused by either end; `banana peer list` says why; nothing is carried, and nothing migrates there."""
        self.bring("hv1")
        with tempfile.TemporaryDirectory(prefix="banana-pki-") as directory:
            other = pathlib.Path(directory)
            lab_hosts.make_pki(other, self.lab.hypervisors)
            with self.tunnel_pki("hv2", "hv2-tunnel", other):
                self.told(r"hv2 .*tunnel: .*(certificate|CA)")
                words = product.refused(self.lab, "hv1", *product.migrate_words("vm1", "hv2"))
                self.assertRegex(words, "tunnel")
                self.assertTrue(product.reaches(self.lab, ADDRESS))
        self.bring("hv2")

    def test_7_dates(self) -> None:
        """Of a certificate that is not valid where it is shown: its own banana-tunneld refuses it."""
        for begin, end, words in ((-20 * DAY, -DAY, "expired"), (DAY, 20 * DAY, "not yet valid")):
            with tempfile.TemporaryDirectory(prefix="banana-pki-") as directory:
                other = redated(self.pki / "hv2-tunnel.crt", self.pki, pathlib.Path(directory), begin, end).parent
                with self.subTest(words), self.tunnel_pki("hv2", "hv2-tunnel", other):
                    self.told(rf"hv1 .*tunnel: .*{words}", "hv2")
                    self.assertIn(words, tunnel_log(self.lab, "hv2"))

    def test_7_expires(self) -> None:
        """Of one that was good when its banana-tunneld began: the other end refuses it, and both say so."""
        with tempfile.TemporaryDirectory(prefix="banana-pki-") as directory:
            ends = time.time() + LIFE
            other = redated(self.pki / "hv2-tunnel.crt", self.pki, pathlib.Path(directory), -DAY, LIFE).parent
            with self.tunnel_pki("hv2", "hv2-tunnel", other):
                wait_tunnels(self.lab)
                wait_until(lambda: time.time() > ends + 1, LIFE + 5, "the certificate to expire", 0.1)
                self.lab.kill_daemon("hv1", "banana-tunneld", signal.SIGKILL)
                self.told(r"hv2 .*tunnel: .*expired")
                self.told(r"hv1 .*tunnel: .*refused this host's certificate .*expired", "hv2")
                for host in ("hv1", "hv2"):
                    self.assertIn("expired", tunnel_log(self.lab, host))

    def test_7_other_name(self) -> None:
        """Of another host: its own bananad does not use it. (Who does not ask bananad: tests/tunnel.)"""
        with self.tunnel_pki("hv2", "hv3-tunnel", self.pki):
            self.told(r"hv1 .*tunnel: .*is host hv3's, and this is hv2", "hv2")

    def test_8_controllers_certificate(self) -> None:
        """One of role controller makes no tunnel: banana-tunneld does not start, and the host says that it has none."""
        self.bring("hv1")
        pki = self.lab.host("hv2").root / "etc/banana/pki"
        with self.tunnel_pki("hv2", "hv2", pki):
            wait_until(lambda: "role" in product.ask(self.lab, "hv2", "status")["tunnel"]["problem"], 15, "the reason", 0.1)
            # For a moment it may be a restart; then the peers are told.
            wait_until(lambda: "dtls" not in self.abilities("hv1", "hv2")["formats"], 15, "hv1 to be told", 0.1)
            words = product.refused(self.lab, "hv1", *product.migrate_words("vm1", "hv2"))
            self.assertRegex(words, "host hv2 has no tunnel: .*role")
        self.bring("hv2")

    def test_9_small_path(self) -> None:
        """Full-size frames pass over an underlay of 1280 B."""
        self.bring("hv2")
        for host in ("hv1", "hv2"):
            self.lab.exec("underlay", "ip", "link", "set", f"u-{host}", "mtu", 1280)
            self.lab.exec(host, "ip", "link", "set", "eth0", "mtu", 1280)
        wait_until(lambda: self.whole(count=5), 15, "full-size frames over a path of 1280 B", 0.1)
        self.assertTrue(self.whole())
        for host in ("hv1", "hv2"):
            wait_until(lambda: self.whole(count=5) and product.ask(self.lab, host, "wire.show", name=SPIKE)  # noqa: B023
                       ["underlay"]["path_mtu"] <= 1280, 20, f"{host} to find the path's MTU", 0.1)
        self.assertTrue(self.whole())


SAY = """
import socket, sys, time
for _ in range(20):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.sendto(sys.argv[2].encode() * 20, (sys.argv[1], 9))
    time.sleep(0.01)
"""

# On the bridge that joins the hosts: counts the tunnel's datagrams, and frames with the secret in them.
SNIFFER = """
import json, select, socket, sys
secret, tunnel, clear = sys.argv[1].encode(), 0, 0
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
print("READY", flush=True)
while True:
    ready, _, _ = select.select([tap, sys.stdin], [], [])
    if tap in ready:
        frame = tap.recv(65536)
        clear += secret in frame
        tunnel += frame[12:14] == b"\\x08\\x00" and frame[23] == 17 and (4790).to_bytes(2, "big") in frame[34:38]
    elif sys.stdin in ready:
        break
print(json.dumps({"tunnel": tunnel, "clear": clear}))
"""


if __name__ == "__main__":
    unittest.main(verbosity=2)
