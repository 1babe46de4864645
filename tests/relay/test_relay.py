#!/usr/bin/python3
"""The relay does to datagrams what it says, and nothing else; the flood is what a listener would take for clients.

Everything is on the loopback device of a namespace that has no name and goes with this process:

    clients 10.9.0.1, fd00:9::1 --- relay 10.9.0.2, fd00:9::2 --- server 10.9.0.3, fd00:9::3
                                    (its other addresses: 10.9.0.4, 10.9.0.5)
    flood from 198.18.0.0/15, all of it local
"""

import ctypes
import json
import os
import pathlib
import select
import socket
import subprocess
import tempfile
import time
import unittest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("BANANA_BUILD") or TOP / "build-check")
PORT = 4790
CLONE_NEWNET = 0x40000000
TIMEOUT = 5.0


def setUpModule() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare the network")
    commands = ["ip link set lo up", "ip route add local 198.18.0.0/15 dev lo"]
    commands += [f"ip addr add 10.9.0.{host}/32 dev lo" for host in range(1, 6)]
    commands += [f"ip addr add fd00:9::{host}/128 dev lo nodad" for host in range(1, 4)]
    subprocess.run(["sh", "-ec", "echo 0 >/proc/sys/net/ipv6/conf/lo/disable_ipv6; " + "; ".join(commands)], check=True)


def die_with_us() -> None:
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


def program(name: str) -> str:
    return str(BUILD / name)


