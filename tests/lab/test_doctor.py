#!/usr/bin/python3
"""What doctor, status and reload say of a host where something is wrong, and whether a host mends itself. Root.

    ext -- hv1 (Corm lab on eth1; near, a Spike on q0) ... hv2 (away, a Spike on q0)        q0: a veth's end
"""

import contextlib
import json
import pathlib
import re
import shutil
import socket
import sys
import tempfile
import unittest
from collections.abc import Iterator

sys.dont_write_bytecode = True

import lab_base  # noqa: E402
import lab_guest  # noqa: E402
import lab_product as product  # noqa: E402
from banana_lab import Lab, LabError, Nic, Vm, wait_until  # noqa: E402

REFUSED, TIMEOUT = 4, 3
SPIKES = {"hv1": "near", "hv2": "away"}
NETWORK = "<network><name>{}</name><forward mode='bridge'/><bridge name='br9'/></network>"


class DoctorTest(unittest.TestCase):
    lab: Lab
    pki: pathlib.Path

    @classmethod
    def setUpClass(cls) -> None:
        cls.pki = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="banana-pki-")))
        cls.lab = cls.enterClassContext(product.own_lab(cls, 2, pki=cls.pki))
        product.wait_whole(cls.lab)
        product.create_corm(cls.lab, *SPIKES)
        for host, name in SPIKES.items():
            cls.make_device(host)
            product.banana(cls.lab, host, "spike", "adopt", name, "--device", "q0")
            product.banana(cls.lab, host, "connect", name, "lab")

    @classmethod
    def make_device(cls, host: str) -> None:
        cls.lab.exec(host, "ip", "link", "add", "q0", "type", "veth", "peer", "name", "q1")

    def await_check(self, host: str, name: str, well: bool, words: str) -> dict[str, object]:
        found: dict[str, object] = {}

        def told() -> bool:
            found.clear()
            found.update(product.doctor(self.lab, host, name))
            return found["ok"] is well and re.search(words, f"{found['text']} -> {found['advice']}") is not None

        try:
            wait_until(told, 30, f"doctor's {name}", 0.1)
        except LabError as error:
            raise LabError(f"{error}: {found}") from None
        return found

    def setUp(self) -> None:
        product.wait_peers(self.lab)
        for host in SPIKES:
            self.await_well(host)

    def await_well(self, host: str) -> None:
        def bad() -> list[object]:
            return [one for one in product.ask(self.lab, host, "doctor")["checks"] if not one["ok"]]

        try:
            wait_until(lambda: not bad(), 30, f"doctor of {host} to be well", 0.1)
        except LabError as error:
            raise LabError(f"{error}: {bad()}") from None

    def warnings(self, host: str) -> str:
        return "\n".join(product.ask(self.lab, host, "status")["warnings"])

    # ---- What is well ------------------------------------------------------------------------------------------------

    def test_status_of_a_host_where_all_is_well(self) -> None:
        for host in SPIKES:
            status = product.ask(self.lab, host, "status")
            self.assertEqual((status["spikes"], status["wires"]), (1, 1 if host == "hv2" else 2), host)
            self.assertEqual([peer["error"] for peer in status["peers"]], [""])
            self.assertNotIn("not tried yet", product.banana(self.lab, host, "status"))
            self.assertEqual(self.lab.exec(host, "banana", "doctor").returncode, 0)

    # ---- Files -------------------------------------------------------------------------------------------------------

    def test_records_that_cannot_be_written(self) -> None:
        self.await_check("hv1", "state", True, "/var/lib/banana")
        self.lab.exec("hv1", "mount", "--bind", "/var/lib/banana", "/var/lib/banana")
        try:
            self.lab.exec("hv1", "mount", "-o", "remount,bind,ro", "/var/lib/banana")
            self.await_check("hv1", "state", False,
                             r"write /var/lib/banana/doctor\.tmp: Read-only file system -> make room")
        finally:
            self.lab.exec("hv1", "umount", "/var/lib/banana")
        self.await_check("hv1", "state", True, "/var/lib/banana")
        self.assertEqual(list((self.lab.host("hv1").root / "var/lib/banana").glob("doctor*")), [])

    @contextlib.contextmanager
    def certificate(self, pki: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
        """hv2's files are those of `name` meanwhile."""
        own = self.lab.host("hv2").root / "etc/banana/pki"
        with tempfile.TemporaryDirectory(prefix="banana-pki-") as directory:
            kept = pathlib.Path(directory)
            for suffix in ("crt", "key"):
                shutil.copy2(own / f"hv2.{suffix}", kept)
                (own / f"hv2.{suffix}").write_bytes((pki / f"{name}.{suffix}").read_bytes())
            try:
                yield own
            finally:
                for path in kept.iterdir():
                    shutil.copy2(path, own)
                product.banana(self.lab, "hv2", "reload")

    def issue(self, directory: str, *words: str) -> None:
        lab_base.run([str(lab_base.build_dir() / "banana"), "pki", *words, "--dir", directory])

    def test_a_certificate_that_peers_would_refuse(self) -> None:
        self.await_check("hv2", "certificates", True, r"controller's of hv2: 82\d days left, tunnel's|; tunnel's")
        with tempfile.TemporaryDirectory(prefix="banana-pki-") as other:
            self.issue(other, "init")
            self.issue(other, "issue", "hv2")
            self.issue(str(self.pki), "issue", "hv7", "--overwrite")
            for pki, name, words in ((pathlib.Path(other), "hv2", r"is not signed by this cluster's CA"),
                                     (self.pki, "hv7", r"is of host 'hv7'; 'hv2' was expected")):
                with self.subTest(words), self.certificate(pki, name):
                    said = product.refused(self.lab, "hv2", "banana", "reload", status=REFUSED)
                    self.assertRegex(said, rf"peers will refuse this host \(/etc/banana/pki/hv2\.crt\): .*{words}")
                    self.await_check("hv2", "certificates", False, rf"{words}.* -> .*banana pki issue hv2")
                    self.assertRegex(self.warnings("hv2"), words)
                    # The one in use stayed: whoever loses a connection gets it again.
                    product.restart_bananad(self.lab, "hv1")
                    product.wait_peers(self.lab)

    def test_a_certificate_that_ends_soon(self) -> None:
        with tempfile.TemporaryDirectory(prefix="banana-pki-") as directory:
            self.issue(str(self.pki), "issue", "hv2", "--days", "2", "--out", directory)
            with self.certificate(pathlib.Path(directory), "hv2"):
                ends = r"certificate /etc/banana/pki/hv2\.crt ends in [12] days?, on 20"
                self.assertRegex(product.banana(self.lab, "hv2", "reload"), rf"reloaded: certificates\nwarning: {ends}")
                self.assertTrue(self.await_check("hv2", "certificates", True, ends)["warning"])
                self.assertRegex(product.banana(self.lab, "hv2", "doctor"), rf"WARN  certificates: {ends}.*\n +-> ")
                self.assertRegex(self.warnings("hv2"), ends)
        self.assertNotIn("warning", product.doctor(self.lab, "hv2", "certificates"))

    def test_hooks(self) -> None:
        self.await_check("hv1", "libvirt hooks", True, "qemu and network")
        hook = self.lab.host("hv1").root / "etc/libvirt/hooks/network.d/50-banana"
        self.addCleanup(hook.write_text, hook.read_text())
        hook.write_text("#!/bin/sh\nexit 0\n")
        self.await_check("hv1", "libvirt hooks", False,
                         "the hook network is not Banana's -> make install.*restart libvirtd")
        self.assertEqual(self.lab.exec("hv1", "banana", "doctor", check=False).returncode, 1)

    # ---- Networks and devices ----------------------------------------------------------------------------------------

    def test_a_network_that_is_somebody_elses(self) -> None:
        for host, name in (("hv1", "banana-mine"), ("hv2", "banana-yours")):
            self.lab.exec(host, "virsh", "-q", "net-define", "/dev/stdin", stdin=NETWORK.format(name))
        self.addCleanup(self.lab.virsh, "hv1", "net-undefine", "banana-mine")
        said = product.refused(self.lab, "hv1", "banana", "corm", "create", "mine", "--etherstub", status=REFUSED)
        self.assertRegex(said, "host hv1 has a libvirt network banana-mine that is not Banana's")
        product.banana(self.lab, "hv1", "corm", "create", "yours", "--etherstub")
        self.addCleanup(product.banana, self.lab, "hv1", "corm", "delete", "yours")
        self.await_check("hv2", "Corms", False, "banana-yours: .* is not Banana's -> .*net-undefine")
        self.assertIn("banana-yours", self.warnings("hv2"))
        self.lab.virsh("hv2", "net-undefine", "banana-yours")
        self.await_check("hv2", "Corms", True, "for itself")

    def test_an_adopted_device_that_is_gone(self) -> None:
        for host, name in SPIKES.items():
            with self.subTest(host):
                self.await_check(host, "adopted devices", True, "each is there")
                self.lab.exec(host, "ip", "link", "del", "q0")
                self.await_check(host, "adopted devices", False,
                                 f"device q0 of Spike {host}/dev/{name} is not there -> make the device again")
                bad = [one["name"] for one in product.ask(self.lab, host, "doctor")["checks"] if not one["ok"]]
                self.assertEqual(bad, ["adopted devices"])  # nothing that a restart would mend
                self.assertIn("device q0 is not there", product.banana(self.lab, host, "spike", "list"))
                self.make_device(host)
                self.await_well(host)
                self.assertEqual([one["problem"] for one in product.spikes(self.lab, host)], [""])

    def test_an_adopted_device_that_is_asked_for_as_it_comes_back(self) -> None:
        """The question is read before the news of the device, which is there by then."""
        for host, name in SPIKES.items():
            question = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "wire.show", "params": {"name": name}}) + "\n"
            with self.subTest(host), socket.socket(socket.AF_UNIX) as control:
                control.connect(product.socket_path(self.lab, host))
                answers = control.makefile("rb")
                self.lab.exec(host, "ip", "link", "del", "q0")
                self.await_check(host, "adopted devices", False, "device q0 of Spike .* is not there")
                with product.hanging(self.lab, host):
                    control.sendall(question.encode())
                    self.make_device(host)
                self.assertIn(b'"result"', answers.readline())
                self.await_well(host)

    def test_an_uplink_that_is_gone(self) -> None:
        self.lab.exec("hv1", "ip", "link", "add", "u0", "type", "veth", "peer", "name", "u1")
        product.banana(self.lab, "hv1", "corm", "create", "up", "--uplink", "u0")
        self.addCleanup(product.banana, self.lab, "hv1", "corm", "delete", "up")
        self.lab.exec("hv1", "ip", "link", "del", "u0")
        self.await_check("hv1", "kernel", False, "u0: there is no such device on this host -> bring the device back")

    def test_a_port_of_an_anchor_that_is_no_spike(self) -> None:
        self.await_check("hv1", "anchors' ports", True, "each is a Spike")
        self.lab.exec("hv1", "ip", "-batch", "-", stdin="tuntap add stray0 mode tap\nlink set stray0 master bn-lab\n")
        self.await_check("hv1", "anchors' ports", False, r"cut off: stray0 in bn-lab \(of no domain\) is no Spike -> ")
        self.lab.exec("hv1", "ip", "link", "del", "stray0")
        self.lab.start_vm(Vm("vm1", [Nic("banana-lab", address="10.77.0.10/24")]), "hv1")
        self.addCleanup(self.lab.virsh, "hv1", "destroy", "vm1")
        self.await_well("hv1")
        # One that is refused when it is there already: no hook of libvirt's is asked about a bridge's port.
        self.lab.exec("hv1", "virsh", "attach-device", "vm1", "/dev/stdin", "--live",
                      stdin=lab_guest.nic_xml("vm1", Nic(bridge="bn-lab", mtu=9000), 1))
        self.await_check("hv1", "anchors' ports", False,
                         r"vnet\d+ in bn-lab \(\S+ of domain vm1\) is no Spike -> .*network banana-CORM.*virsh detach")

    def test_underlay(self) -> None:
        self.await_check("hv1", "underlay", True, r"10\.99\.0\.1 is on eth0, MTU 1500")
        self.lab.exec("hv1", "ip", "address", "del", "10.99.0.1/24", "dev", "eth0")
        try:
            self.await_check("hv1", "underlay", False, r"10\.99\.0\.1 is on no device of this host -> .*bananad\.toml")
        finally:
            self.lab.exec("hv1", "ip", "address", "add", "10.99.0.1/24", "dev", "eth0")

    def test_a_tunnel_that_nobody_needs(self) -> None:
        root = self.lab.host("hv1").root
        config, key = root / "etc/banana/bananad.toml", root / "etc/banana/pki/hv1-tunnel.key"
        self.await_check("hv1", "tunnel", True, "UDP port 4790")
        text = config.read_text()
        key.rename(f"{key}.away")
        try:
            self.lab.kill_daemon("hv1", "banana-tunneld")
            self.await_check("hv1", "tunnel", True, "none is needed: no peer is of another site")
            config.write_text(text.replace('site = "site1"', 'site = "elsewhere"'))
            product.restart_bananad(self.lab, "hv1")
            self.await_check("hv1", "tunnel", False, "no DTLS wires to hv2: .* -> .*banana pki issue hv1 --role tunnel")
        finally:
            (key.parent / f"{key.name}.away").rename(key)
            config.write_text(text)
            product.restart_bananad(self.lab, "hv1")

    # ---- What mends itself, and what does not ------------------------------------------------------------------------

    def test_the_vxlan_filter_is_made_anew(self) -> None:
        allowed = product.allowed_senders(self.lab, "hv1")
        self.assertEqual(len(allowed), 1)
        self.lab.exec("hv1", "nft", "flush", "ruleset")
        there = ("nft", "list", "chain", "inet", "banana", "input")
        wait_until(lambda: self.lab.exec("hv1", *there, check=False).returncode == 0, 10, "the table", 0.1)
        self.assertEqual(product.allowed_senders(self.lab, "hv1"), allowed)
        self.assertIn("somebody took the table `banana`", product.bananad_log(self.lab, "hv1"))

    def test_ping_with_a_daemon_that_hangs(self) -> None:
        with product.hanging(self.lab, "hv2"):
            for name in ("away", "nobody"):
                done = self.lab.exec("hv2", "banana", "ping", name, "--timeout", "0.5", check=False)
                self.assertEqual((done.returncode, done.stdout), (TIMEOUT, ""))
                self.assertEqual(done.stderr, "banana: ask bananad: no answer in time (is it hung, or busy?)\n")
        product.wait_peers(self.lab)
        with product.rule(self.lab, "hv2", "prerouting", "udp dport 4789"):
            done = self.lab.exec("hv2", "banana", "ping", "away", "--timeout", "0.5", check=False)
            self.assertEqual((done.returncode, done.stderr), (TIMEOUT, "banana: ping away: no probe came back\n"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
