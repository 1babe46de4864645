#!/usr/bin/python3
"""The lab's own test: what it promises to those who build on it. Root; two minutes."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import unittest

sys.dont_write_bytecode = True

import lab_guest  # noqa: E402
import lab_measure  # noqa: E402
from banana_lab import STATE_DIR, Lab, LabError, Nic, Vm, wait_until  # noqa: E402

OWNER = """
import sys, time
sys.dont_write_bytecode = True
from banana_lab import Lab, Nic, Vm
import lab_measure
lab = Lab(2, name=sys.argv[1], bananad=False).up()
lab_measure.stretch_bridge(lab)
lab.start_vm(Vm("vm1", [Nic(bridge="br0", address="10.77.0.11/24")]), "hv1")
print("UP", flush=True)
time.sleep(600)
"""


def namespaces(pids: list[int]) -> set[str]:
    """Names of the namespaces of processes that are not this process's own."""
    found = set()
    for pid in pids:
        for kind in ("net", "mnt", "pid", "uts"):
            try:
                name = os.readlink(f"/proc/{pid}/ns/{kind}")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # gone, or not even root may look: not the lab's
            if name != os.readlink(f"/proc/self/ns/{kind}"):
                found.add(name)
    return found


def all_pids() -> list[int]:
    return [int(path.name) for path in pathlib.Path("/proc").iterdir() if path.name.isdigit()]


def machine() -> tuple[str, str, str]:
    """What a lab could leave on the machine outside its processes."""
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    named = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    lab_links = "\n".join(line for line in links.splitlines() if re.match(r"(u-|l-|under0|lan0|vnet|bn|br0|vx0)", line))
    return lab_links, named, pathlib.Path("/proc/self/mountinfo").read_text()


