#!/usr/bin/python3
"""Peers that are not what they should be: certificates, names, roles, garbage, and a host that reaches for what is
another's. Root.

    ext -- hv1 (Corm lab) ... hv2 (vm1, wired to lab) ... hv3: a member of the cluster, gone bad
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True

import lab_base  # noqa: E402
import lab_hosts  # noqa: E402
import lab_product as product  # noqa: E402
from banana_lab import Lab, Nic, Vm, wait_until  # noqa: E402

ADDRESS = "10.77.0.10"
SPIKE = "hv2/vm1/net0"

# Run on a host, with its certificate: says hello to a peer as `host`, then makes the calls given on stdin; prints each
# reply on a line. bananad of that host is not running then, as a peer has one connection.
ROGUE = """
import json, socket, ssl, sys
wanted = json.load(sys.stdin)
context = ssl.create_default_context(cafile="/etc/banana/pki/ca.crt")
context.check_hostname = False
context.load_cert_chain(f"/etc/banana/pki/{wanted['me']}.crt", f"/etc/banana/pki/{wanted['me']}.key")
with context.wrap_socket(socket.create_connection((wanted["address"], 7471), 20)) as peer:
    lines = peer.makefile("rb")
    hello = {"protocol": 1, "host": wanted["says"], "site": "site1", "version": "0",
             "capabilities": {"name": wanted["says"], "site": "site1", "underlay": "10.99.0.3", "underlay_mtu": 1500,
                              "formats": ["native", "vxlan"]}}
    for number, (method, params) in enumerate([["hello", hello], *wanted["calls"]]):
        if method == "raw":
            peer.sendall(params.encode())
        else:
            peer.sendall(json.dumps({"jsonrpc": "2.0", "id": number, "method": method,
                                     "params": params}).encode() + b"\\n")
        while True:
            line = lines.readline()
            if not line or "method" not in json.loads(line):  # the daemon's own requests are not ours to answer
                break
        print(line.decode().strip() or "null")
