"""Datagrams of strangers by the hundred thousand: they cost no memory, get no more than a challenge, and leave wires
their throughput.

Floods come from r, with senders out of 198.18.0.0/15, which both hosts route to r: answers are seen there.
"""

import contextlib
import json
import statistics
import subprocess
import time
import unittest

from tunnel_flows import Tcp
from tunnel_rig import NOWHERE, PORT, Json, TunnelCase
from tunnel_world import BUILD, RUN, inside, run, wait_until

FORGED = "198.18.0.0/15"
RATE, FAST = 10_000, 50_000  # forged datagrams a second
KEPT = 0.8  # of the throughput
KEPT_FAST = 0.3  # only lest it stand still
SLICES = 10
SINK = 9  # a UDP port; discard (RFC 863)


class Flood(TunnelCase):
    def setUp(self) -> None:
        self.made = self.world()
        self.h1, self.h2 = self.made.hosts
        run("ip", "-n", "r", "route", "add", "local", FORGED, "dev", "lo")
        self.made.wires()
        self.made.up()

    def flood_words(self, kind: str, count: int, seed: int, rate: int, port: int = PORT) -> list[str]:
        words = [BUILD / "flood", "--to", f"{self.h2.address}:{port}", "--from", FORGED, f"--{kind}", count, "--seed",
                 seed, "--rate", rate]
        return [str(word) for word in words]

    def flood(self, kind: str, count: int, seed: int, rate: int = RATE, port: int = PORT) -> Json:
        with inside("r"):
            words = self.flood_words(kind, count, seed, rate, port)
            program = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
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
        said = self.flood(kind, 100_000, 1, FAST)
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

    def unanswered(self) -> None:
        """To take the answers costs r as much as h2."""
        run("ip", "-n", "r", "route", "replace", "blackhole", FORGED)
        run("ip", "-n", "r", "route", "del", "local", FORGED)

    def test_throughput(self) -> None:
        """TCP over a wire of the flooded host, by turns with and without; medians. What an attacker's own CPU does is
        no loss of the host's: without is with a flood that does not leave r."""
        self.unanswered()
        sink = RUN / "sink.nft"
        sink.write_text(f"""\
table netdev sink {{
    chain c {{
        type filter hook egress device r2 priority 0
        udp dport {SINK} drop
    }}
}}
""")
        run("ip", "netns", "exec", "r", "nft", "-f", sink)
        flow = Tcp(self.h1, self.h2)
        self.addCleanup(flow.close)
        flow.stall(100_000_000, 30)
        for kind, rate in (("hello", RATE), ("random", RATE), ("hello", FAST)):
            quiet, flooded = [], []
            for number in range(SLICES):
                for port, rates in ((SINK, quiet), (PORT, flooded)):
                    before, begin = flow.received, time.monotonic()
                    self.assertEqual(self.flood(kind, rate, number, rate, port)["failed"], 0)
                    rates.append((flow.received - before) / (time.monotonic() - begin))
            kept = statistics.median(flooded) / statistics.median(quiet)
            print(f"{kind} {rate}/s: {statistics.median(quiet) * 8e-9:.2f} Gbit/s, flooded {kept:.0%}", end=" ",
                  flush=True)
            with self.subTest(kind=kind, rate=rate):
                self.assertGreaterEqual(kept, KEPT if rate == RATE else KEPT_FAST)
        self.assertEqual(flow.broken, "")

    def test_new_session(self) -> None:
        """It comes up amidst hellos, by the socket that they go to: h2 cannot dial."""
        self.unanswered()
        self.h2.peer(NOWHERE, 1)
        words = self.flood_words("hello", 8 * FAST, 1, FAST)
        took, challenges = [], self.h2.status()["lanes"][0]["challenges"]
        with inside("r"), subprocess.Popen(words, stdout=subprocess.DEVNULL) as flood:
            self.addCleanup(flood.kill)
            for _ in range(4):
                time.sleep(0.3)
                self.h1.configure()
                begin = time.monotonic()
                self.h1.peer(self.h2.address, 1)
                wait_until(self.h1.is_up, 10, f"a session (before: {took})")
                took.append(time.monotonic() - begin)
            time.sleep(1)  # not a wait for anything: more of the flood
            self.assertIsNone(flood.poll(), "the flood has ended before")
            flood.kill()
        self.assertGreater(self.h2.status()["lanes"][0]["challenges"] - challenges, 10_000)
        print("up after", " ".join(f"{seconds:.2f}" for seconds in took), "s", end=" ", flush=True)
        self.assertLess(max(took), 3)


if __name__ == "__main__":
    unittest.main()
