"""A path that loses, repeats, delays and damages datagrams, shrinks, and changes addresses (tests/relay)."""

import pathlib
import socket
import time
import unittest
from collections import Counter

from tunnel_flows import Numbered, Queue, Tcp
from tunnel_rig import Host, TunnelCase
from tunnel_world import inside, wait_until

ALONE = 1200  # bytes of a frame that has a record of its own


def received_in_vain(host: Host) -> int:
    """Datagrams that the kernel dropped as tunneld did not take them in time."""
    with inside(host.name):
        lines = [line.split() for line in pathlib.Path("/proc/thread-self/net/snmp").read_text().splitlines()
                 if line.startswith("Udp:")]
    return int(dict(zip(*lines))["RcvbufErrors"])


class Damaged(TunnelCase):
    def setUp(self) -> None:
        self.made = self.world(relayed=1)
        self.made.wires()
        self.made.up()
        self.relay = self.made.relay
        assert self.relay
        self.h1, self.h2 = self.made.hosts

    def flow(self) -> Numbered:
        """From h1 to h2, after what the sessions begin with."""
        flow = self.numbered(self.h1, self.h2, size=ALONE)
        flow.passes()
        self.assertTrue(flow.all_there())
        return flow

    def refused(self, host: Host) -> Counter[str]:
        status = host.status()
        return Counter(status["peers"][0]["lanes"][0]["refused"]) + \
            Counter({name: status["lanes"][0][name] for name in ("strangers", "no_session")})

    def test_replayed(self) -> None:
        there, back = self.flow(), self.numbered(self.h2, self.h1, size=ALONE)
        for flow in (there, back):  # the relay's memory holds these, and nothing of the handshake
            flow.send(1200, rate=5000)
            self.assertTrue(flow.all_there())
        before = {host: self.refused(host) for host in self.made.hosts}
        sessions = [host.session()["sessions"] for host in self.made.hosts]  # h2's attempts to dial among them
        self.relay.do("rate", 25_000)
        self.relay.replay(100_000)
        for host in self.made.hosts:
            def counted(host: Host = host) -> int:
                more = self.refused(host) - before[host]
                return more["replayed"] + more["too_old"] + received_in_vain(host)

            wait_until(lambda: counted() >= 100_000, 20, f"{host.name} to count all (last: {counted()})")
            self.assertGreater(counted() - received_in_vain(host), 90_000)
        for flow in (there, back):
            self.assertEqual((len(flow.got), flow.twice), (flow.sent, 0))
            flow.passes()
        for host, number in zip(self.made.hosts, sessions):
            self.assertLessEqual(host.session()["sessions"], number)

    def damaged(self, rule: str, count: str) -> Counter[str]:
        """All frames arrive, once; all damaged copies are counted."""
        flow, before = self.flow(), self.refused(self.h2)
        self.relay.do(rule, 1)
        flow.send(3000, rate=5000)
        self.assertTrue(flow.all_there())
        self.relay.do(rule, 0)
        damaged = self.relay.stats()["up"][count]
        self.assertGreaterEqual(damaged, 3000)
        # One in thousands has a header that makes it a handshake's: such are ignored without a count.
        wait_until(lambda: (self.refused(self.h2) - before).total() > 0.99 * damaged, 10, "all to be counted")
        self.assertEqual(flow.twice, 0)
        flow.passes()
        self.assertEqual(self.h2.session()["rekeys"], 0)
        return self.refused(self.h2) - before

    def test_flipped(self) -> None:
        reasons = self.damaged("flip", "flipped")
        self.assertGreater(reasons["forged"], 2500, reasons)

    def test_truncated(self) -> None:
        reasons = self.damaged("truncate", "truncated")
        self.assertGreater(reasons["malformed"], 2500, reasons)

    def test_reordered(self) -> None:
        flow = self.flow()
        self.relay.do("reorder", 10)
        flow.send(5000, rate=10_000)
        self.relay.do("reorder", 0)
        flow.send(300, rate=10_000)
        late = self.relay.stats()["up"]["reordered"]
        wait_until(lambda: len(flow.got) + self.refused(self.h2)["too_old"] >= flow.sent, 10, "all to be accounted for")
        self.assertEqual(flow.twice, 0)
        self.assertLessEqual(flow.behind, 64, "one that has left the replay window was delivered")
        self.assertGreater(self.refused(self.h2)["too_old"], late / 2)


class Bad(TunnelCase):
    def test_connects(self) -> None:
        """30 % loss, reordering, duplicates, 200 ms each way: up in 10 s, ten times; no frame twice."""
        world = self.world(relayed=1, rules=("--loss", 30, "--reorder", 10, "--duplicate", 10, "--delay", 200))
        h1, h2 = world.hosts
        took = [world.up(20)]
        for host in world.hosts:
            host.wire(1)
        there, back = self.numbered(h1, h2), self.numbered(h2, h1)
        for _ in range(10):
            h1.configure()
            begin = time.monotonic()
            h1.peer("10.9.1.254", 1)
            wait_until(h1.is_up, 10, f"a session (before: {took})")
            took.append(time.monotonic() - begin)
            h1.wire(1)
            for flow in (there, back):
                flow.passes(20)
        self.assertLessEqual(max(took), 10)
        print("up after", " ".join(f"{seconds:.1f}" for seconds in took), "s", end=" ", flush=True)
        for flow in (there, back):
            flow.send(500, rate=500)
            wait_until(lambda: len(flow.got) > flow.sent / 3, 10, "frames")
            self.assertEqual(flow.twice, 0)