"""


def rogue(lab: Lab, me: str, address: str, calls: list, says: str = "") -> list:
    """The replies of a host's daemon to the calls of another, whose own is not there; the first is hello's."""
    asked = {"me": me, "says": says or me, "address": address, "calls": calls}
    done = lab.exec(me, "python3", "-c", ROGUE, stdin=json.dumps(asked))
    return [json.loads(line) for line in done.stdout.splitlines()]


def grant(pki: pathlib.Path, signer: str, wire: dict, owner: str, destination: str, seconds: int = 100) -> dict:
    """As src/migration/grant.h says."""
    fields = {"spike": wire["spike"], "name": wire["name"], "owner": owner, "owner_epoch": wire["epoch"],
              "destination": destination, "corm": "hv1/lab", "nonce": f"{seconds:032x}",
              "expires": int(time.time()) + seconds}
    text = "banana-grant-1\n" + "".join(
        f"{key} {value}\n" if isinstance(value, int) else f"{key} {len(value)}:{value}\n"
        for key, value in fields.items())
    signed = subprocess.run(["openssl", "dgst", "-sha256", "-sign", str(pki / f"{signer}.key")], check=True,
                            input=text.encode(), capture_output=True).stdout
    return {"grant": {"version": 1, **fields}, "signature": signed.hex(), "certificate": (pki / f"{signer}.crt").read_text()}


class PeersTest(unittest.TestCase):
    lab: Lab
    pki: pathlib.Path

    @classmethod
    def setUpClass(cls) -> None:
        cls.lab = cls.enterClassContext(product.own_lab(cls, 3))
        cls.pki = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="banana-pki-")))
        lab_hosts.make_pki(cls.pki, cls.lab.hypervisors)  # one whose CA key is at hand
        for host in cls.lab.hypervisors:
            cls.install(host.name, host.name)
            cls.lab.kill_daemon(host.name, "bananad")
        for host in cls.lab.hypervisors:
            cls.lab.start_bananad(host.name)
        product.wait_whole(cls.lab)
        product.create_corm(cls.lab, "hv2")
        cls.lab.start_vm(Vm("vm1", [Nic("banana-lab", address=f"{ADDRESS}/24")]), "hv2")
        product.wait_tidy(cls.lab)

    @classmethod
    def install(cls, host: str, name: str, pki: pathlib.Path | None = None) -> None:
        """Gives a host a certificate, that of `name`, as its own."""
        target = cls.lab.host(host).root / "etc/banana/pki"
        for suffix in ("crt", "key"):
            (target / f"{host}.{suffix}").write_bytes(((pki or cls.pki) / f"{name}.{suffix}").read_bytes())
        (target / "ca.crt").write_bytes(((pki or cls.pki) / "ca.crt").read_bytes())

    def peer(self, host: str, name: str) -> dict:
        return next(one for one in product.ask(self.lab, host, "peer.list")["peers"] if one["name"] == name)

    # ---- Certificates ------------------------------------------------------------------------------------------------

    def shown(self, words: str) -> None:
        """hv3 bears a bad certificate: the others say so, and go on."""
        for host in ("hv1", "hv2"):
            wait_until(lambda: self.peer(host, "hv3")["state"] != "up", 30, f"{host} to drop hv3", 0.1)
        told = r"(?s)" + words
        seen = lambda: any(re.search(told, self.peer("hv1", "hv3")[key])  # noqa: E731
                           for key in ("error", "incoming_error"))
        wait_until(seen, 30, f"'{words}' in hv1's peer.list, which has {self.peer('hv1', 'hv3')}", 0.1)
        self.assertRegex(product.banana(self.lab, "hv1", "peer", "list"), told)
        self.assertRegex(product.bananad_log(self.lab, "hv1"), told)
        self.assertEqual(self.peer("hv1", "hv2")["state"], "up")
        self.assertTrue(product.reaches(self.lab, ADDRESS))
        self.assertEqual(len(product.ask(self.lab, "hv1", "corm.list")["corms"]), 1)

    def with_certificate(self, words: str, name: str, pki: pathlib.Path | None = None) -> None:
        # It is what a peer shows that is tried, so hv3's own daemon must be able to start with it, or is not needed:
        # a TLS server of openssl's in its place shows the same.
        self.lab.kill_daemon("hv3", "bananad")
        self.install("hv3", name, pki)
        server = self.lab.spawn("hv3", "openssl", "s_server", "-accept", "7471", "-cert", "/etc/banana/pki/hv3.crt",
                                "-key", "/etc/banana/pki/hv3.key", "-CAfile", "/etc/banana/pki/ca.crt", "-quiet",
                                "-Verify", "1")
        try:
            self.shown(words)
        finally:
            server.kill()
            self.install("hv3", "hv3")
            self.lab.start_bananad("hv3")
            product.wait_peers(self.lab)

    def test_1_down(self) -> None:
        with product.without_bananad(self.lab, "hv3"):
            self.shown(r"connect to 10.99.0.3:7471: Connection refused")
        product.wait_peers(self.lab)

    def test_2_wrong_ca(self) -> None:
        with tempfile.TemporaryDirectory(prefix="banana-pki-") as other:
            lab_hosts.make_pki(pathlib.Path(other), self.lab.hypervisors)
            self.with_certificate(r"hv3: (CA )?certificate '[^']*' of issuer '[^']*' is not signed by this cluster's "
                                  r"CA \(/etc/banana/pki/ca\.crt\)", "hv3", pathlib.Path(other))

    def test_3_wrong_name(self) -> None:
        self.issue("stranger")
        self.with_certificate(r"stranger", "stranger")

    def test_4_wrong_role(self) -> None:
        self.with_certificate(r"hv3: certificate '[^']*' has role 'tunnel'; peers need role 'controller'", "hv3-tunnel")

    def issue(self, name: str, *options: str) -> None:
        lab_base.run([str(lab_base.build_dir() / "banana"), "pki", "issue", name, "--dir", str(self.pki), *options])

    def test_5_expired(self) -> None:
        """openssl makes it: the product's own command has no certificates of yesterday."""
        with tempfile.TemporaryDirectory(prefix="banana-pki-") as directory:
            old = pathlib.Path(directory)
            (old / "ca.conf").write_text(
                f"[ca]\ndefault_ca=c\n[c]\ndatabase={old}/index\nnew_certs_dir={old}\nserial={old}/serial\n"
                f"default_md=sha256\npolicy=p\ncopy_extensions=copyall\n[p]\ncommonName=supplied\n")
            (old / "index").write_text("")
            (old / "serial").write_text("77\n")
            (old / "hv3.key").write_bytes((self.pki / "hv3.key").read_bytes())
            lab_base.run(["openssl", "x509", "-x509toreq", "-in", str(self.pki / "hv3.crt"), "-signkey",
                          str(self.pki / "hv3.key"), "-copy_extensions", "copyall", "-out", str(old / "request")])
            lab_base.run(["openssl", "ca", "-batch", "-notext", "-config", str(old / "ca.conf"), "-cert",
                          str(self.pki / "ca.crt"), "-keyfile", str(self.pki / "ca.key"), "-startdate",
                          "20200101000000Z", "-enddate", "20200201000000Z", "-in", str(old / "request"), "-out",
                          str(old / "hv3.crt")])
            (old / "ca.crt").write_bytes((self.pki / "ca.crt").read_bytes())
            self.with_certificate(r"expired", "hv3", old)

    # ---- A member that reaches for what is another's -----------------------------------------------------------------

    def rogue(self, address: str, calls: list, says: str = "hv3") -> list:
        return rogue(self.lab, "hv3", address, calls, says)

    def grant(self, owner: str, wire: dict, signer: str) -> dict:
        return grant(self.pki, signer, wire, owner, "hv3")

    def test_6_foreign_spike(self) -> None:
        wire = product.wire(self.lab, "hv1", SPIKE)
        assert wire
        key, epoch = wire["spike"], wire["epoch"]
        opening = {"spike": key, "name": SPIKE, "mac": wire["mac"], "allow_any_mac": False, "corm": "hv1/lab",
                   "preference": "auto"}
        calls = [["wire.activate", {"spike": key, "epoch": epoch}],
                 ["wire.activate", {"spike": key, "epoch": epoch + 1}],
                 ["wire.flip", {"spike": key, "epoch": epoch}], ["wire.back", {"spike": key}],
                 ["wire.close", {"spike": key, "epoch": epoch}], ["wire.open", opening],
                 ["wire.attach", {"spike": key, "epoch": epoch, "device": "eth0"}],
                 ["wire.prepare", {**opening, "grant": self.grant("hv3", wire, "hv3")}],
                 ["wire.prepare", {**opening, "grant": self.grant("hv2", wire, "hv3")}],
                 ["wire.prepare", {**opening, "grant": {}}], ["wire.prepare", opening]]
        with product.without_bananad(self.lab, "hv3"):
            before = product.wire(self.lab, "hv1", SPIKE), product.devices(self.lab, "hv1"), \
                product.allowed_senders(self.lab, "hv1")
            log = len(product.bananad_log(self.lab, "hv1"))
            hello, *replies = self.rogue("10.99.0.1", calls)
            self.assertIn("result", hello)
            said = product.bananad_log(self.lab, "hv1")[log:]
            for (method, _), reply in zip(calls, replies, strict=True):
                with self.subTest(method):
                    self.assertIn("error", reply)
            for words in ("activate", "flip", "flip back", "close", "open", "attach", "prepare"):
                with self.subTest(words):
                    lines = [line for line in said.splitlines() if f"refused: {words} of Spike" in line]
                    self.assertTrue(any(SPIKE in line and "hv3" in line for line in lines), said)
            self.assertEqual((product.wire(self.lab, "hv1", SPIKE), product.devices(self.lab, "hv1"),
                              product.allowed_senders(self.lab, "hv1")), before)
            # The owner gives it away to nobody while libvirt does not migrate the guest.
            log = len(product.bananad_log(self.lab, "hv2"))
            _, reply = self.rogue("10.99.0.2", [["spike.grant", {"spike": key}]])
            self.assertRegex(reply["error"]["message"], rf"{SPIKE}.*not being migrated.*hv3")
            self.assertRegex(product.bananad_log(self.lab, "hv2")[log:], rf"refused: host hv3 asks for Spike {SPIKE}")
            self.assertTrue(product.reaches(self.lab, ADDRESS))
        product.wait_peers(self.lab)
        product.wait_tidy(self.lab)

    def test_6_granted_and_no_more(self) -> None:
        """Whoever comes to a grant during a migration does not have the guest yet."""
        wire = product.wire(self.lab, "hv1", SPIKE)
        assert wire
        key = wire["spike"]
        asking = {"mac": wire["mac"], "allow_any_mac": False, "preference": "auto"}
        with product.without_bananad(self.lab, "hv3"):
            _, prepared = self.rogue("10.99.0.1", [["wire.prepare", {**asking, "grant": self.grant("hv2", wire, "hv2")}]])
            epoch = prepared["result"]["half"]["epoch"]
            asked = [[f"wire.{what}", {"spike": key, "epoch": epoch}] for what in ("activate", "flip", "activate")]
            _, *replies = self.rogue("10.99.0.1", asked)
            runs = "its guest runs on host hv2"
            for reply, why in zip(replies, (runs, "is host hv2's", runs), strict=True):
                self.assertRegex(reply["error"]["message"], f"Spike {SPIKE}.* {why}")
            self.assertTrue(product.reaches(self.lab, ADDRESS))
        product.wait_peers(self.lab)
        # hv3's own daemon knows nothing of that standby wire, which goes.
        wait_until(lambda: (product.wire(self.lab, "hv1", SPIKE) or {}).get("phase") == "active", 30, "it to go")
        product.wait_tidy(self.lab)

    def test_7_what_else_a_peer_may_not(self) -> None:
        foreign = {"id": "00000001", "name": "lab", "host": "hv1", "kind": "etherstub", "device": "", "mtu": 1500,
                   "hosts": [], "formats": ["native"]}
        calls = [["corm.delete", {"name": "lab"}], ["hook.qemu", {}], ["disconnect", {"spike": SPIKE}],
                 ["corm.sync", {"corms": [foreign]}], ["corm.reserve", {"name": "lab"}], ["no.such.method", {}],
                 ["spike.moved", {"name": "hv2/vm1/net0", "epoch": 9}], ["wire.flip", [1, 2]], ["wire.flip", {}]]
        with product.without_bananad(self.lab, "hv3"):
            before = product.snapshot_of(self.lab, "hv1")
            _, *replies = self.rogue("10.99.0.1", calls)
            for (method, _), reply in zip(calls, replies, strict=True):
                with self.subTest(method):
                    self.assertIn("error", reply)
            self.assertEqual(product.snapshot_of(self.lab, "hv1"), before)
            reply, = self.rogue("10.99.0.1", [], says="hv2")
            self.assertRegex(reply["error"]["message"], r"certificate of host 'hv3', but it says that it is 'hv2'")
        product.wait_peers(self.lab)

    def test_8_garbage_on_the_peer_port(self) -> None:
        with product.without_bananad(self.lab, "hv3"):
            for raw in ("junk\n", "[" * 100_000 + "\n", '{"x":"' + "y" * (2 << 20) + '"}\n'):
                with self.subTest(raw[:20]):
                    _, reply = self.rogue("10.99.0.1", [["raw", raw]])
                    self.assertIn(reply["error"]["code"], (-32700, -32600))
        garbage = "import socket,sys\ns=socket.create_connection(('10.99.0.1',7471),5)\ns.settimeout(20)\n" \
                  "s.sendall(bytes.fromhex(sys.argv[1])); s.shutdown(socket.SHUT_WR)\n" \
                  "try:\n  while s.recv(4096): pass\nexcept ConnectionError: pass\n"
        for data in (b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 500, b"\x16\x03\x01\0\x05", b""):
            with self.subTest(data[:10]):
                self.lab.exec("hv3", "python3", "-c", garbage, data.hex())  # it ends: the connection was closed
        # TLS without a certificate gets no byte of JSON in.
        done = self.lab.exec("hv3", "openssl", "s_client", "-connect", "10.99.0.1:7471", "-quiet", check=False,
                             stdin='{"jsonrpc":"2.0","id":1,"method":"hello","params":{}}\n')
        self.assertNotIn("jsonrpc", done.stdout)
        product.wait_peers(self.lab)
        self.assertTrue(product.reaches(self.lab, ADDRESS))
        self.assertEqual(self.peer("hv1", "hv2")["state"], "up")

    # ---- A host that joins -------------------------------------------------------------------------------------------

    def test_9_a_peer_that_is_added_by_reload(self) -> None:
        config = self.lab.host("hv1").root / "etc/banana/bananad.toml"
        text = config.read_text()
        self.addCleanup(config.write_text, text)
        without = re.sub(r'\n\[\[peer\]\]\nname = "hv3"\n.*\n.*\n', "\n", text)
        self.assertNotIn("hv3", without)
        config.write_text(without)
        product.restart_bananad(self.lab, "hv1")
        product.wait_peers(self.lab, ["hv1", "hv2"])
        self.assertEqual([one["name"] for one in product.ask(self.lab, "hv1", "peer.list")["peers"]], ["hv2"])
        config.write_text("underlay_mtu = 1400\n" + text)
        said = product.banana(self.lab, "hv1", "reload")
        self.assertIn("reloaded: peer hv3\n", said)
        self.assertIn("changed, waits for a restart of bananad: underlay_mtu\n", said)
        product.wait_peers(self.lab)


if __name__ == "__main__":
    unittest.main(verbosity=2)
