"""Controllers that come, go and speak nonsense; tunneld's own death; rekeys; and what an idle wire costs."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
import unittest

from tunnel_flows import Streams
from tunnel_rig import NOWHERE, PORT, Control, ControlError, Host, Numbered, TunnelCase
from tunnel_world import inside, udp, wait_until

NOBODY = 65534
FDS_MAX = 64  # control_fds_max
MESSAGE_MAX = 64 * 1024  # control_max
RATE = 10_000  # frames a second, each way, while sessions are rekeyed


class Base(TunnelCase):
    def setUp(self) -> None:
        self.made = self.world()
        self.made.wires()
        self.made.up()
        self.h1, self.h2 = self.made.hosts

    def flowing(self, rate: float = 1000) -> "Flowing":
        flow = Flowing(self.numbered(self.h1, self.h2), rate)
        self.addCleanup(flow.stop)
        return flow


class Flowing:
    """A flow that is sent meanwhile, by a thread."""

    def __init__(self, flow: Numbered, rate: float) -> None:
        self.flow, self.rate = flow, rate
        flow.passes()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        while not self._end.is_set():
            self.flow.send(int(self.rate / 10), self.rate)

    def stop(self) -> Numbered:
        self._end.set()
        self._thread.join()
        return self.flow


class Rekey(Base):
    def test_under_load(self) -> None:
        """Ten at 10 000 frames a second each way; not one is lost, repeated or overtaken."""
        flow = Streams(self.h1, self.h2, RATE)
        self.addCleanup(flow.close)
        at_first = self.h1.session()["rekeys"]  # both dialled: one took over from the other
        for number in range(10):
            before = [host.session()["rekeys"] for host in self.made.hosts]
            self.h1.call("rekey", {"peer": "" if number % 2 else "h2"})
            for host, count in zip(self.made.hosts, before):
                wait_until(lambda: host.session()["rekeys"] > count, 10, f"rekey {number} at {host.name}")
            time.sleep(0.2)  # not a wait for anything: frames between rekeys
        self.assertEqual(self.h1.session()["rekeys"] - at_first, 10)
        report = flow.finish()
        for way in ("to_guest", "from_guest"):
            with self.subTest(way):
                offered = report[way]["sent"] / flow.seconds
                print(f"{report[way]['sent']} frames, {offered:.0f}/s", end=" ", flush=True)
                self.assertGreaterEqual(offered, 0.95 * RATE, "that is not the load")
                self.assertEqual([report[way][key] for key in ("lost", "duplicates", "reordered")], [0, 0, 0],
                                 report[way])

    def shorter(self, **limits: int) -> None:
        for host, other in (self.made.hosts, self.made.hosts[::-1]):
            host.configure(**limits)
            host.peer(other.address, 1)
            host.wire(1)
        self.made.up()

    def test_by_records(self) -> None:
        """Sessions of 5 000 records: by the end that sends them."""
        self.shorter(rekey_records=5000)
        flowing = self.flowing(5000)
        at_first = self.h1.session()["rekeys"]
        wait_until(lambda: self.h1.session()["rekeys"] > at_first, 30, "a rekey")
        flow = flowing.stop()
        self.assertTrue(flow.all_there(), f"{len(flow.got)} of {flow.sent}")
        self.assertEqual(flow.twice, 0)

    def test_by_age(self) -> None:
        """Sessions of one second: by the end that dialled, without a word."""
        self.shorter(rekey_seconds=1)
        flowing = self.flowing(2000)
        wait_until(lambda: self.h1.session()["rekeys"] >= 3, 20, "rekeys")
        flow = flowing.stop()
        self.assertTrue(flow.all_there(), f"{len(flow.got)} of {flow.sent}")
        self.assertLessEqual(self.h1.session()["sessions"], 8, "sessions that are superseded end")


class RekeyFar(TunnelCase):
    def test_in_flight(self) -> None:
        """50 ms each way: what the other end sends by the old session until it knows of the new one is not lost."""
        world = self.world(relayed=1, rules=("--delay", 50))
        h1, h2 = world.hosts
        world.wires()
        world.up()
        flows = [Flowing(self.numbered(*way), 1000) for way in (world.hosts, world.hosts[::-1])]
        for flowing in flows:
            self.addCleanup(flowing.stop)
        for _ in range(4):
            before = [host.session()["rekeys"] for host in world.hosts]
            h1.call("rekey", {"peer": ""})
            for host, count in zip(world.hosts, before):
                wait_until(lambda: host.session()["rekeys"] > count, 10, f"a rekey at {host.name}")
        for flowing in flows:
            flow = flowing.stop()
            self.assertTrue(flow.all_there(), f"{len(flow.got)} of {flow.sent}")
            self.assertEqual(flow.twice, 0)


def passes_after_kills(case: TunnelCase, hosts: tuple[Host, Host], order: tuple[Host, ...]) -> None:
    """Killed and started anew, one after the other, with everything handed over again: frames go within 1 s, both ways."""
    there, back = case.numbered(*hosts), case.numbered(*hosts[::-1])
    took = []
    for host in order:
        there.passes()
        back.passes()
        host.stop(signal.SIGKILL)
        begin = time.monotonic()
        host.restart()
        there.passes()
        back.passes()
        took.append(time.monotonic() - begin)
    print("frames after", " ".join(f"{seconds:.2f}" for seconds in took), "s", end=" ", flush=True)
    case.assertLess(max(took), 1)
    case.assertEqual((there.twice, back.twice), (0, 0))


class Died(Base):
    def test_killed(self) -> None:
        passes_after_kills(self, (self.h1, self.h2), (self.h1, self.h2, self.h1))

    def test_ended(self) -> None:
        """TERM: it says goodbye, so the other end knows at once."""
        self.assertEqual(self.h1.stop(), 0)
        wait_until(lambda: not self.h2.is_up(), 2, "the other end to know")
        self.assertIn("closed by the other end", self.h2.reasons())
        self.assertFalse(self.h1.socket.exists())
        self.h1.restart()
        self.made.up()


class DiedFar(TunnelCase):
    def test_killed(self) -> None:
        """Where only h1 can dial: whichever end is started anew, and whoever has to find out."""
        world = self.world(relayed=1)
        world.wires()
        world.up()
        h1, h2 = world.hosts
        passes_after_kills(self, (h1, h2), (h2, h1, h2))

    def test_only_receiver_dials(self) -> None:
        """The end that has to find out that the other was started anew sends nothing itself."""
        world = self.world(relayed=1)
        world.wires()
        world.up()
        h1, h2 = world.hosts
        flow = self.numbered(h2, h1)
        flow.send(1000, rate=1000)
        h2.stop(signal.SIGKILL)
        begin = time.monotonic()
        h2.restart()
        flow.passes()
        took = time.monotonic() - begin
        print(f"frames after {took:.2f} s", end=" ", flush=True)
        self.assertLess(took, 1)


class Controllers(Base):
    def test_gone_and_back(self) -> None:
        flowing = self.flowing()
        before = self.h1.call("wire.list", {"after": ""}), self.h1.call("hello", {"version": 1})
        sessions = self.h1.session()
        for _ in range(3):
            self.h1.control.close()
            sent = flowing.flow.sent
            wait_until(lambda: flowing.flow.sent > sent + 200, 10, "frames without a controller")
            self.h1.connect()
            self.assertEqual((self.h1.call("wire.list", {"after": ""}), self.h1.call("hello", {"version": 1})), before)
        flow = flowing.stop()
        self.assertTrue(flow.all_there(), f"{len(flow.got)} of {flow.sent}")
        self.assertEqual(self.h1.session()["rekeys"], sessions["rekeys"])

    def test_second(self) -> None:
        first = self.h1.control
        second = Control(self.h1.socket)
        self.addCleanup(second.close)
        self.assertEqual(second.call("hello", {"version": 1})["host"], "h1")
        with self.assertRaises((EOFError, OSError)):
            first.call("status")
        first.close()
        self.assertEqual(len(second.call("wire.list", {"after": ""})["wires"]), 1)
        self.h1.control = second
        self.assertTrue(self.h1.said("takes over"))

    def test_second_process(self) -> None:
        """It ends at once; the first one's controller and socket stay."""
        before = self.h1.call("wire.list", {"after": ""})
        with inside("h1"):
            second = subprocess.run(self.h1.words(), capture_output=True, text=True, timeout=20, check=False)
        self.assertEqual(second.returncode, 1)
        self.assertIn(f"listen on {self.h1.socket}: another process serves it", second.stderr)
        self.assertEqual(self.h1.call("wire.list", {"after": ""}), before)
        self.assertFalse(self.h1.said("takes over"))
        self.h1.connect()

    def test_peers_in_parts(self) -> None:
        """Hundreds of peers do not fit into one message: all parts count, or none."""
        def told(*names: str, **more: object) -> None:
            listed = [{"name": name, "address": NOWHERE, "port": PORT, "lanes": 1} for name in names]
            self.h1.call("peers", {"peers": listed, **more})

        def known() -> list[str]:
            return [peer["name"] for peer in self.h1.call("status", {})["peers"]]

        told("h2", "h3", part=0, more=True)
        self.assertEqual(known(), ["h2"], "not all of them were told yet")
        told("h4", part=1, more=False)
        self.assertEqual(known(), ["h2", "h3", "h4"])
        told("h2", "h5", part=0, more=True)  # and then its controller is gone
        told("h2", part=0, more=True)
        told("h6", part=1, more=False)
        self.assertEqual(known(), ["h2", "h6"])
        for parts in ([1], [0, 2], [0, 1, 1]):
            with self.subTest(parts=parts), self.assertRaises(ControlError):
                for part in parts:
                    told("h2", part=part, more=True)
        told("h2", part=0, more=True)
        with self.assertRaises(ControlError):
            self.h1.call("peers", {"peers": [{}], "part": 1, "more": True})
        with self.assertRaises(ControlError):
            told("h7", part=2, more=False)
        self.assertEqual(known(), ["h2", "h6"], "those of a list that was refused in part")

    def test_other_user(self) -> None:
        """Not even where the socket's mode would let it."""
        script = "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); " \
            "s.connect(sys.argv[1]); s.send(b'{}'); sys.exit(0 if s.recv(100) else 3)"
        words = ["/usr/bin/python3", "-c", script, str(self.h1.socket)]
        self.assertEqual(self.h1.socket.stat().st_mode & 0o777, 0o600)
        for mode, told in ((0o600, "PermissionError"), (0o666, "")):
            self.h1.socket.chmod(mode)
            done = subprocess.run(words, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True,
                                  check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(told, done.stderr)
        wait_until(lambda: self.h1.said(f"user {NOBODY} is not let in"), 5, "the refusal in the log")
        self.assertEqual(self.h1.call("hello", {"version": 1})["host"], "h1")


class Nonsense(Base):
    """Each is answered by an error, or ends the connection; the wires go on, and no descriptor stays behind."""

    def setUp(self) -> None:
        super().setUp()
        self.before = self.h1.call("wire.list", {"after": ""}), self.h1.call("hello", {"version": 1})
        self.descriptors = self.open_descriptors()

    def open_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.h1.process.pid}/fd"))

    def tearDown(self) -> None:
        self.assertEqual((self.h1.call("wire.list", {"after": ""}), self.h1.call("hello", {"version": 1})), self.before)
        self.assertEqual(self.open_descriptors(), self.descriptors)
        self.assertTrue(self.h1.is_up())
        for flow in (self.numbered(self.h1, self.h2), self.numbered(self.h2, self.h1)):
            flow.passes()

    def hangs_up(self, message: bytes, fds: "list[int] | None" = None) -> None:
        with self.assertRaises((EOFError, ConnectionError)):
            self.h1.control.send(message, fds or [])
            self.h1.control.answer()
        self.h1.control.close()
        self.h1.connect()

    def test_no_request(self) -> None:
        for text in (b"x", b"{", b"[]", b"null", b"17", b'"hello"', b"\0", b"\xff" * 100, b"{}", b'{"id":1}',
                     b'{"id":1,"method":7}', b'{"id":1,"method":""}', b'{"id":1,"method":"wire"}',
                     b'{"id":[[[]]],"method":"' + b"y" * 1000 + b'"}', b"[" * 60_000, b'{"a":' * 10_000):
            with self.subTest(text=text[:40]):
                self.h1.control.send(text)
                answer = self.h1.control.answer()
                self.assertIn("message", answer["error"])
                self.assertLess(len(json.dumps(answer)), 400)

    def test_bad_parameters(self) -> None:
        good = {"connector": "00000009", "device": "bnd00000009", "peer": "h2", "mtu": 1500}
        configure = {"address": "10.9.1.1", "port": 4790, "lanes": 1, "cpus": [], "poll": "auto", "rekey_seconds": 60,
                     "rekey_records": 1 << 27}
        peer = {"name": "h2", "address": "10.9.2.2", "port": 4790, "lanes": 1}
        cases = [("wire.add", good), ("configure", configure)]  # without their descriptors
        for method, params, changes in (
                ("wire.add", good, [("connector", bad) for bad in ("", "0", "00000000", "0000002A0", "zzzzzzzz", 42)]
                 + [("mtu", bad) for bad in (0, -1, 67, 65536, "1500", 1.5, 1e300)]
                 + [("peer", bad) for bad in ("", "h9", "x" * 10_000, None)] + [("device", 5)]),
                ("configure", configure, [("lanes", bad) for bad in (0, -1, 33, 1 << 40, "1")]
                 + [("poll", "often"), ("rekey_seconds", 0), ("rekey_records", 0)])):
            cases += [(method, {**params, name: bad}) for name, bad in changes]
        cases += [("peers", {"peers": bad}) for bad in (None, {}, [1], [{}], [{**peer, "address": "h2"}],
                                                          [{**peer, "port": 0}], [{**peer, "lanes": 0}],
                                                          [peer, {**peer, "name": 4}])]
        cases += [(method, bad) for method in ("wire.add", "wire.remove", "wire.show", "peers", "configure")
                  for bad in ({}, [], "x", 1)]
        cases += [("wire.show", {"connector": "00000009"}), ("rekey", {"peer": "h9"})]
        for method, params in cases:
            with self.subTest(method=method, params=str(params)[:80]):
                self.h1.control.send(json.dumps({"id": 5, "method": method, "params": params}).encode())
                self.assertIn("error", self.h1.control.answer())

    def test_wrong_descriptors(self) -> None:
        """Too few, too many, and none that are UDP sockets."""
        good = {"address": "10.9.1.1", "port": 4790, "lanes": 1, "cpus": [], "poll": "auto", "rekey_seconds": 60,
                "rekey_records": 1 << 27}
        null = os.open("/dev/null", os.O_RDWR)
        self.addCleanup(os.close, null)
        with inside("h1"), udp("10.9.1.1", 4791, reuse=True) as one, socket.socket() as stream:  # UDP, and TCP
            for fds in ([], [one.fileno()], [one.fileno()] * 3, [null, null], [one.fileno(), null],
                        [null, one.fileno()], [one.fileno(), stream.fileno()], [stream.fileno()] * 2):
                with self.subTest(fds=fds), self.assertRaises(ControlError):
                    self.h1.call("configure", good, fds)
            wire = {"connector": "00000009", "device": "d", "peer": "h2", "mtu": 1500}
            for fds in ([], [null] * 2, [null] * FDS_MAX):
                with self.subTest(fds=fds), self.assertRaises(ControlError):
                    self.h1.call("wire.add", wire, fds)
        self.h1.call("status", {}, [null] * 10)  # nobody asked for these
        self.h1.call("wire.list", {"after": ""}, [null] * FDS_MAX)

    def test_too_large(self) -> None:
        self.hangs_up(b" " * (MESSAGE_MAX + 1))
        self.hangs_up(b'{"id":1,"method":"hello","params":{"x":"' + b"x" * 150_000 + b'"}}')

    def test_too_many_descriptors(self) -> None:
        null = os.open("/dev/null", os.O_RDWR)
        self.addCleanup(os.close, null)
        self.hangs_up(b'{"id":1,"method":"hello","params":{"version":1}}', [null] * (FDS_MAX + 1))
        self.hangs_up(b'{"id":1,"method":"hello","params":{"version":1}}', [null] * 250)

    def test_who_does_not_listen(self) -> None:
        """A controller that asks and never reads: it is let go, not waited for."""
        deaf = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.addCleanup(deaf.close)
        deaf.connect(str(self.h1.socket))
        deaf.settimeout(10)
        with self.assertRaises(ConnectionError):
            for _ in range(100_000):
                deaf.send(b'{"id":1,"method":"status","params":{}}')
        self.h1.control.close()
        self.h1.connect()


