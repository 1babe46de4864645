#!/usr/bin/python3
"""What two hosts no longer agree about: records that one of them lost, words that came late, places that changed.

  hv1: Corm lab on eth1      hv2: Corm other (etherstub)      hv3, hv4        d0, d2: netdevs, to be adopted
"""

import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import unittest
from contextlib import closing
from typing import Any

import lab_product as product
from banana_lab import Lab, LabError, Nic, Vm, wait_until
from test_peers import grant, rogue

PATIENCE = 30
UUID = "11111111-2222-3333-4444-555555555555"
ADDRESS = "10.77.0.10"
GUEST_SPIKE = "hv2/vm1/net0"

# Run on a host in its bananad's place: peers find it up, but its answer to wire.open is none. Prints what it is asked.
BAD_ANSWERS = """
import json, socket, ssl, sys, threading
me, address = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"/etc/banana/pki/{me}.crt", f"/etc/banana/pki/{me}.key")
hello = {"protocol": 1, "host": me, "site": "site1", "version": "0",
         "capabilities": {"name": me, "site": "site1", "underlay": address, "underlay_mtu": 1500,
                          "formats": ["native", "vxlan"]}}
def serve(plain):
    with context.wrap_socket(plain, server_side=True) as peer:
        for line in peer.makefile("rb"):
            asked = json.loads(line)
            print(asked["method"], json.dumps(asked.get("params"), sort_keys=True), flush=True)
            reply = {"jsonrpc": "2.0", "id": asked["id"], "result": hello if asked["method"] == "hello" else {}}
            peer.sendall(json.dumps(reply).encode() + b"\\n")
with socket.create_server((address, 7471)) as server:
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


# On a host that others reach under another address than its own: what comes (fragments have no port) and goes of VXLAN.
NAT = """
table ip lab_nat {{
    chain i {{
        type filter hook prerouting priority -400;
        ip daddr {other} ip protocol udp ip daddr set {own}
    }}
    chain o {{
        type filter hook postrouting priority 400;
        ip saddr {own} udp dport 4789 ip saddr set {other}
    }}
}}
"""


def interface(number: int, mac: str, **changes: object) -> dict[str, object]:
    """As banana-hook tells of it."""
    return {"name": f"net{number}", "alias": f"net{number}", "mac": mac, "type": "network", "network": "", "port": "",
            "dev": "", "mode": "", "bridge": "", "target": "", "model": "virtio", "mtu": 0, "bandwidth_inbound": False,
            "bandwidth_outbound": False, "alias_predicted": False, "line": 1, **changes}


def domain(name: str, *interfaces: dict[str, object], **changes: object) -> dict[str, object]:
    return {"uuid": UUID, "name": name, "problem": "", "interfaces": interfaces, "spikes": [], **changes}


class StraysTest(unittest.TestCase):
    lab: Lab

    @classmethod
    def setUpClass(cls) -> None:
        cls.lab = cls.enterClassContext(product.own_lab(cls, 4))
        product.wait_whole(cls.lab)
        product.banana(cls.lab, "hv1", "corm", "create", "lab", "--uplink", "eth1")
        product.banana(cls.lab, "hv2", "corm", "create", "other", "--etherstub")
        for host in ("hv1", "hv2", "hv3"):
            wait_until(lambda at=host: {"banana-lab", "banana-other"} <= set(
                cls.lab.virsh(at, "net-list", "--name").split()), PATIENCE, f"both networks on {host}")
            cls.lab.exec(host, "ip", "-batch", "-",
                         stdin="link add d0 type veth peer name d1\nlink add d2 type veth peer name d3\n")

    def banana(self, host: str, *words: object) -> str:
        return product.banana(self.lab, host, *words)

    def wires(self, host: str) -> dict[str, str]:
        """Of the Corms on this host: name -> phase."""
        return {wire["name"]: wire["phase"] for wire in product.ask(self.lab, host, "wire.list")["wires"]
                if wire["corm"].startswith(f"{host}/")}

    def states(self, host: str) -> dict[str, str]:
        return {spike["name"]: spike["state"] for spike in product.spikes(self.lab, host)}

    def hook(self, host: str, operation: str, told: dict[str, object]) -> dict[str, Any]:
        return product.ask(self.lab, host, "hook.qemu", operation=operation, domain=told)

    def until(self, condition: object, what: str) -> None:
        wait_until(condition, PATIENCE, what, 0.1)  # type: ignore[arg-type]

    def passes(self, host: str, name: str) -> None:
        self.until(lambda: self.lab.exec(host, "banana", "ping", name, check=False).returncode == 0, "a probe to pass")

    def adopt(self, host: str, name: str, device: str, corm: str, *options: str) -> None:
        self.banana(host, "spike", "adopt", name, "--device", device)
        self.banana(host, "connect", name, corm, *options)
        self.addCleanup(self.until, lambda: f"{host}/dev/{name}" not in self.states(host), f"{name} to be forgotten")
        self.addCleanup(self.give_up, host, name)

    def give_up(self, host: str, name: str) -> None:
        if f"{host}/dev/{name}" in self.states(host):
            self.banana(host, "disconnect", name)
            self.banana(host, "spike", "delete", name)

    def without_records(self, host: str) -> None:
        """bananad is killed, and finds no records when it starts again."""
        self.lab.kill_daemon(host, "bananad", signal.SIGKILL)
        for file in (self.lab.host(host).root / "var/lib/banana").glob("state.db*"):
            file.unlink()
        self.lab.start_bananad(host)
        product.wait_peers(self.lab)

    # ---- Records -----------------------------------------------------------------------------------------------------

    def test_release_that_could_not_be_told(self) -> None:
        """And the Spike is wired elsewhere by the time that it could be."""
        self.adopt("hv2", "s", "d0", "lab")
        with product.without_bananad(self.lab, "hv1"):
            self.banana("hv2", "disconnect", "s")
            self.banana("hv2", "connect", "s", "other")
        product.wait_peers(self.lab)
        self.until(lambda: self.wires("hv1") == {}, "hv1 to give up the wire")
        self.assertEqual(self.wires("hv2"), {"hv2/dev/s": "active"})

    def test_deleted_while_the_corms_host_is_away(self) -> None:
        self.banana("hv3", "spike", "adopt", "x", "--device", "d0")
        self.banana("hv3", "connect", "x", "lab")
        with product.without_bananad(self.lab, "hv1"):
            self.banana("hv3", "disconnect", "x")
            self.banana("hv3", "spike", "delete", "x")
            self.assertNotIn("hv3/dev/x", self.states("hv3"))
        product.wait_peers(self.lab)
        self.until(lambda: self.wires("hv1") == {}, "hv1 to give up the wire")

    def test_the_spikes_host_lost_its_records(self) -> None:
        self.banana("hv3", "spike", "adopt", "r", "--device", "d2")
        self.banana("hv3", "connect", "r", "lab")
        self.without_records("hv3")
        self.until(lambda: self.wires("hv1") == {}, "hv1 to give up the wire")

    def test_the_corms_host_lost_its_records(self) -> None:
        self.adopt("hv3", "v", "d0", "lab")
        self.without_records("hv1")
        self.banana("hv1", "corm", "create", "lab", "--uplink", "eth1")
        self.until(lambda: self.wires("hv1") == {"hv3/dev/v": "active"}, "the wire to be made anew")
        self.passes("hv3", "v")

    def test_made_anew_though_it_fails_at_first(self) -> None:
        self.adopt("hv3", "w", "d0", "lab", "--wire", "vxlan")
        with product.rule(self.lab, "hv3", "prerouting", "udp dport 4789"):
            self.without_records("hv1")
            self.banana("hv1", "corm", "create", "lab", "--uplink", "eth1")
            self.until(lambda: "again until it succeeds" in product.bananad_log(self.lab, "hv3"), "an attempt to fail")
        self.passes("hv3", "w")
        self.assertEqual(self.states("hv3")["hv3/dev/w"], "wired")

    def test_restarted_while_a_wire_is_made_anew(self) -> None:
        """A wire that is being made anew is no `connect` that nobody waits for any more."""
        self.adopt("hv3", "w", "d0", "lab", "--wire", "vxlan")
        before = self.ends("hv3")
        with product.rule(self.lab, "hv3", "prerouting", "udp dport 4789"):
            self.without_records("hv1")
            self.banana("hv1", "corm", "create", "lab", "--uplink", "eth1")
            wait_until(lambda: self.ends("hv3") - before, PATIENCE, "another end of a wire, to be probed", 0.01)
            product.restart_bananad(self.lab, "hv3")
        self.passes("hv3", "w")
        self.assertEqual(self.states("hv3")["hv3/dev/w"], "wired")

    def ends(self, host: str) -> set[str]:
        return {device for device in product.devices(self.lab, host) if device.startswith("bnx")}

    def test_reached_under_another_address(self) -> None:
        """As behind 1:1 NAT: the wire is not made anew each time that the two hosts compare what they have."""
        other, own = "10.99.0.34", "10.99.0.3"
        self.lab.exec("hv3", "ip", "address", "add", f"{other}/24", "dev", "eth0")
        self.lab.exec("hv3", "nft", "-f", "-", stdin=NAT.format(other=other, own=own))
        self.addCleanup(self.lab.exec, "hv3", "nft", "delete", "table", "ip", "lab_nat")
        config = self.lab.host("hv1").root / "etc/banana/bananad.toml"
        before = config.read_text()
        self.addCleanup(self.with_config, "hv1", before)
        self.with_config("hv1", before.replace(f'address = "{own}"', f'address = "{own}"\nunderlay = "{other}"'))
        self.adopt("hv3", "a", "d0", "lab", "--wire", "vxlan")
        stays = self.ends("hv3")
        self.adopt("hv3", "b", "d2", "lab", "--wire", "vxlan")
        lost = self.ends("hv3") - stays
        # They are compared in order: when b's wire is another, a's has been looked at.
        self.with_records("hv1", "delete from record where kind = 'wire' and document like ?", "%hv3/dev/b%")
        self.until(lambda: self.ends("hv3") and not self.ends("hv3") & lost, "b's wire to be made anew")
        self.passes("hv3", "b")
        self.assertLessEqual(stays, self.ends("hv3"))
        self.passes("hv3", "a")

    def with_config(self, host: str, text: str) -> None:
        (self.lab.host(host).root / "etc/banana/bananad.toml").write_text(text)
        product.restart_bananad(self.lab, host)
        product.wait_peers(self.lab)

    def test_records_that_cannot_be_read(self) -> None:
        """Of a later version, say: what they stand for goes on, and is not closed by the other side."""
        self.adopt("hv3", "q", "d2", "lab")
        for host, kind, word in (("hv3", "spike", '"kind":"netdev"'), ("hv1", "wire", '"phase":"active"')):
            with self.subTest(kind):
                before = product.devices(self.lab, "hv3"), product.devices(self.lab, "hv1")
                other = word[:-1] + '9"'
                self.with_record(host, kind, word, other)
                time.sleep(1)  # the other side asks when the peer is up: nothing is to come of it
                self.with_record(host, kind, other, word)
                self.passes("hv3", "q")
                self.assertEqual((product.devices(self.lab, "hv3"), product.devices(self.lab, "hv1")), before)

    def with_record(self, host: str, kind: str, old: str, new: str) -> None:
        """bananad is killed, and finds a record changed."""
        self.with_records(host, "update record set document = replace(document, ?, ?) where kind = ?", old, new, kind)

    def with_records(self, host: str, change: str, *values: str) -> None:
        self.lab.kill_daemon(host, "bananad", signal.SIGKILL)
        home = self.lab.host(host).root / "var/lib/banana"
        with tempfile.TemporaryDirectory() as directory:  # SQLite would look for the file by a path that is not ours
            for file in home.glob("state.db*"):
                shutil.move(file, directory)
            with closing(sqlite3.connect(f"{directory}/state.db")) as store:
                done = store.execute(change, values)
                self.assertGreaterEqual(done.rowcount, 1)
                store.commit()
                store.execute("pragma wal_checkpoint(truncate)")
            shutil.copy(f"{directory}/state.db", home)
        self.lab.start_bananad(host)
        product.wait_peers(self.lab)

    def test_nobody_elses_netdev(self) -> None:
        """Also not once it was wired; and what was wired leaves no rows behind."""
        self.adopt("hv2", "t", "d2", "lab")
        spike = next(one for one in product.spikes(self.lab, "hv2") if one["name"] == "hv2/dev/t")
        self.banana("hv2", "disconnect", "t")
        opening = {"name": "hv3/x/net0", "allow_any_mac": True, "corm": "hv1/lab", "preference": "vxlan"}
        keys = [f"{number:08}-0000-0000-0000-000000000000/52:54:00:00:01:{number:02x}" for number in range(20)]
        calls: list = [["wire.open", {**opening, "spike": spike["key"], "mac": spike["mac"]}]]
        for key in keys:
            calls += [["wire.open", {**opening, "spike": key, "mac": key[-17:]}],
                      ["wire.close", {"spike": key, "epoch": 0}]]
        with product.without_bananad(self.lab, "hv3"):
            replies = rogue(self.lab, "hv3", "10.99.0.1", calls)
            self.assertRegex(replies[1]["error"]["message"], "Spike hv2/dev/t is of host hv2, not of host hv3")
            opened = [reply["result"]["half"]["epoch"] for reply in replies[2::2]]
            self.assertEqual(len(set(opened)), len(keys))  # an epoch is never handed out twice
        product.wait_peers(self.lab)
        self.assertEqual(self.rows("hv1", "wire"), len(self.wires("hv1")))
        self.banana("hv2", "connect", "t", "lab")

    def rows(self, host: str, kind: str) -> int:
        """Of a copy: bananad has the file for itself."""
        with tempfile.TemporaryDirectory() as directory:
            for file in (self.lab.host(host).root / "var/lib/banana").glob("state.db*"):
                shutil.copy(file, directory)
            with closing(sqlite3.connect(f"{directory}/state.db")) as copy:
                return copy.execute("select count(*) from record where kind = ?", (kind,)).fetchone()[0]

    def test_granted_to_two(self) -> None:
        """An older grant does not take the place of who came by a later one."""
        self.adopt("hv2", "g", "d0", "lab")
        wire = product.wire(self.lab, "hv1", "hv2/dev/g")
        assert wire
        pki = self.lab.host("hv2").root / "etc/banana/pki"
        asking = {"mac": wire["mac"], "allow_any_mac": False, "preference": "vxlan"}
        ask = lambda host, seconds: rogue(  # noqa: E731
            self.lab, host, "10.99.0.1",
            [["wire.prepare", {**asking, "grant": grant(pki, "hv2", wire, "hv2", host, seconds)}]])[1]
        with product.without_bananad(self.lab, "hv3", "hv4"):
            self.assertIn("result", ask("hv3", 90))
            self.assertRegex(ask("hv4", 60)["error"]["message"], "host hv3 has a later grant than host hv4")
            self.assertIn("result", ask("hv4", 100))
        product.wait_peers(self.lab)
        self.until(lambda: self.wires("hv1") == {"hv2/dev/g": "active"}, "the standby half to go, which nobody has")

    def test_more_wires_than_a_hosts_share(self) -> None:
        """Under invented keys; and names that are none, or too long."""
        config = self.lab.host("hv1").root / "etc/banana/bananad.toml"
        before = config.read_text()
        self.addCleanup(self.banana, "hv1", "reload")
        self.addCleanup(config.write_text, before)
        config.write_text(before.replace("[libvirt]", "[limits]\nmax_wires = 4\n\n[libvirt]"))
        self.banana("hv1", "reload")
        opening = {"name": "hv3/x/net0", "allow_any_mac": True, "corm": "hv1/lab", "preference": "vxlan"}
        keys = [f"{number:08}-0000-0000-0000-000000000000/52:54:00:00:02:{number:02x}" for number in range(5)]
        opens = [["wire.open", {**opening, "spike": key, "mac": key[-17:]}] for key in keys]
        question = ["wire.check", {"spike": keys[4], "mac": keys[4][-17:], "corm": "hv1/lab", "preference": "vxlan"}]
        names = ["n" * 197 + "/x/y", "hv3/x", "hv3/b\u00fcro/net0", "hv3/win\\dom/net0", "hv3/a\nb/net0"]
        calls = [["wire.open", {**opens[0][1], "name": name}] for name in names] + opens[:4] + [question]
        closes = [["wire.close", {"spike": key, "epoch": 0}] for key in keys]
        with product.without_bananad(self.lab, "hv3"):
            replies = rogue(self.lab, "hv3", "10.99.0.1", calls)[1:]
            for name, reply in zip(names, replies, strict=False):
                self.assertRegex(reply["error"]["message"], "Spike name '.*': it must be HOME/DOMAIN/INTERFACE", name)
            self.assertEqual(["result" in reply for reply in replies[len(names):]], [True, True, True, False, False])
            for reply in replies[-2:]:
                self.assertRegex(reply["error"]["message"], "host hv1 carries 3 wires of host hv3, the most that one")
            self.adopt("hv2", "q", "d0", "lab")  # the others have theirs
            replies = rogue(self.lab, "hv3", "10.99.0.1", [*closes, opens[4]])
            self.assertIn("result", replies[-1])
        product.wait_peers(self.lab)
        self.until(lambda: self.wires("hv1") == {"hv2/dev/q": "active"}, "hv3's wires to go")

    def test_an_answer_that_is_none(self) -> None:
        """The Corm's host has opened a wire for it: it is told to close that."""
        corm = {"host": "hv4", "kind": "etherstub", "device": "", "mtu": 1500, "formats": ["vxlan"], "id": "00000bad",
                "name": "bad"}
        self.banana("hv2", "spike", "adopt", "b", "--device", "d0")
        self.addCleanup(self.banana, "hv2", "spike", "delete", "b")
        with product.without_bananad(self.lab, "hv4"), \
                self.lab.spawn("hv4", "python3", "-c", BAD_ANSWERS, "hv4", "10.99.0.4") as bad:
            rogue(self.lab, "hv4", "10.99.0.2", [["corm.sync", {"corms": [corm]}]])
            up = lambda: next(one["state"] for one in product.ask(self.lab, "hv2", "peer.list")["peers"]  # noqa: E731
                              if one["name"] == "hv4") == "up"
            self.until(up, "hv2 to take it for a peer")
            self.assertRegex(product.refused(self.lab, "hv2", "banana", "connect", "b", "bad"),
                             "answer of host hv4: member 'corm' is missing")
            bad.expect('wire.close {"epoch": 0, "handed_over": false, "spike": "hv2/dev/b"}')
            self.assertEqual(self.states("hv2")["hv2/dev/b"], "unwired")
        product.wait_peers(self.lab)

    def test_lists_of_ever_new_corms(self) -> None:
        """The latest one is what stands in the end, and who asks meanwhile is answered."""
        corm = {"host": "hv4", "kind": "etherstub", "device": "", "mtu": 1500, "formats": ["native"]}
        lists = [[f"z{number}x{at}" for at in range(256)] for number in range(12)]
        calls = [["corm.sync", {"corms": [{**corm, "id": f"{number:04}{at:04}", "name": name}
                                          for at, name in enumerate(names)]}] for number, names in enumerate(lists)]
        known = lambda: sorted(one["short"] for one in product.ask(self.lab, "hv1", "corm.list")["corms"]  # noqa: E731
                               if one["host"] == "hv4")
        networks = lambda: sorted(name.removeprefix("banana-") for name in self.lab.virsh(  # noqa: E731
            "hv1", "net-list", "--name").split() if name.startswith("banana-z"))
        anchors = lambda: sorted(name.removeprefix("bn-") for name in os.listdir(  # noqa: E731
            self.lab.host("hv1").root / "sys/class/net") if name.startswith("bn-z"))
        longest = 0.0

        def stands(wanted: list[str]) -> bool:
            nonlocal longest
            begin = time.monotonic()
            seen = known()
            longest = max(longest, time.monotonic() - begin)
            return seen == sorted(wanted) and anchors() == seen

        with product.without_bananad(self.lab, "hv4"):
            self.assertEqual(["result" in reply for reply in rogue(self.lab, "hv4", "10.99.0.1", calls)], [True] * 13)
            wait_until(lambda: stands(lists[-1]), 120, "the last list to stand", 0.05)
            wait_until(lambda: stands(lists[-1]) and networks() == sorted(lists[-1]), 120, "its networks", 0.5)
        self.assertEqual({peer["name"]: peer["state"] for peer in product.ask(self.lab, "hv1", "peer.list")["peers"]
                          if peer["name"] != "hv4"}, {"hv2": "up", "hv3": "up"})
        wait_until(lambda: stands([]) and networks() == [], 120, "hv4's own list, which is empty", 0.5)
        product.wait_peers(self.lab)
        self.assertLess(longest, 2)
        print(f"the longest wait for hv1's list of Corms: {longest:.2f} s", file=sys.stderr)

    # ---- Words that come late ----------------------------------------------------------------------------------------

    def test_prepare_again_while_the_first_is_late(self) -> None:
        config = self.lab.host("hv2").root / "etc/banana/bananad.toml"
        before = config.read_text()
        self.addCleanup(self.banana, "hv2", "reload")
        self.addCleanup(config.write_text, before)
        config.write_text(before.replace("[libvirt]", "[limits]\nhook_timeout_ms = 1200\n"
                                                      "peer_call_timeout_ms = 1100\n\n[libvirt]"))
        self.banana("hv2", "reload")
        guest = domain("late", interface(0, "52:54:00:00:00:01", network="banana-lab"))
        self.addCleanup(self.hook, "hv2", "release", guest)
        with product.rule(self.lab, "hv2", "prerouting", "udp dport 4789"):  # its probes come back after that
            with self.assertRaisesRegex(LabError, "could not be built within 1200 ms"):
                self.hook("hv2", "prepare", guest)
            second = product.begin(self.lab, "hv2", "hook.qemu", operation="prepare", domain=guest)
        self.assertEqual(second(), {})
        self.settled("late")
        self.assertEqual(self.states("hv2")["hv2/late/net0"], "built")

    def test_started_again_while_its_end_is_late(self) -> None:
        """Its end waits for one NIC's Corm's host, while the other NIC is prepared already."""
        guest = domain("again", interface(0, "52:54:00:00:00:bb", network="banana-other"),
                       interface(1, "52:54:00:00:00:aa", network="banana-lab"))
        self.addCleanup(self.hook, "hv2", "release", guest)
        self.hook("hv2", "prepare", guest)
        with product.hanging(self.lab, "hv1"):
            self.hook("hv2", "stopped", guest)
            self.hook("hv2", "release", guest)
            second = product.begin(self.lab, "hv2", "hook.qemu", operation="prepare", domain=guest)
            # The first NIC's wire is there; the second one waits for hv1.
            self.until(lambda: self.wires("hv2").get("hv2/again/net0") == "active", "the first NIC to be wired")
        self.assertEqual(second(), {})
        self.settled("again")
        built = {name: state for name, state in self.states("hv2").items() if "/again/" in name}
        self.assertEqual(built, {"hv2/again/net0": "built", "hv2/again/net1": "built"})

    def settled(self, name: str) -> None:
        """What was under way for this guest has ended: another question takes the same locks, after it."""
        for spike in product.spikes(self.lab, "hv2"):
            if spike["domain"] == name:
                self.lab.exec("hv2", "banana", "disconnect", spike["name"], check=False)

    def test_a_tap_that_comes_late(self) -> None:
        """A guest's interface whose tap goes just when it is to be wired is wired when the tap is there."""
        guest = domain("hot", interface(0, "52:54:00:00:00:05", network="banana-lab", target="vnet77"))
        self.addCleanup(self.hook, "hv2", "release", guest)
        self.hook("hv2", "reconnect", guest)
        self.until(lambda: "Spike hv2/hot/net0: " in product.bananad_log(self.lab, "hv2"), "it to fail")
        self.until(lambda: self.wires("hv1") == {}, "the wire to be given up")
        self.lab.exec("hv2", "ip", "tuntap", "add", "vnet77", "mode", "tap")
        self.addCleanup(self.lab.exec, "hv2", "ip", "link", "del", "vnet77")
        # Not in the anchor: bananad would look at libvirt's guests, of which this one is none, and end it.
        self.lab.exec("hv2", "ip", "link", "set", "vnet77", "address", "fe:54:00:00:00:05", "up")
        self.hook("hv2", "reconnect", guest)
        self.until(lambda: self.states("hv2").get("hv2/hot/net0") == "wired", "it to be wired")

    def test_a_visitor_that_may_not_come(self) -> None:
        """A macvtap endpoint that was made for a migration goes when that is refused."""
        hints = [{"interface": "net0", "wire": "", "name": "hv2/dev/mv", "home": "hv2", "corm": "hv1/lab", "uuid": UUID,
                  "mac": "52:54:00:00:00:02", "line": 1, "target": 0}]
        guest = domain("visitor", interface(0, "52:54:00:00:00:02", dev="bne0000beef", type="direct"), spikes=hints)
        before = product.devices(self.lab, "hv3")
        self.hook("hv3", "migrate", guest)
        with self.assertRaisesRegex(LabError, "Spike hv2/dev/mv is of host hv2, not of host hv3"):
            self.hook("hv3", "prepare", guest)
        self.assertEqual(product.devices(self.lab, "hv3"), before)

    # ---- Places ------------------------------------------------------------------------------------------------------

    def test_a_dtls_wires_tap_is_made_anew(self) -> None:
        self.adopt("hv3", "w", "d2", "lab", "--wire", "dtls")
        wire = product.wire(self.lab, "hv3", "hv3/dev/w")
        assert wire
        self.lab.kill_daemon("hv3", "bananad", signal.SIGKILL)
        self.lab.exec("hv3", "ip", "link", "del", wire["device"])
        self.lab.start_bananad("hv3")
        product.wait_peers(self.lab)
        self.passes("hv3", "w")

    def test_an_underlay_address_changes(self) -> None:
        self.adopt("hv3", "u", "d2", "lab")
        self.lab.exec("hv3", "ip", "address", "add", "10.99.0.33/24", "dev", "eth0")
        config = self.lab.host("hv3").root / "etc/banana/bananad.toml"
        before = config.read_text()
        other = before.replace('underlay = "10.99.0.3"', 'underlay = "10.99.0.33"')
        self.assertNotEqual(other, before)
        for text in (other, before):
            config.write_text(text)
            product.restart_bananad(self.lab, "hv3")
            product.wait_peers(self.lab)
            self.until(lambda: self.lab.exec("hv3", "banana", "ping", "u", check=False).returncode == 0,
                       "the wire to carry frames")

    # ---- A migration that ends before QEMU has a part in it ------------------------------------------------------------

    def test_the_destination_dies_before_the_guest_is_there(self) -> None:
        self.lab.start_vm(Vm("vm1", [Nic("banana-lab", address=f"{ADDRESS}/24")]), "hv2")
        self.addCleanup(self.lab.exec, "hv2", "virsh", "-q", "destroy", "vm1", check=False)
        granted = lambda: next(one["granted"] for one in product.spikes(self.lab, "hv2")  # noqa: E731
                               if one["name"] == GUEST_SPIKE)
        migration = self.lab.spawn("hv2", *product.migrate_words("vm1", "hv3"))
        self.addCleanup(migration.kill)
        wait_until(lambda: self.wires("hv1").get(GUEST_SPIKE) == "standby", PATIENCE, "a standby wire", 0.003)
        self.lab.kill_daemon("hv3", "bananad", signal.SIGKILL)
        self.addCleanup(product.wait_peers, self.lab)
        self.addCleanup(self.lab.start_bananad, "hv3")
        self.assertNotEqual(migration.wait(PATIENCE), 0)
        self.until(lambda: granted() == "", "the grant to end")
        self.lab.exec("hv2", *product.migrate_words("vm1", "hv1"), timeout=120)
        self.assertTrue(product.reaches(self.lab, ADDRESS))
        self.lab.virsh("hv1", "destroy", "vm1")


if __name__ == "__main__":
    unittest.main()
