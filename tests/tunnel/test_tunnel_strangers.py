"""Who may not speak: bad certificates, hosts that use others' wires, and addresses that prove nothing."""

import json
import pathlib
import sys
import time
import unittest

from tunnel_flows import Queue
from tunnel_rig import CONNECTOR, NOWHERE, PORT, Host, TunnelCase, World, issue, make_certificates
from tunnel_world import BUILD, RUN, run, wait_until

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lab"))
from lab_pki import redated  # noqa: E402

DAY = 86400
SECOND = "198.18.0.7"


class SecondAddress(TunnelCase):
    """r passes datagrams from h1 to h2 on as if they came from SECOND, where nobody answers: that address proves
    nothing, so the session stays where it is."""

    def setUp(self) -> None:
        made = self.world()
        self.h1, self.h2 = made.hosts
        made.wires()
        made.up()
        run("ip", "-n", "r", "route", "add", "blackhole", SECOND)
        self.flow = self.numbered(self.h1, self.h2, size=1200)  # alone in its record
        self.flow.passes()

    def stays(self, rule: str) -> None:
        rules = RUN / "second.nft"
        rules.write_text(f"""\
table ip second {{
    counter altered {{}}
    counter asked {{}}
    chain c {{
        type filter hook prerouting priority 0
        iifname r1 ip daddr {self.h2.address} meta l4proto udp {rule}
        iifname r2 ip daddr {SECOND} counter name asked
    }}
}}
""")
        run("ip", "netns", "exec", "r", "nft", "-f", rules)
        self.flow.send(3000, rate=2000)
        self.assertTrue(self.flow.all_there(), f"{len(self.flow.got)} of {self.flow.sent}")
        self.assertEqual(self.flow.twice, 0)
        listed = json.loads(run("ip", "netns", "exec", "r", "nft", "-j", "list", "counters"))["nftables"]
        self.counted = {item["counter"]["name"]: item["counter"]["packets"] for item in listed if "counter" in item}
        self.assertGreater(self.counted["altered"], 500)
        session = self.h2.session()
        self.assertEqual((session["moved"], session["state"]), (0, "up"))
        self.assertNotIn(SECOND, session["address"])
        back = self.numbered(self.h2, self.h1)
        back.passes()

    def test_fresh(self) -> None:
        """It is asked, once a second at most, and no answer comes."""
        self.stays(f"numgen inc mod 3 0 counter name altered ip saddr set {SECOND}")
        self.assertGreater(self.counted["asked"], 0)
        self.assertLess(self.counted["asked"], 20)

    def test_replayed(self) -> None:
        """A record that was opened before is not even a reason to ask."""
        before = self.h2.session()["refused"].get("replayed", 0)
        self.stays(f'dup to {self.h2.address} device "r2" counter name altered ip saddr set {SECOND}')
        self.assertEqual(self.counted["asked"], 0)
        self.assertGreater(self.h2.session()["refused"]["replayed"] - before, 500)


