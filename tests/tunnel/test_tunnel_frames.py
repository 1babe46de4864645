"""Frames of all sizes over one lane and several, and what a tap must not be able to do."""

import os
import pathlib
import socket
import time
import unittest
from collections import Counter

from tunnel_flows import Queue, Streams, Tcp
from tunnel_rig import Host, TunnelCase
from tunnel_world import inside, wait_until

FLOWS = 64
HEAD = b"\x52\x54\0\0\0\2" + b"\x52\x54\0\0\0\1" + b"\x88\xb5"


class Lanes(TunnelCase):
    def carries(self, lanes: tuple[int, int]) -> None:
        world = self.world(lanes)
        h1, h2 = world.hosts
        world.wires()
        world.up()
        for sender, receiver in (world.hosts, world.hosts[::-1]):
            flow = self.numbered(sender, receiver)
            flow.passes()
            flow.send(500, rate=2000)
            self.assertTrue(flow.all_there(), f"{len(flow.got)} of {flow.sent}")
            self.assertEqual(flow.twice, 0)
            self.assertEqual(flow.behind, 0)
        before = h1.show()["sent"]
        flow = Tcp(h1, h2)
        self.addCleanup(flow.close)
        flow.stall(50_000_000, 30)
        self.assertEqual(flow.broken, "")
        sent = h1.show()["sent"]
        self.assertGreater((sent["bytes"] - before["bytes"]) / (sent["frames"] - before["frames"]), 10_000,
                           "TCP's frames are not cut by the tap")
        self.assertEqual(len(h2.show()["lanes"]), world.lanes)

    def test_one_lane(self) -> None:
        self.carries((1, 1))

    def test_two_lanes(self) -> None:
        self.carries((2, 2))

    def test_unequal_lanes(self) -> None:
        self.carries((2, 1))

    def test_many_flows(self) -> None:
        """Each lane carries some of them, and no flow is reordered."""
        world = self.world((2, 2))
        h1, h2 = world.hosts
        world.wires()
        world.up()
        before = self.carried(h1), self.carried(h2)
        last: Counter[int] = Counter()  # by the sender's port
        with inside(h2.name), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker:
            taker.bind(("10.10.0.2", 0))
            taker.settimeout(10)
            with inside(h1.name):
                givers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(FLOWS)]
            for giver in givers:
                self.addCleanup(giver.close)
                giver.connect(taker.getsockname())
            for number in range(1, 51):
                for giver in givers:
                    giver.send(number.to_bytes(4, "big"))
                for _ in givers:  # all of a round: the socket's buffer holds that
                    text, (_, port) = taker.recvfrom(100)
                    self.assertEqual(int.from_bytes(text, "big"), last[port] + 1)
                    last[port] += 1
        self.assertEqual(list(last.values()), [50] * FLOWS)
        for host, first in zip(world.hosts, before):
            shares = [(b - a) / (50 * FLOWS) for a, b in zip(first, self.carried(host))]
            self.assertGreater(min(shares), 0.1, shares)

    def carried(self, host: Host) -> list[int]:
        return [lane["frames"] for lane in host.status()["lanes"]]

    def test_cpus(self) -> None:
        """Each lane's thread runs where it is told to; without that, where the process may."""
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) == 1:
            self.skipTest("there is one CPU only")
        host = self.world((2, 2)).hosts[0]
        self.run_on(host, [allowed] * 2)
        for pinned in ([allowed[-1], allowed[0]], [allowed[0]] * 2):
            host.configure(cpus=pinned)
            self.run_on(host, [[cpu] for cpu in pinned])

    def run_on(self, host: Host, wanted: list[list[int]]) -> None:
        """A thread names itself, and binds itself, when it begins."""
        names = [f"lane {number}" for number in range(host.lanes)]
        found: dict[str, list[int]] = {}

        def as_wanted() -> bool:
            found.clear()
            for task in pathlib.Path(f"/proc/{host.process.pid}/task").iterdir():
                found[(task / "comm").read_text().strip()] = sorted(os.sched_getaffinity(int(task.name)))
            return [found.get(name) for name in names] == wanted

        try:
            wait_until(as_wanted, 5, "")
        except AssertionError:
            self.fail(f"{wanted} wanted: {found}")

    def test_polling(self) -> None:
        """Under load a lane looks again without sleeping, unless that is off. Idle: see test_tunnel_control.py."""
        world = self.world()
        for poll in ("auto", "never"):
            for host, other in (world.hosts, world.hosts[::-1]):
                host.configure(poll)
                host.peer(other.address, 1)
            world.wires()
            world.up()
            flow = Streams(*world.hosts, 30_000)
            self.addCleanup(flow.close)
            time.sleep(1)  # not a wait for anything: the load
            polls = [host.status()["lanes"][0]["polls"] for host in world.hosts]
            flow.close()
            print(f"{poll}: {polls}", end=" ", flush=True)
            with self.subTest(poll=poll):
                if poll == "auto":
                    self.assertGreater(max(polls), 1000)
                else:
                    self.assertEqual(polls, [0, 0])


class FromTap(TunnelCase):
    def test_nonsense(self) -> None:
        """Nothing of it is carried, each is counted by its reason, and what is good before and after arrives."""
        world = self.world()
        h1, h2 = world.hosts
        queues = [Queue(), Queue()]
        for host, queue in zip(world.hosts, queues):
            self.addCleanup(queue.close)
            host.add_wire("00000007", [queue.handed.fileno()], 1500)
        world.up()
        good = HEAD + b"good" + bytes(42)
        ip = HEAD[:12] + b"\x08\x00" + b"\x45" + bytes(8) + b"\x06" + bytes(22) + b"\x50" + bytes(3000)
        nonsense = [
            ("runt", b"", {}), ("runt", b"\1" * 13, {}), ("runt", HEAD[:12] + b"\x81\0", {}),
            ("oversized", HEAD + bytes(1501), {}), ("oversized", HEAD + bytes(60_000), {}),
            ("bad_offload", good, {"flags": 4}), ("bad_offload", good, {"flags": 255}),
            ("bad_offload", good, {"flags": 1, "start": 14, "offset": 60}),
            ("bad_offload", good, {"flags": 1, "start": 65535, "offset": 65535}),
            ("bad_offload", good, {"flags": 1, "start": 2, "offset": 2}),
            ("bad_offload", good, {"gso_type": 9, "gso_size": 100}),
            ("bad_offload", ip, {"gso_type": 1, "gso_size": 1000}),
            ("bad_offload", ip, {"flags": 1, "gso_type": 1, "gso_size": 0, "start": 34, "offset": 16}),
            ("bad_offload", ip, {"flags": 1, "gso_type": 4, "gso_size": 1000, "start": 34, "offset": 16}),
            ("oversized", ip, {"flags": 1, "gso_type": 1, "gso_size": 1480, "start": 34, "offset": 16})]
        queues[0].write(good)
        self.assertEqual(queues[1].read()[1], good)
        for number, (reason, frame, header) in enumerate(nonsense):
            with self.subTest(number=number, reason=reason):
                before = h1.drops("00000007")
                queues[0].write(frame, **header)
                queues[0].write(good)
                self.assertEqual(queues[1].read()[1], good)
                self.assertEqual(dict(h1.drops("00000007") - before), {reason: 1})
        self.assertEqual(h2.show("00000007")["received"]["frames"], len(nonsense) + 1)
        queues[0].socket.send(b"\0" * 3)  # less than a vnet header
        wait_until(lambda: h1.drops("00000007")["runt"] == 4, 10, "the last to be counted")


if __name__ == "__main__":
    unittest.main()
