#!/usr/bin/python3
"""What an administrator or a stranger can get wrong on a host: commands, sockets, a full Corm. Root; no guests.

    hv1 (Corm lab on eth1; spare NICs d0 to d2) ... hv2
"""

import json
import socket
import sys
import unittest

sys.dont_write_bytecode = True

import lab_product as product  # noqa: E402
from banana_lab import Lab, LabError, wait_until  # noqa: E402
from test_peers import rogue  # noqa: E402

CORMS = 256  # of a host
PORTS = 1023 - 1  # of a Linux bridge, less the one that makes headroom
USAGE, REFUSED, NOT_FOUND = 2, 4, 10
MIB = 1 << 20

GARBAGE = {
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "no object": b"42\n",
    "batch": b'[{"jsonrpc":"2.0","id":1,"method":"status"}]\n',
    "nested": b"[" * 100_000 + b"\n",
    "nested objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"\n",
    "oversized": b'{"jsonrpc":"2.0","id":1,"method":"status","params":{"x":"' + b"x" * (2 * MIB) + b'"}}\n',
    "oversized without an end": b"x" * (2 * MIB),
    "not UTF-8": b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}\n',
    "zeros": b"\0" * 512 + b"\n",
    "two at once": b'{"jsonrpc":"2.0","id":1,"method":"status"}{}\n',
}