class Idle(Base):
    def wakeups(self, host: Host) -> int:
        """Times that one of its threads began to wait for something."""
        tasks = pathlib.Path(f"/proc/{host.process.pid}/task").glob("*/status")
        return sum(int(task.read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0]) for task in tasks)

    def test_idle(self) -> None:
        """Once the path's MTU is found: fewer than 10 wake-ups a second, and next to no processor time."""
        for host in self.made.hosts:
            wait_until(lambda: host.session()["path_mtu"] == 1500, 30, "the search for the path's MTU")
        window, measured = 5.0, ""

        def looked() -> list[tuple[int, float, int]]:
            return [(self.wakeups(host), host.cpu(), host.status()["lanes"][0]["polls"]) for host in self.made.hosts]

        def quiet() -> bool:
            nonlocal measured
            before = looked()
            threading.Event().wait(window)
            after = looked()
            per_second, used, polls = (max(b[i] - a[i] for a, b in zip(before, after)) / window for i in range(3))
            measured = f"{per_second:.1f} wake-ups/s, {used:.1%} of a CPU, {polls:.1f} polls/s"
            return per_second < 10 and used <= 0.01 and polls == 0

        try:
            wait_until(quiet, 40, "both to be quiet")
        finally:
            print(measured, end=" ", flush=True)
        self.assertTrue(self.h1.is_up())


if __name__ == "__main__":
    unittest.main()
