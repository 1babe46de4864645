"""Who may not speak: strangers by the hundred thousand, bad certificates, and hosts that use others' wires.

Floods come from r, with senders out of 198.18.0.0/15, which both hosts route to r: answers are seen there.
"""

import contextlib
import json
import pathlib
import statistics
import subprocess
import time
import unittest

from tunnel_flows import Queue, Tcp
from tunnel_rig import CONNECTOR, NOWHERE, PORT, Host, Json, TunnelCase, World, issue, make_certificates
from tunnel_world import BUILD, RUN, inside, run, wait_until

FORGED = "198.18.0.0/15"
RATE = 10_000  # forged datagrams a second
SLICES = 10


class Flood(TunnelCase):
    def setUp(self) -> None:
        self.made = self.world()
        self.h1, self.h2 = self.made.hosts
        run("ip", "-n", "r", "route", "add", "local", FORGED, "dev", "lo")
        self.made.wires()
        self.made.up()

    def flood(self, kind: str, count: int, seed: int, rate: int = RATE) -> Json:
        words = ["--to", f"{self.h2.address}:{PORT}", "--from", FORGED, f"--{kind}", count, "--seed", seed,
                 "--rate", rate]
        with inside("r"):
            program = subprocess.Popen([BUILD / "flood", *map(str, words)], stdout=subprocess.PIPE, text=True)
        with contextlib.closing(program.stdout):
            said = program.communicate(timeout=60)[0]
        self.assertEqual(program.returncode, 0)
        return json.loads(said)

    def looked_at(self) -> int:
        """Datagrams that were answered by a challenge, or by nothing."""
        lane = self.h2.status()["lanes"][0]
        refused = self.h2.session()["refused"]
        return lane["challenges"] + lane["strangers"] + lane["no_session"] + sum(refused.values())

    def keeps_nothing(self, kind: str) -> Json:
        """100 000 at once; the sums of what was said, and how many challenges there were."""
        memory, before = self.h2.memory(), self.h2.status()
        said = self.flood(kind, 100_000, 1, 50_000)
        self.assertGreater(said["sent"], 99_000)
        # What the kernel had no room for is no answer either; yet most of them are to be looked at.
        self.assertGreater(self.looked_at(), 50_000)
        self.assertLessEqual(self.h2.memory() - memory, 5 << 20)
        after = self.h2.status()
        sessions = [[lane["sessions"] for lane in one["peers"][0]["lanes"]] for one in (before, after)]
        self.assertEqual(*sessions)
        self.assertTrue(self.h2.is_up())
        flow = self.numbered(self.h1, self.h2)
        flow.passes()
        return {**said, "challenges": after["lanes"][0]["challenges"] - before["lanes"][0]["challenges"]}

    def test_hellos(self) -> None:
        said = self.keeps_nothing("hello")
        self.assertGreater(said["answers"], 10_000)
        self.assertGreaterEqual(said["challenges"], said["answers"])
        self.assertLessEqual(said["answer_bytes"], said["request_bytes"])

    def test_random(self) -> None:
        said = self.keeps_nothing("random")
        self.assertEqual((said["answers"], said["challenges"]), (0, 0))

    def test_throughput(self) -> None:
        """TCP over a wire of the flooded host, by turns with and without; medians."""
        run("ip", "-n", "r", "route", "replace", "blackhole", FORGED)  # to take the answers costs r as much as h2
        run("ip", "-n", "r", "route", "del", "local", FORGED)
        flow = Tcp(self.h1, self.h2)
        self.addCleanup(flow.close)
        flow.stall(100_000_000, 30)
        for kind in ("hello", "random"):
            quiet, flooded = [], []
            for number in range(SLICES):
                quiet.append(flow.rate(0.8))
                before, begin = flow.received, time.monotonic()
                self.assertEqual(self.flood(kind, 100_000 // SLICES, number)["failed"], 0)
                flooded.append((flow.received - before) / (time.monotonic() - begin))
            kept = statistics.median(flooded) / statistics.median(quiet)
            print(f"{kind}: {statistics.median(quiet) * 8e-9:.2f} Gbit/s, flooded {kept:.0%}", end=" ", flush=True)
            with self.subTest(kind=kind):
                self.assertGreaterEqual(kept, 0.8)
        self.assertEqual(flow.broken, "")


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
            self.assertFalse(host.is_up())
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
        self.own(self.signed("-20days", "-1days"), "expired")

    def test_early_own(self) -> None:
        self.own(self.signed("+1days", "+20days"), "not yet valid")

    def own(self, certificate: pathlib.Path, reason: str) -> None:
        made = World()
        self.addCleanup(made.close)
        made.hosts[1].certificate = certificate
        with self.assertRaises(AssertionError) as caught:
            made.hosts[1].start()
        self.assertEqual(made.hosts[1].process.wait(), 1)
        self.assertIn(reason, str(caught.exception))

    def test_expires(self) -> None:
        """Good when its tunneld starts, it is not any more when a session is dialled."""
        def prepare(host: Host) -> None:
            host.certificate = self.signed("-1days", "+4seconds")

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

    def signed(self, begin: str, end: str) -> pathlib.Path:
        """One of h2, by the CA, valid between two times from now: openssl makes it, as the product does not."""
        make_certificates()
        place = RUN / "openssl"
        place.mkdir(exist_ok=True)
        (place / "index").write_text("")
        (place / "conf").write_text(f"[ca]\ndefault_ca=d\n[d]\ndatabase={place}/index\nnew_certs_dir={place}\n"
                                    "default_md=sha256\npolicy=p\nrand_serial=yes\nunique_subject=no\n"
                                    "copy_extensions=copy\n[p]\norganizationName=optional\n"
                                    "organizationalUnitName=optional\ncommonName=supplied\n")
        units = {"days": 86400, "seconds": 1}
        times = []
        for text in (begin, end):
            unit = next(unit for unit in units if text.endswith(unit))
            times.append(time.time() + int(text.removesuffix(unit)) * units[unit])
        self.ends = times[1]
        days = [time.strftime("%Y%m%d%H%M%SZ", time.gmtime(one)) for one in times]
        target = place / "h2-tunnel.crt"
        run("cp", RUN / "h2-tunnel.key", place)
        run("openssl", "x509", "-x509toreq", "-in", RUN / "h2-tunnel.crt", "-signkey", RUN / "h2-tunnel.key",
            "-copy_extensions", "copyall", "-out", place / "request")
        run("openssl", "ca", "-batch", "-notext", "-config", place / "conf", "-cert", RUN / "ca/ca.crt", "-keyfile",
            RUN / "ca/ca.key", "-in", place / "request", "-out", target, "-startdate", days[0], "-enddate", days[1])
        return target


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
        here.socket.setblocking(False)
        self.assertRaises(BlockingIOError, here.read)
        self.assertEqual(h1.call("wire.list", {"after": ""})["wires"][0]["connector"], CONNECTOR)


if __name__ == "__main__":
    unittest.main()