class Smaller(TunnelCase):
    def whole(self, sender: Host, receiver: Host) -> None:
        """UDP with DF set, as large as the wire's MTU."""
        with inside(receiver.name):
            taker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            taker.bind((f"10.10.0.{receiver.number}", 0))
        with inside(sender.name):
            giver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with taker, giver:
            taker.settimeout(10)
            giver.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
            for number in range(50):
                sent = bytes([number]) * 1472
                giver.sendto(sent, taker.getsockname())
                self.assertEqual(taker.recv(2048), sent)

    def shrinks(self, relayed: int) -> None:
        world = self.world(relayed=relayed)
        h1, h2 = world.hosts
        world.wires()
        world.up()
        wait_until(lambda: h1.session()["path_mtu"] == 1500, 30, "the search for the path's MTU")
        flow = Tcp(h1, h2)
        self.addCleanup(flow.close)
        flow.stall(20_000_000, 20)
        flow.gap = 0
        if world.relay:
            world.relay.do("mtu", 1280)
        else:
            world.link_mtu(1280)
        flow.rate(4)
        before = flow.received
        flow.stall(5_000_000, 10)
        self.assertLess(flow.gap, 3)
        self.assertEqual(flow.broken, "")
        self.assertLessEqual(h1.session()["path_mtu"], 1280)
        print(f"TCP paused for {flow.gap:.2f} s", end=" ", flush=True)
        self.assertGreater(flow.received, before)
        self.whole(h1, h2)

    def test_silently(self) -> None:
        self.shrinks(1)

    def test_silently_behind_nat(self) -> None:
        self.shrinks(2)

    def test_own_link(self) -> None:
        self.shrinks(0)


class Nat(TunnelCase):
    def followed(self, dials: int) -> None:
        """Frames go both ways all the time; ports and address change four times."""
        world = self.world(relayed=dials)
        relay = world.relay
        assert relay
        inner, outer = world.hosts[dials - 1], world.hosts[2 - dials]
        world.wires()
        world.up()
        out, back = self.numbered(inner, outer), self.numbered(outer, inner)
        took = []
        for number in range(4):
            out.passes()
            back.passes()
            relay.do("rebind")
            took.append(max(out.passes(), back.passes()))
            wait_until(lambda: outer.session()["moved"] == number + 1, 10, "the move to be counted")
        print("followed after", " ".join(f"{seconds * 1000:.0f}" for seconds in took), "ms", end=" ", flush=True)
        self.assertLess(max(took), 3)
        self.assertEqual((out.twice, back.twice), (0, 0))
        self.assertEqual((inner.session()["rekeys"], outer.session()["rekeys"]), (0, 0), "by a new session only")

    def test_one_end(self) -> None:
        self.followed(1)

    def test_other_end(self) -> None:
        self.followed(2)


class Dead(TunnelCase):
    def setUp(self) -> None:
        self.made = self.world(relayed=1)
        self.made.wires()
        self.made.up()
        self.h1, self.h2 = self.made.hosts
        self.flow = self.numbered(self.h1, self.h2)
        self.flow.passes()

    def cut(self) -> None:
        """The path takes nothing any more; returns as soon as h1 knows."""
        assert self.made.relay
        self.made.relay.do("loss", 100)

        def gone() -> bool:
            self.flow.send()
            return not self.h1.is_up()

        wait_until(gone, 15, "the peer to count as dead")
        self.assertIn("no answer for 5 s", self.h1.reasons())

    def test_held(self) -> None:
        self.cut()
        assert self.made.relay
        self.made.relay.do("loss", 0)
        before = self.flow.sent
        self.flow.send(100)
        wait_until(lambda: all(number in self.flow.got for number in range(before, self.flow.sent)), 3,
                   "what was sent meanwhile")
        self.assertEqual(self.flow.twice, 0)
        self.assertNotIn("no_session", self.h1.drops())

    def test_held_no_longer(self) -> None:
        queue = Queue()
        self.addCleanup(queue.close)
        self.h1.add_wire("00000007", [queue.handed.fileno()])
        self.cut()
        begin = time.monotonic()
        for _ in range(10):
            queue.write(bytes(64))
        wait_until(lambda: self.h1.drops("00000007")["no_session"] == 10, 10, "frames to be given up")
        self.assertGreater(time.monotonic() - begin, 2.5, "they are held for 3 s")
        assert self.made.relay
        self.made.relay.do("loss", 0)
        self.made.up(20)
        self.flow.passes()


if __name__ == "__main__":
    unittest.main()