class BadHostInputTest(unittest.TestCase):
    lab: Lab

    @classmethod
    def setUpClass(cls) -> None:
        cls.lab = cls.enterClassContext(product.own_lab(cls, 2))
        product.wait_whole(cls.lab)
        product.banana(cls.lab, "hv1", "corm", "create", "lab", "--uplink", "eth1")
        cls.lab.exec("hv1", "ip", "-batch", "-", stdin="link add d0 type veth peer name d1\n"
                                                       "link add d2 mtu 1400 type veth peer name d3\n"
                                                       "address add 192.0.2.1/24 dev d1\n")
        for host in ("hv1", "hv2"):
            wait_until(lambda at=host: "banana-lab" in cls.lab.virsh(at, "net-list", "--name"), 20,
                       f"network banana-lab on {host}")

    def refuse(self, status: int, words: str, *command: str, host: str = "hv1") -> None:
        with self.subTest(" ".join(command)):
            before = product.snapshot(self.lab)
            self.assertRegex(product.refused(self.lab, host, "banana", *command, status=status), words)
            self.assertEqual(product.snapshot(self.lab), before)

    def delete_corm(self, name: str) -> None:
        """Until it is gone from the other host, too, which is told of it."""
        product.banana(self.lab, "hv1", "corm", "delete", name)
        for host in ("hv1", "hv2"):
            wait_until(lambda at=host: f"bn-{name}" not in self.lab.exec(at, "ip", "link").stdout
                       and f"banana-{name}" not in self.lab.virsh(at, "net-list", "--all", "--name").split(), 20,
                       f"Corm {name} to be gone from {host}", 0.05)

    # ---- Commands ----------------------------------------------------------------------------------------------------

    def test_corm_names(self) -> None:
        rule = r"Corm name '.*': it must be 1 to 12 of a-z, 0-9 and '-', and not begin with '-'"
        for name in ("Lab", "a_b", "thirteen-char", "la b", "lab/x", "läb", "x" * 300, "a\nb", ""):
            self.refuse(USAGE, rule, "corm", "create", name, "--etherstub")

    def test_corm_name_taken(self) -> None:
        self.refuse(REFUSED, r"hv1/lab", "corm", "create", "lab", "--etherstub")
        self.refuse(REFUSED, r"hv1/lab", "corm", "create", "lab", "--etherstub", host="hv2")

    def test_uplinks(self) -> None:
        create = ("corm", "create", "two")
        self.refuse(NOT_FOUND, r"host hv1 has no device nope9", *create, "--uplink", "nope9")
        self.refuse(USAGE, r"device name '.*': it must be 1 to 15", *create, "--uplink", "a-name-of-more-than-15")
        self.refuse(USAGE, r"device name '.*': it must be 1 to 15", *create, "--uplink", "a/b")
        self.refuse(REFUSED, r"device eth1 is Corm hv1/lab's", *create, "--uplink", "eth1")
        self.refuse(REFUSED, r"d1 holds the address 192.0.2.1/24; --move-addresses", *create, "--uplink", "d1")
        self.refuse(REFUSED, r"device lo", *create, "--uplink", "lo")
        self.refuse(REFUSED, r"d0 is not a bridge", *create, "--bridge", "d0")
        self.refuse(NOT_FOUND, r"host hv1 has no device br9", *create, "--bridge", "br9")
        self.refuse(USAGE, r"exactly one of --uplink, --bridge and --etherstub", *create)
        self.refuse(USAGE, r"exactly one of", *create, "--etherstub", "--uplink", "d0")

    def test_mtu(self) -> None:
        for mtu in ("1", "1279", "0", "-5", "65001", "many"):
            self.refuse(USAGE, r"--mtu: .* 1280 to 65000", "corm", "create", "two", "--etherstub", "--mtu", mtu)
        for number in (1279, 65001):
            with self.assertRaisesRegex(LabError, rf"MTU {number}: it must be 1280 to 65000"):
                product.ask(self.lab, "hv1", "corm.create", name="two", kind="etherstub", mtu=number)
        self.refuse(USAGE, r"MTU 1500 is larger than that of uplink d2, 1400", "corm", "create", "two", "--uplink",
                    "d2", "--mtu", "1500")

    def test_peer_that_cannot_be_asked(self) -> None:
        with product.without_bananad(self.lab, "hv2"):
            said = product.refused(self.lab, "hv1", "banana", "corm", "create", "two", "--etherstub")
            self.assertRegex(said, r"host hv2 cannot be asked whether the name 'two' is free: .*--force")
            self.assertEqual(len(product.ask(self.lab, "hv1", "corm.list")["corms"]), 1)
        product.wait_peers(self.lab)

    def test_created_is_answered_as_shown(self) -> None:
        created = product.ask(self.lab, "hv1", "corm.create", name="two", kind="etherstub")
        self.addCleanup(self.delete_corm, "two")
        self.assertEqual(created["wires"], [])
        self.assertEqual(created, product.ask(self.lab, "hv1", "corm.show", name="two"))

    def test_two_corms_at_once_with_one_uplink(self) -> None:
        """Both wait for hv2's word on their name, and neither has the device yet."""
        said = []
        with product.hanging(self.lab, "hv2"):
            both = [product.begin(self.lab, "hv1", "corm.create", name=name, kind="uplink", device="d0")
                    for name in ("ca", "cb")]
            for _ in both:
                product.ask(self.lab, "hv1", "status")  # an answer to what came after them
        for name, answer in zip(("ca", "cb"), both, strict=True):
            try:
                answer()
                self.addCleanup(self.delete_corm, name)
            except LabError as error:
                said.append(str(error))
        self.assertEqual(len(said), 1, said)
        self.assertRegex(said[0], r"device d0 is Corm hv1/c[ab]'s")

    def test_more_corms_than_a_host_may_have(self) -> None:
        corm = {"host": "hv2", "kind": "etherstub", "mtu": 1500, "formats": ["native"]}
        corms = [{**corm, "id": f"{number:08x}", "name": f"c{number}"} for number in range(CORMS + 1)]
        self.addCleanup(product.wait_peers, self.lab)
        with product.without_bananad(self.lab, "hv2"):
            hello, reply = rogue(self.lab, "hv2", "10.99.0.1", [["corm.sync", {"corms": corms}]])
            self.assertIn("result", hello)
            self.assertRegex(reply["error"]["message"], r"hv2 announced 257 Corms; at most 256 of a host are known")
            self.assertEqual([one["name"] for one in product.ask(self.lab, "hv1", "corm.list")["corms"]], ["hv1/lab"])

    def test_spikes(self) -> None:
        adopt = ("spike", "adopt")
        self.refuse(NOT_FOUND, r"host hv1 has no device nope9", *adopt, "s", "--device", "nope9")
        self.refuse(USAGE, r"name 'a/b': it must be 1 to 64", *adopt, "a/b", "--device", "d0")
        self.refuse(USAGE, r"name 'x+\.\.\.'|name 'x+': it must be 1 to 64", *adopt, "x" * 65, "--device", "d0")
        self.refuse(USAGE, r"01:00:5e:00:00:01", *adopt, "s", "--device", "d0", "--mac", "01:00:5e:00:00:01")
        self.refuse(USAGE, r"00:00:00:00:00:00 is all zeros", *adopt, "s", "--device", "d0", "--mac",
                    "00:00:00:00:00:00")
        self.refuse(USAGE, r"'' is not a MAC", *adopt, "s", "--device", "d0", "--mac", "")
        self.refuse(USAGE, r"junk", *adopt, "s", "--device", "d0", "--mac", "junk")
        self.refuse(REFUSED, r"eth1 cannot be adopted: it is a port of another device", *adopt, "s", "--device", "eth1")
        self.refuse(REFUSED, r"lo cannot be adopted: it is the loopback device", *adopt, "s", "--device", "lo")
        self.refuse(NOT_FOUND, r"host hv1 has no Spike 'nobody' \(banana spike list\)", "connect", "nobody", "lab")
        for words in (("disconnect",), ("spike", "show"), ("spike", "delete")):
            self.refuse(NOT_FOUND, r"host hv1 has no Spike 'nobody' \(banana spike list\)", *words, "nobody")
        product.banana(self.lab, "hv1", *adopt, "s", "--device", "d0")
        self.addCleanup(product.banana, self.lab, "hv1", "spike", "delete", "s")
        self.refuse(REFUSED, r"hv1/dev/s already", *adopt, "s", "--device", "d3")
        self.refuse(REFUSED, r"device d0 is Spike hv1/dev/s already", *adopt, "t", "--device", "d0")
        self.refuse(NOT_FOUND, r"nope.*hv1/lab", "connect", "s", "nope")
        product.banana(self.lab, "hv1", "connect", "s", "lab")
        self.addCleanup(product.banana, self.lab, "hv1", "disconnect", "s")
        self.refuse(REFUSED, r"wired to Corm hv1/lab already", "connect", "s", "lab")
        self.refuse(REFUSED, r"hv1/dev/s", "corm", "delete", "lab")
        self.refuse(REFUSED, r"wired to Corm hv1/lab; banana disconnect", "spike", "delete", "s")
        self.refuse(REFUSED, r"Corm hv1/lab is host hv1's", "corm", "delete", "lab", host="hv2")

    # ---- Sockets -----------------------------------------------------------------------------------------------------

    def talk(self, data: bytes, end: bool = False) -> bytes:
        """All that the daemon answers until it closes the connection; TimeoutError if it never does."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(20)
            control.connect(product.socket_path(self.lab, "hv1"))
            try:
                control.sendall(data)
                if end:
                    control.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has seen enough
            answer = b""
            while True:
                try:
                    chunk = control.recv(65536)
                except ConnectionResetError:
                    return answer
                if not chunk:
                    return answer
                answer += chunk

    def test_garbage_on_the_control_socket(self) -> None:
        with socket.socket(socket.AF_UNIX) as other:  # an honest one, open all the time
            other.connect(product.socket_path(self.lab, "hv1"))
            lines = other.makefile("rb")
            for name, data in GARBAGE.items():
                with self.subTest(name):
                    reply = json.loads(self.talk(data).splitlines()[0])
                    self.assertIn(reply["error"]["code"], (-32700, -32600), reply)
                    other.sendall(b'{"jsonrpc":"2.0","id":7,"method":"status","params":{}}\n')
                    self.assertEqual(json.loads(lines.readline())["result"]["host"], "hv1")
            with self.subTest("truncated"):
                answer = self.talk(b'{"jsonrpc":"2.0","id":1,"meth', end=True)
                self.assertIn("error", json.loads(answer.splitlines()[0]))
        # Wrong, but no garbage: answered, and the connection goes on.
        answers = self.talk(b'{"jsonrpc":"2.0","id":1,"method":"no.such"}\n'
                            b'{"jsonrpc":"2.0","id":2,"method":"spike.show","params":{"name":[1]}}\n'
                            b'{"jsonrpc":"2.0","id":3,"method":"status","params":{"unknown":1}}\n', end=True)
        replies = {reply["id"]: reply for reply in map(json.loads, answers.splitlines())}
        self.assertEqual(replies[1]["error"]["code"], -32601)
        self.assertIn("error", replies[2])
        self.assertEqual(replies[3]["result"]["host"], "hv1")

    def test_hooks_fed_with_garbage(self) -> None:
        before = product.snapshot(self.lab)
        for text in ("not XML", "<domain>", "<domain/>", "<a>" * 5000 + "</a>" * 5000,
                     "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><domain>&b;</domain>",
                     "<domain><name>x</name><uuid>../../x</uuid><devices><interface type='network'>"
                     "<source network='banana-lab'/><mac address='zz'/></interface></devices></domain>"):
            text += "<!-- 'banana-lab' -->"  # else it is not looked at: other people's guests are not ours to refuse
            with self.subTest(text[:60]):
                done = self.lab.exec("hv1", "banana-hook", "qemu", "x", "prepare", "begin", "-", stdin=text,
                                     check=False)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertRegex(done.stderr, r"^banana: .+")
                self.assertEqual(done.stdout, "")
                done = self.lab.exec("hv1", "banana-hook", "qemu", "x", "reconnect", "begin", "-", stdin=text,
                                     check=False)
                self.assertEqual(done.returncode, 0, "a reconnect that fails kills the guest")
        self.assertEqual(product.snapshot(self.lab), before)

    # ---- Too many ----------------------------------------------------------------------------------------------------

    def test_z_more_spikes_than_a_bridge_has_ports(self) -> None:
        """The last, as it leaves the taking down to the lab's end, which is far quicker at it."""
        product.banana(self.lab, "hv1", "corm", "create", "full", "--etherstub")
        count = PORTS + 2  # an even number
        self.lab.exec("hv1", "ip", "-batch", "-", stdin="".join(
            f"link add p{number} type veth peer name q{number}\n" for number in range(count // 2)))
        devices = [f"{end}{number}" for number in range(count // 2) for end in "pq"]
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(60)
            control.connect(product.socket_path(self.lab, "hv1"))
            lines = control.makefile("rb")

            def call(method: str, **params: object) -> dict:
                request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
                control.sendall(json.dumps(request).encode() + b"\n")
                reply: dict = json.loads(lines.readline())
                return reply

            for device in devices:
                self.assertIn("result", call("spike.adopt", name=device, device=device))
            for device in devices[:PORTS]:
                reply = call("connect", spike=device, corm="full", wire="auto")
                self.assertIn("result", reply, reply)
            reply = call("connect", spike=devices[-1], corm="full", wire="auto")
            self.assertRegex(reply["error"]["message"], r"Corm hv1/full is full: its bridge bnb\w+ has 1023 ports")
            self.assertIn("result", call("disconnect", spike=devices[0]))
            self.assertIn("result", call("connect", spike=devices[-1], corm="full", wire="auto"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