class Certificates(TunnelCase):
    def started(self, prepare: "object") -> World:
        made = World()
        self.addCleanup(made.close)
        prepare(made.hosts[1])  # type: ignore[operator]
        return made.start()

    def refused(self, prepare: "object", here: str, there: str) -> None:
        """h2 is not what it should be: no session, and both ends say why. `there`: what h2 is told."""
        h1, h2 = self.started(prepare).hosts
        self.made = h1, h2
        for host, reason in ((h1, here), (h2, there)):
            wait_until(lambda: host.status() and reason in host.reasons(), 20, f"'{reason}' at {host.name}")
        self.assertFalse(h1.is_up())
        # A session that h2 dials may be up there for a moment, before h1 closes it.
        wait_until(lambda: not h2.is_up(), 5, "h2 to have no session")
        self.assertTrue(h1.said(here), "it is not in the log")
        h1.wire(1)
        h2.wire(1)
        flow = self.numbered(h1, h2)
        flow.send(10)
        wait_until(lambda: h1.drops()["no_session"] >= 10, 10, "frames to be given up")
        self.assertEqual(len(flow.got), 0)

    def test_other_ca(self) -> None:
        def prepare(host: Host) -> None:
            run(BUILD / "banana", "pki", "init", "--dir", RUN / "other", "--overwrite")
            host.certificate, host.ca = issue("h2", ca="other"), RUN / "other/ca.crt"

        self.refused(prepare, "CA", "CA")

    def test_other_name(self) -> None:
        def prepare(host: Host) -> None:
            host.certificate = RUN / "h3-tunnel.crt"

        self.refused(prepare, "is of host 'h3'; 'h2' was expected", "it does not name the host that was expected")

    def test_no_peer(self) -> None:
        """A good certificate of a host that is not among the peers; only it dials."""
        made = self.started(lambda host: setattr(host, "certificate", RUN / "h3-tunnel.crt"))
        h1, h2 = made.hosts
        h1.peer(NOWHERE, 1)
        h2.peer(h1.address, 1)
        wait_until(lambda: h1.said("host 'h3' is no peer of this host"), 20, "the refusal")
        self.assertFalse(h1.is_up())
        # For h2 a session is up before h1 closes it. It is not dialled again at once.
        begin, before = time.monotonic(), h2.log.read_text().count("connecting -> up")
        wait_until(lambda: h2.log.read_text().count("connecting -> up") >= before + 3, 30, "more attempts")
        self.assertGreater(time.monotonic() - begin, 0.6)

    def test_role(self) -> None:
        """Its own tunneld refuses it at once; what peers do with bad ones: tests/netns/test_tunnel_lane.cpp."""
        make_certificates()
        self.own(issue("h2", role="controller"), "tunnel")

    def test_expired_own(self) -> None:
        self.own(self.signed(-20 * DAY, -DAY), "expired")

    def test_early_own(self) -> None:
        """The one that time mends: systemd is to try again."""
        self.own(self.signed(DAY, 20 * DAY), "not yet valid", 1)

    def own(self, certificate: pathlib.Path, reason: str, status: int = 2) -> None:
        made = World()
        self.addCleanup(made.close)
        made.hosts[1].certificate = certificate
        with self.assertRaises(AssertionError) as caught:
            made.hosts[1].start()
        self.assertEqual(made.hosts[1].process.wait(), status)
        self.assertIn(reason, str(caught.exception))

    def test_expires(self) -> None:
        """Good when its tunneld starts, it is not any more when a session is dialled."""
        def prepare(host: Host) -> None:
            host.certificate = self.signed(-DAY, 4)

        made = self.started(prepare)
        h1, h2 = made.hosts
        for host in made.hosts:
            host.call("peers", {"peers": []})
        wait_until(lambda: time.time() > self.ends + 1, 20, "the certificate to expire")
        for host, other in (made.hosts, made.hosts[::-1]):
            host.peer(other.address, 1)
        for host in made.hosts:
            wait_until(lambda: host.status() and "expired" in host.reasons(), 20, f"the reason at {host.name}")
            self.assertFalse(host.is_up())
        self.assertTrue(h1.said("expired"))
        self.assertIn("the other end refused this host's certificate", h2.reasons())

    def test_expires_meanwhile(self) -> None:
        """A session that is up goes on when it cannot be rekeyed any more, and both ends say why."""
        made = World()
        self.addCleanup(made.close)
        made.hosts[1].certificate = self.signed(-DAY, 6)
        for host in made.hosts:
            host.start()
            host.configure(rekey_seconds=2)
        for host, other in (made.hosts, made.hosts[::-1]):
            host.peer(other.address, 1)
        made.wires()
        made.up()
        flow = self.numbered(*made.hosts)
        for host in made.hosts:
            wait_until(lambda: "expired" in host.session()["reason"], 20, f"the reason at {host.name}")
            self.assertEqual(host.session()["state"], "up")
            self.assertTrue(host.session()["reason"].startswith("rekey: "), host.session()["reason"])
        flow.passes()
        flow.send(2000, rate=1000)
        self.assertTrue(flow.all_there(), f"{len(flow.got)} of {flow.sent}")
        self.assertTrue(made.hosts[1].said("the other end refused this host's certificate"))

    def signed(self, begin: float, end: float) -> pathlib.Path:
        """One of h2, by the CA, valid between two times from now, seconds."""
        make_certificates()
        self.ends = time.time() + end
        return redated(RUN / "h2-tunnel.crt", RUN / "ca", RUN / "openssl", begin, end)


class Wires(TunnelCase):
    def test_not_its_own(self) -> None:
        """h2 sends on wires that are another host's, that h1 does not have, and that h1 had: none is delivered."""
        made = self.world()
        h1, h2 = made.hosts
        h1.peer(h2.address, 1, more=[{"name": "h3", "address": NOWHERE, "port": PORT, "lanes": 1}])
        here, there = Queue(), {name: Queue() for name in ("foreign", "unknown", "retired")}
        for queue in (here, *there.values()):
            self.addCleanup(queue.close)
        ids = {"foreign": "000000f0", "unknown": "000000f1", "retired": "000000f2"}
        h1.add_wire(ids["foreign"], [here.handed.fileno()], peer="h3")
        for name, queue in there.items():
            h2.add_wire(ids[name], [queue.handed.fileno()])
        made.wires()
        wait_until(lambda: h1.session()["state"] == h2.session()["state"] == "up", 15, "the session")
        retired = Queue()
        self.addCleanup(retired.close)
        h1.add_wire(ids["retired"], [retired.handed.fileno()])
        there["retired"].write(bytes(64))
        self.assertEqual(retired.read()[1], bytes(64))
        h1.call("wire.remove", {"connector": ids["retired"]})
        flow = self.numbered(h2, h1)
        for _ in range(100):
            for queue in there.values():
                queue.write(bytes(64))
            flow.send()
        self.assertTrue(flow.all_there())
        wait_until(lambda: h1.drops()["unknown_wire"] == 200, 10, "both to be counted")
        wait_until(lambda: h1.drops(ids["foreign"])["foreign_wire"] == 100, 10, "the other host's to be counted")
        self.assertEqual(h1.show(ids["foreign"])["received"]["frames"], 0)
        # Who did it is told: bananad shows the reason in `banana peer list`.
        told = next(peer for peer in h1.call("status")["peers"] if peer["name"] == "h2")
        self.assertEqual((told["state"], told["reason"]),
                         ("up", "it sends frames for wires of other hosts, which are dropped"))
        here.socket.setblocking(False)
        self.assertRaises(BlockingIOError, here.read)
        self.assertEqual(h1.call("wire.list", {"after": ""})["wires"][0]["connector"], CONNECTOR)


if __name__ == "__main__":
    unittest.main()