class LabTest(unittest.TestCase):
    name = f"test{os.getpid()}"

    def test_killed_owner_leaves_nothing(self) -> None:
        before = machine()
        owner = subprocess.Popen([sys.executable, "-c", OWNER, self.name], stdout=subprocess.PIPE, text=True,
                                 cwd=pathlib.Path(__file__).parent)
        assert owner.stdout
        try:
            self.assertEqual(owner.stdout.readline(), "UP\n")
            lab = Lab.attach(self.name)
            theirs = [lab._init, *lab._descendants()]
            spaces = namespaces(theirs)
            programs = {pathlib.Path(f"/proc/{pid}/comm").read_text().strip() for pid in theirs}
            self.assertLessEqual({"libvirtd", "virtlogd", "qemu-system-x86"}, programs)
            self.assertGreaterEqual(len(spaces), 10)
        finally:
            owner.kill()
            owner.wait()
            owner.stdout.close()
        wait_until(lambda: not spaces & namespaces(all_pids()), 15, "the lab's processes to end with their owner")
        wait_until(lambda: not (STATE_DIR / self.name).exists(), 5, "the state directory to go")
        self.assertEqual(machine(), before)
        with self.assertRaisesRegex(LabError, "no lab"):
            Lab.attach(self.name)

    def test_killed_init_is_seen_and_replaced(self) -> None:
        with Lab(1, name=self.name, bananad=False, detached=True) as lab:
            os.kill(lab._init, signal.SIGKILL)
            assert lab._launcher
            lab._launcher.wait()
            with self.assertRaisesRegex(LabError, "was killed"):
                Lab.attach(self.name)
            with Lab(1, name=self.name, bananad=False):
                Lab.attach(self.name)

    def test_two_labs_do_not_see_each_other(self) -> None:
        with Lab(1, name=f"{self.name}a", bananad=False) as one, Lab(2, name=f"{self.name}b", bananad=False) as two:
            self.assertNotEqual(one.pids("hv1", "libvirtd"), two.pids("hv1", "libvirtd"))
            one.exec("hv1", "touch", "/etc/banana/mark")
            self.assertEqual(two.exec("hv1", "ls", "/etc/banana").stdout, "")
            self.assertFalse(pathlib.Path("/etc/banana/mark").exists())
            with self.assertRaisesRegex(LabError, "is up"):
                Lab(1, name=f"{self.name}a", bananad=False).up()
            self.assertTrue(one.pids("hv1", "libvirtd"))  # the refused one did not take it down

    def test_programs_and_errors(self) -> None:
        with Lab(2, name=self.name, bananad=False, underlay_mtu=1400, sites=["a", "b"], uplinks="all") as lab:
            self.assertEqual(lab.exec("hv2", "hostname").stdout, "hv2\n")
            self.assertEqual([lab.host("hv1").site, lab.host("hv2").site], ["a", "b"])
            self.assertIn("mtu 1400", lab.exec("hv2", "ip", "link", "show", "eth0").stdout)
            self.assertIn("eth1", os.listdir(lab.host("hv2").root / "sys/class/net"))
            self.assertEqual(lab.exec("hv1", "sh", "-c", "exit 7", check=False).returncode, 7)
            with self.assertRaisesRegex(LabError, "hv1: cat /nowhere: status 1: .*No such file"):
                lab.exec("hv1", "cat", "/nowhere")
            with self.assertRaisesRegex(LabError, "no host 'hv9'"):
                lab.exec("hv9", "true")
            with lab.spawn("hv1", "sleep", "500") as sleeper:
                wait_until(lambda: sleeper.pid, 5, "sleep")
                sleeper.signal(signal.SIGTERM)
                self.assertNotEqual(sleeper.wait(5), 0)
            running = lambda: lab.exec("hv1", "pgrep", "-f", "^sleep 501", check=False).stdout  # noqa: E731
            sleeper = lab.spawn("hv1", "sleep", "501")
            wait_until(running, 5, "sleep")
            sleeper.kill()
            wait_until(lambda: not running(), 5, "the end of sleep with what started it")
            lab.kill_daemon("hv1", "libvirtd", signal.SIGKILL)
            lab.start_libvirtd("hv1")
            self.assertEqual(len(lab.pids("hv1", "libvirtd")), 1)

    def test_guest_migrates_and_gets_nics(self) -> None:
        with Lab(2, name=self.name, bananad=False) as lab:
            lab_measure.stretch_bridge(lab)
            vm = Vm("vm1", [Nic(bridge="br0", address="10.77.0.11/24")], spare_addresses=("10.77.0.12/24",))
            lab.start_vm(vm, "hv1")
            for destination in ("hv2", "hv1"):
                def migrate(_: bool, to: str = destination) -> lab_measure.Measured:
                    return lab_measure.migrate_under_traffic(lab, "vm1", to, "10.77.0.11")
                measured = lab_measure.despite_panics(lab, "vm1", migrate)
                self.assertEqual(lab.find_vm("vm1"), destination)
                self.assertTrue(measured.traffic["complete"])
                self.assertTrue(measured.traffic["tcp"]["survived"])
                self.assertIsNotNone(measured.migration.stop_to_resume_ms)
                # Plain libvirt loses what arrives while the guest stands still; the measure must see it.
                lost = measured.traffic["to_guest"]["lost"]
                self.assertGreater(lost, 0)
                # So does the witness at the tap, of those that were lost in a row: one a millisecond.
                in_a_row = max(last - first + 1 for first, last in measured.traffic["to_guest"]["missing"])
                assert measured.tap_gap_ms is not None
                self.assertGreater(measured.tap_gap_ms, 0.8 * in_a_row)
                self.assertLess(measured.tap_gap_ms, lost + 200)
            extra = lab_guest.nic_xml("vm1", Nic(bridge="br0"), 1)
            lab.exec("hv1", "virsh", "-q", "attach-device", "vm1", "/dev/stdin", "--live", stdin=extra)
            wait_until(lambda: "10.77.0.12/24" in lab.guest_sh("vm1", "ip address"), 20, "eth1 in the guest", 0.2)
            lab.exec("hv1", "virsh", "-q", "detach-device", "vm1", "/dev/stdin", "--live", stdin=extra)
            wait_until(lambda: "eth1" not in lab.guest_sh("vm1", "ip link"), 20, "eth1 to leave the guest", 0.2)
            with self.assertRaisesRegex(LabError, "in guest vm1 .*status 3"):
                lab.guest_sh("vm1", "(exit 3)")
            self.is_started_again(lab)

    def is_started_again(self, lab: Lab) -> None:
        """A guest whose kernel panics, and one that runs on but does not answer."""
        def panics() -> None:
            lab.guest_sh("vm1", "(sleep 0.2; echo c >/proc/sysrq-trigger) & true")
            wait_until(lambda: lab.virsh("hv1", "domstate", "vm1").strip() != "running", 20, "a panic", 0.1)

        def hangs() -> None:
            with self.assertRaisesRegex(LabError, "did not finish"):
                lab.guest_sh("vm1", "sleep 500", timeout=0.5)

        faults = iter((panics, hangs))

        def find_after_faults(_: bool) -> str:
            for fault in faults:
                fault()
                lab_guest.must_answer(lab, "vm1")
            return lab.find_vm("vm1")

        self.assertEqual(lab_measure.despite_panics(lab, "vm1", find_after_faults), "hv1")


if __name__ == "__main__":
    unittest.main(verbosity=2)
