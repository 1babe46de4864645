#!/usr/bin/python3
"""Migrations that begin and do not end well: cancelled, QEMU killed, controllers killed. Root.

    ext -- hv1 (Corm lab) ... hv2 ... hv3        vm1 moves between hv2 and hv3, slowly, so that there is a middle
"""

import os
import signal
import sys
import time
import unittest
from typing import Any

sys.dont_write_bytecode = True

import lab_measure  # noqa: E402
import lab_product as product  # noqa: E402
from banana_lab import Lab, LabError, Nic, Process, Vm, underlay_address, wait_until  # noqa: E402
from test_peers import rogue  # noqa: E402

ADDRESS = "10.77.0.10"
SPIKE = "hv2/vm1/net0"  # where it was started first
OTHER = {"hv2": "hv3", "hv3": "hv2"}
SLOW = 4  # MiB/s: some ten seconds for what the guest has touched of its memory
FAST = 1000


class FailedMigrationTest(unittest.TestCase):
    lab: Lab

    @classmethod
    def setUpClass(cls) -> None:
        cls.lab = cls.enterClassContext(product.own_lab(cls, 3))
        product.wait_whole(cls.lab)
        product.create_corm(cls.lab, "hv2")
        cls.lab.start_vm(Vm("vm1", [Nic(network="banana-lab", address=f"{ADDRESS}/24")]), "hv2")

    def setUp(self) -> None:
        product.wait_peers(self.lab)
        product.wait_tidy(self.lab)
        self.source = self.lab.find_vm("vm1")
        self.goal = OTHER[self.source]
        self.before = product.wire(self.lab, "hv1", SPIKE)
        assert self.before

    def begin(self, speed: int = SLOW) -> Process:
        """A migration under way: the standby wire stands, the destination's QEMU reads memory."""
        self.lab.virsh(self.source, "migrate-setspeed", "vm1", speed)
        moving = self.lab.spawn(self.source, *product.migrate_words("vm1", self.goal))
        self.addCleanup(moving.kill)
        wait_until(lambda: "Memory remaining" in self.job() or self.ended(moving), 30, "the migration to begin")
        seen = product.wire(self.lab, "hv1", SPIKE)
        assert seen and seen["phase"] == "standby", seen
        return moving

    def ended(self, moving: Process) -> bool:
        if moving.status is None:
            return False
        raise LabError(f"the migration ended already, status {moving.status}: {moving.read().strip()}")

    def job(self) -> str:
        return self.lab.exec(self.source, "virsh", "-q", "domjobinfo", "vm1", check=False).stdout

    def runs_on(self, host: str) -> None:
        """It runs there and nowhere else, is reached, and nothing of the attempt is left."""
        wait_until(lambda: product.state(self.lab, host, "vm1") == "running", 30, f"the guest to run on {host}")
        self.assertTrue(product.reaches(self.lab, ADDRESS, 30))
        product.wait_tidy(self.lab)
        other = {"hv2": "hv3", "hv3": "hv2"}[host]
        self.assertNotIn("vm1", self.lab.virsh(other, "list", "--name").split())
        self.assertFalse(product.spikes(self.lab, other))
        seen = product.wire(self.lab, "hv1", SPIKE)
        assert seen
        self.assertEqual(seen["spike_host"], host)

    def stays(self) -> None:
        self.runs_on(self.source)
        seen = product.wire(self.lab, "hv1", SPIKE)
        assert self.before and seen
        self.assertEqual([seen[key] for key in ("epoch", "device")], [self.before[key] for key in ("epoch", "device")])

    def hurry(self) -> None:
        self.lab.exec(self.source, "virsh", "-q", "migrate-setspeed", "vm1", FAST, check=False)

    def test_1_cancelled_under_traffic(self) -> None:
        with lab_measure.Traffic(self.lab, ADDRESS) as traffic:
            moving = self.begin()
            self.lab.virsh(self.source, "domjobabort", "vm1")
            self.assertNotEqual(moving.wait(30), 0)
            self.stays()
            report = traffic.finish()
        for way in ("to_guest", "from_guest"):  # nothing was switched, so nothing can be lost
            self.assertEqual(report[way]["lost"], 0, report[way])
        self.assertTrue(report["tcp"]["survived"])

    def test_2_destination_qemu_killed_at_once(self) -> None:
        moving = self.begin()
        self.kill_qemu(self.goal)
        self.assertNotEqual(moving.wait(60), 0)
        self.stays()

    def kill_qemu(self, host: str) -> None:
        pids = self.lab.pids(host, "qemu-system-x86_64")
        self.assertEqual(len(pids), 1)
        os.kill(pids[0], signal.SIGKILL)

    def test_3_destination_qemu_killed_after_the_stop(self) -> None:
        """The destination is frozen with a little left to send: the source stops, sends it into the sockets' buffers,
        and the frames to the guest are turned to a destination that will never run."""
        events = lab_measure.EventReader(self.lab, self.source)
        self.addCleanup(events.close)
        events.wait_ready()
        moving = self.begin()
        frozen, = self.lab.pids(self.goal, "qemu-system-x86_64")
        wait_until(lambda: self.remaining_mib() < 6 or self.ended(moving), 60, "the end of the memory to be near")
        os.kill(frozen, signal.SIGSTOP)
        try:
            self.hurry()
            wait_until(lambda: any(event.name == "STOP" for event in events.events()), 30, "the source's STOP")
            flipped = wait_until(lambda: product.ask(self.lab, "hv1", "wire.list")["wires"][0]["spike_host"]
                                 == self.goal, 10, "the wire's flip")
            self.assertTrue(flipped)
        finally:
            os.kill(frozen, signal.SIGKILL)
        self.assertNotEqual(moving.wait(60), 0)
        self.stays()

    def test_3b_destination_qemu_killed_after_the_switch(self) -> None:
        """The wire is the destination's already, whose daemon is away, when the guest is let run on at the source."""
        moving = self.begin()
        moving.signal(signal.SIGSTOP)  # virsh tells the hosts what comes next
        try:
            self.hurry()
            wait_until(lambda: self.wire()["phase"] == "flipped", 60, "the wire's flip")
            asking = ("virsh", "qemu-monitor-command", "vm1", '{"execute": "query-migrate"}')
            wait_until(lambda: '"completed"' in self.lab.exec(self.source, *asking, check=False).stdout, 30,
                       "all of its memory to be there")
            with product.without_bananad(self.lab, self.goal):
                wire = self.wire()
                taking = ["wire.activate", {"spike": wire["spike"], "epoch": wire["standby"]["epoch"]}]
                self.assertEqual(rogue(self.lab, self.goal, underlay_address("hv1"), [taking])[1]["result"], {})
                self.assertEqual((self.wire()["phase"], self.wire()["spike_host"]), ("active", self.goal))
                self.kill_qemu(self.goal)
                moving.signal(signal.SIGCONT)
                self.assertNotEqual(moving.wait(60), 0)
                wait_until(lambda: f"Spike {SPIKE} belongs to {self.goal}, not to {self.source}" in product.bananad_log(
                    self.lab, self.source), 20, "the source to ask for its wire")
        finally:
            moving.signal(signal.SIGCONT)
        self.runs_on(self.source)

    def wire(self) -> dict[str, Any]:
        found = product.wire(self.lab, "hv1", SPIKE)
        assert found
        return found

    def remaining_mib(self) -> float:
        for line in self.job().splitlines():
            if line.startswith("Memory remaining:"):
                amount, unit = line.split()[2:4]
                return float(amount) * {"B": 2**-20, "KiB": 2**-10, "MiB": 1, "GiB": 2**10}[unit]
        return float("inf")

    def test_4_destination_qemu_killed_at_any_moment(self) -> None:
        """From before the switch to after it: the guest is left at the source, or has gone with its QEMU."""
        for delay in (0.0, 0.05, 0.1, 0.2, 0.4):
            with self.subTest(delay=delay):
                self.setUp()
                events = lab_measure.EventReader(self.lab, self.goal)
                self.addCleanup(events.close)
                events.wait_ready()
                moving = self.begin(32)
                self.hurry()
                time.sleep(delay)  # the moment itself, not a wait for it
                for pid in self.lab.pids(self.goal, "qemu-system-x86_64"):
                    os.kill(pid, signal.SIGKILL)
                if moving.wait(60) and product.state(self.lab, self.source, "vm1") == "running":
                    self.runs_on(self.source)
                    continue
                product.wait_tidy(self.lab)
                self.assertFalse(product.ask(self.lab, "hv1", "wire.list")["wires"])
                print(f"killed {delay} s in: it had moved already", file=sys.stderr)
                self.start_again()

    def start_again(self) -> None:
        for host in OTHER:
            self.lab.exec(host, "virsh", "-q", "destroy", "vm1", check=False)
        self.lab.start_vm(Vm("vm1", [Nic(network="banana-lab", address=f"{ADDRESS}/24")]), "hv2")

    def killed(self, host: str) -> None:
        """That host's controller dies in the middle, comes back, and the migration ends either way."""
        moving = self.begin()
        product.restart_bananad(self.lab, host)
        self.hurry()
        status = moving.wait(60)
        print(f"bananad of {host} killed in the middle: virsh says {status}: {moving.read().strip()}", file=sys.stderr)
        if status == 0:
            self.runs_on(self.goal)
        else:
            self.stays()

    def test_5_source_controller_killed(self) -> None:
        self.killed(self.source)

    def test_6_destination_controller_killed(self) -> None:
        self.killed(self.goal)

    def test_7_corm_controller_killed(self) -> None:
        self.killed("hv1")

    def test_8_corm_controller_away_during_the_switch(self) -> None:
        """The switch waits for it; nobody decides in its place."""
        moving = self.begin()
        with product.without_bananad(self.lab, "hv1"):
            self.hurry()
            self.assertEqual(moving.wait(60), 0)
            self.assertFalse(product.reaches(self.lab, ADDRESS, 1))
        self.runs_on(self.goal)

    def test_9_cancelled_without_controllers(self) -> None:
        """Nobody hears of the failure but those who come back."""
        moving = self.begin()
        with product.without_bananad(self.lab, "hv1", "hv2", "hv3"):
            self.lab.virsh(self.source, "domjobabort", "vm1")
            self.assertNotEqual(moving.wait(30), 0)
        self.stays()


if __name__ == "__main__":
    unittest.main(verbosity=2)