class Relay:
    def __init__(self, *options: object, v6: bool = False) -> None:
        listen, to = (f"[fd00:9::2]:{PORT}", f"[fd00:9::3]:{PORT}") if v6 else (f"10.9.0.2:{PORT}", f"10.9.0.3:{PORT}")
        self.process = subprocess.Popen([program("relay"), "--listen", listen, "--to", to, *map(str, options)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
                                        preexec_fn=die_with_us)
        assert self.line() == "ready"

    def line(self) -> str:
        readable, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
        if not readable:
            raise AssertionError("the relay says nothing")
        return self.process.stdout.readline().rstrip("\n")

    def do(self, command: str) -> None:
        answer = self.ask(command)
        if answer != "ok " + command:
            raise AssertionError(answer)

    def ask(self, command: str) -> str:
        self.process.stdin.write(command + "\n")
        return self.line()

    def stats(self) -> dict:
        return json.loads(self.ask("stats").removeprefix("ok stats "))

    def close(self) -> int:
        self.process.stdin.close()
        status = self.process.wait(TIMEOUT)
        self.process.stdout.close()
        return status


def udp(address: str, port: int = 0) -> socket.socket:
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
    one.bind((address, port))
    one.settimeout(TIMEOUT)
    return one


class Case(unittest.TestCase):
    def world(self, *options: object, v6: bool = False) -> tuple[Relay, socket.socket, socket.socket]:
        self.relay_address = ("fd00:9::2" if v6 else "10.9.0.2", PORT)
        server = udp("fd00:9::3" if v6 else "10.9.0.3", PORT)
        client = udp("fd00:9::1" if v6 else "10.9.0.1")
        self.addCleanup(server.close)
        self.addCleanup(client.close)
        relay = Relay(*options, v6=v6)
        self.addCleanup(relay.close)
        return relay, client, server

    def send(self, client: socket.socket, payloads: list[bytes]) -> None:
        for payload in payloads:
            client.sendto(payload, self.relay_address)

    def take(self, server: socket.socket, count: int) -> list[bytes]:
        return [server.recv(65536) for _ in range(count)]

    def wait(self, what: str, true: object) -> None:
        end = time.monotonic() + TIMEOUT
        while not true():
            self.assertLess(time.monotonic(), end, what)

    def settle(self, relay: Relay, received: int) -> dict:
        """Until the relay has dealt with so many from clients, and holds none back."""
        def done() -> bool:
            up = relay.stats()["up"]
            return up["received"] == received and up["sent"] == received - up["lost"] - up["too_big"] + \
                up["duplicated"] + up["flipped"] + up["truncated"] + up["replayed"]
        self.wait(f"the relay deals with {received} datagrams", done)
        return relay.stats()["up"]

    def drain(self, server: socket.socket) -> list[bytes]:
        server.setblocking(False)
        came = []
        try:
            while True:
                came.append(server.recv(65536))
        except BlockingIOError:
            server.settimeout(TIMEOUT)
        return came


def numbered(count: int, size: int = 100) -> list[bytes]:
    return [number.to_bytes(4, "big") + bytes(size - 4) for number in range(count)]


class RelayTest(Case):
    def test_passes_both_ways_with_a_port_for_each_client(self) -> None:
        for v6 in (False, True):
            _, first, server = self.world(v6=v6)
            second = udp(first.getsockname()[0])
            self.addCleanup(second.close)
            seen = []
            for client in (first, second, first):
                self.send(client, [b"hello"])
                payload, source = server.recvfrom(100)
                seen.append(source)
                server.sendto(payload + b" back", source)
                self.assertEqual(client.recvfrom(100)[0], b"hello back")
            self.assertEqual(seen[0], seen[2])
            self.assertNotEqual(seen[0], seen[1])
            self.assertNotIn(PORT, [source[1] for source in seen])
            server.close()

    def test_nothing_is_changed_unless_asked_for(self) -> None:
        relay, client, server = self.world()
        sent = numbered(500) + [b"", b"x", bytes(9000)]
        self.send(client, sent)
        self.assertEqual(self.take(server, len(sent)), sent)
        up = self.settle(relay, len(sent))
        self.assertEqual((up["sent"], up["lost"], up["failed"]), (len(sent), 0, 0))

    def lost(self, seed: int) -> list[int]:
        relay, client, server = self.world("--loss", 30, "--seed", seed)
        self.send(client, numbered(5000))
        up = self.settle(relay, 5000)
        came = {int.from_bytes(one[:4], "big") for one in self.drain(server)}
        self.assertEqual(up["lost"], 5000 - len(came))
        server.close()
        relay.close()
        return sorted(set(range(5000)) - came)

    def test_loss_is_its_percentage_and_the_seeds_choice(self) -> None:
        once = self.lost(7)
        self.assertTrue(1400 < len(once) < 1600, len(once))
        self.assertEqual(self.lost(7), once)
        self.assertNotEqual(self.lost(8), once)

    def test_reordered_ones_let_others_pass_and_none_is_kept(self) -> None:
        relay, client, server = self.world("--reorder", 5)
        sent = numbered(1000)
        self.send(client, sent)
        came = self.take(server, 1000)  # also the last ones, which nothing passes
        self.assertEqual(sorted(came), sent)
        up = self.settle(relay, 1000)
        late, highest = [], -1
        for place, one in enumerate(came):
            number = int.from_bytes(one[:4], "big")
            if number < highest:
                late.append(place - number)
            highest = max(highest, number)
        self.assertTrue(20 < up["reordered"] < 100)
        self.assertGreater(len([by for by in late if by > 64]), 20)

    def test_duplicates(self) -> None:
        relay, client, server = self.world("--duplicate", 50)
        self.send(client, numbered(1000))
        up = self.settle(relay, 1000)
        came = self.drain(server)
        self.assertTrue(400 < up["duplicated"] < 600)
        self.assertEqual(len(came), 1000 + up["duplicated"])
        self.assertEqual(sorted(set(came)), numbered(1000))

    def test_delay_is_each_way_and_changes_on_the_fly(self) -> None:
        relay, client, server = self.world()

        def round_trip() -> float:
            begin = time.monotonic()
            self.send(client, [b"x"])
            server.sendto(b"y", server.recvfrom(10)[1])
            client.recv(10)
            return time.monotonic() - begin
        relay.do("delay 100")
        self.assertGreater(round_trip(), 0.2)
        relay.do("delay 0")
        self.assertLess(round_trip(), 0.1)

    def test_mtu_is_of_ip_packets_and_changes_on_the_fly(self) -> None:
        for v6, headers in ((False, 28), (True, 48)):
            relay, client, server = self.world(v6=v6)
            self.send(client, [bytes(1452)])
            self.assertEqual(len(server.recv(2000)), 1452)
            relay.do("mtu 1280")
            self.send(client, [bytes(1280 - headers + 1), bytes(1280 - headers)])
            self.assertEqual(len(server.recv(2000)), 1280 - headers)
            self.assertEqual(self.settle(relay, 3)["too_big"], 1)
            server.close()

    def test_damaged_copies_come_besides(self) -> None:
        relay, client, server = self.world("--flip", 10, "--truncate", 7)
        sent = [bytes([number]) * 50 for number in range(140)]
        self.send(client, sent)
        up = self.settle(relay, 140)
        self.assertEqual((up["flipped"], up["truncated"]), (14, 20))
        came = self.drain(server)
        damaged = [one for one in came if one not in sent]
        self.assertEqual([one for one in came if one in sent], sent)
        flipped = [one for one in damaged if len(one) == 50]
        self.assertEqual(len(flipped), 14)
        for one in flipped:
            bits = min(sum((a ^ b).bit_count() for a, b in zip(one, original)) for original in sent)
            self.assertEqual(bits, 1)
        self.assertEqual(len([one for one in damaged if len(one) < 50]), 20)

    def test_rebinding_changes_port_and_address(self) -> None:
        relay, client, server = self.world("--from", "10.9.0.4,10.9.0.5")
        self.send(client, [b"1"])
        before = server.recvfrom(10)[1]
        relay.do("rebind")
        self.send(client, [b"2"])
        after = server.recvfrom(10)[1]
        self.assertEqual((before[0], after[0]), ("10.9.0.4", "10.9.0.5"))
        self.assertNotEqual(before[1], after[1])
        server.sendto(b"lost", before)
        server.sendto(b"heard", after)
        self.assertEqual(client.recv(10), b"heard")
        relay.do("rebind-every 0.05")
        self.wait("it rebinds by itself", lambda: relay.stats()["rebinds"] >= 3)
        relay.do("rebind-every 0")
        rebinds = relay.stats()["rebinds"]
        self.send(client, [b"3"])
        self.assertEqual(server.recv(10), b"3")
        self.assertEqual(relay.stats()["rebinds"], rebinds)

    def test_replays_what_passed(self) -> None:
        relay, client, server = self.world()
        sent = numbered(100)
        self.send(client, sent)
        self.assertEqual(self.take(server, 100), sent)
        begin = time.monotonic()
        relay.do("rate 20000")
        relay.do("replay 10000")
        self.assertEqual(relay.line(), "done replay")
        self.assertGreater(time.monotonic() - begin, 0.45)
        self.assertEqual(self.drain(server), sent * 100)
        self.assertEqual(relay.stats()["up"]["replayed"], 10000)

    def test_captures(self) -> None:
        relay, client, server = self.world()
        with tempfile.TemporaryDirectory() as folder:
            relay.do(f"capture {folder}/file")
            self.send(client, [b"\x01\x02"])
            server.sendto(b"\xff", server.recvfrom(10)[1])
            client.recv(10)
            relay.do("capture -")
            self.assertEqual(pathlib.Path(folder, "file").read_text(), "> 0102\n< ff\n")

    def test_says_what_it_does_not_understand(self) -> None:
        relay, _, _ = self.world()
        for line in ("loss", "loss 101", "loss -1", "loss 3x", "nonsense 3", "capture /nowhere/x"):
            self.assertTrue(relay.ask(line).startswith(f"error {line}: "), line)
        for options in (["--to", "10.9.0.3:1"], ["--listen", "10.9.0.1", "--to", "10.9.0.3:1"],
                        ["--listen", "192.0.2.1:1", "--to", "10.9.0.3:1"], ["--loss"],
                        ["--listen", "10.9.0.1:1", "--to", "10.9.0.3:1", "--loss", "x"]):
            done = subprocess.run([program("relay"), *options], input="", capture_output=True, check=False)
            self.assertEqual(done.returncode, 2, options)

    def test_ends_with_its_input(self) -> None:
        relay, _, _ = self.world()
        self.assertEqual(relay.close(), 0)


class FloodTest(Case):
    def flood(self, *options: object, to: str = f"10.9.0.3:{PORT}") -> dict:
        done = subprocess.run([program("flood"), "--to", to, "--from", "198.18.0.0/15", *map(str, options)],
                              capture_output=True, text=True, check=True, timeout=60)
        return json.loads(done.stdout)

    def test_hellos_are_ours_from_many_senders(self) -> None:
        server = udp("10.9.0.3", PORT)
        self.addCleanup(server.close)
        said = self.flood("--hello", 2000, "--lanes", 4)
        self.assertEqual((said["sent"], said["failed"], said["answers"]), (2000, 0, 0))
        hellos, senders, lanes, randoms = 0, set(), set(), set()
        server.setblocking(False)
        for _ in range(2000):
            payload, sender = server.recvfrom(4096)
            self.assertTrue(sender[0].startswith(("198.18.", "198.19.")))
            senders.add(sender)
            lanes.add(payload[1])
            randoms.add(payload[35:67])
            hellos += payload[0] == 0x20 and payload[2:5] == b"\0\0\0" and payload[8:11] == b"\x16\xfe\xff" \
                and payload[21] == 1 and len(payload) == said["request_bytes"]
        self.assertEqual((hellos, lanes, len(randoms)), (2000, {0, 1, 2, 3}, 2000))
        self.assertGreater(len(senders), 1990)

    def test_random_datagrams_are_of_three_shapes(self) -> None:
        server = udp("10.9.0.3", PORT)
        self.addCleanup(server.close)
        self.assertEqual(self.flood("--random", 3000)["sent"], 3000)
        came = self.drain(server)
        self.assertEqual(len(came), 3000)
        ours = [one for one in came if one[:1] in (b"\x20", b"\x21", b"\x22")]
        self.assertTrue(1800 < len(ours) < 2200)
        self.assertTrue(800 < len([one for one in ours if b"\x17\xfe\xfd\0\2\0\0\0" in one[:16]]) < 1200)

    def test_a_dtls_server_takes_a_hello_for_one_and_its_answers_are_counted(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                            "-subj", "/CN=x", "-keyout", f"{folder}/key", "-out", f"{folder}/cert"],
                           check=True, capture_output=True)
            with subprocess.Popen(["openssl", "s_server", "-dtls1_2", "-listen", "-accept", "10.9.0.3:4433", "-key",
                                   f"{folder}/key", "-cert", f"{folder}/cert"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=die_with_us) as server:
                try:
                    while b"ACCEPT" not in server.stdout.readline():
                        self.assertIsNone(server.poll())
                    said = self.flood("--plain-hello", 200, "--rate", 2000, to="10.9.0.3:4433")
                finally:
                    server.kill()
        self.assertEqual(said["sent"], 200)
        self.assertGreater(said["answers"], 150)
        self.assertLess(said["answer_bytes"], said["request_bytes"])


if __name__ == "__main__":
    unittest.main()
