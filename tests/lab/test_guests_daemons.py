#!/usr/bin/python3
"""Guests live on while libvirtd or bananad do not; and come up by themselves with their host.

    ext --- eth1 hv1 [Corm lab] === guests stay (hv1) and far (hv2, a VXLAN wire)
"""

import signal
import sys
import unittest

sys.dont_write_bytecode = True

from banana_lab import Nic, Vm, wait_until  # noqa: E402
from lab_base import build_dir  # noqa: E402
from lab_case import PATIENCE, LabCase  # noqa: E402

NEAR, FAR = "10.77.0.20", "10.77.0.21"
NEAR_SPIKE, FAR_SPIKE = "hv1/stay/net0", "hv2/far/net0"
# What a machine's own restart takes away: all of /run, its links, its BPF objects.
POWER_CUT = """
rm -rf /run/libvirt /run/banana /run/virtlogd* /sys/fs/bpf/*
for link in $(ls /sys/class/net); do
    case $link in bn* | vnet*) ip link del "$link" 2>/dev/null ;; esac
done
ip link set eth1 up
"""

# A service manager, as far as bananad sees of it: prints what it is told, and whether bananad answers then.
MANAGER = """
import os, signal, socket, subprocess, sys
path, words = "/run/notify", sys.argv[1:]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notes:
    notes.bind(path)
    notes.settimeout(30)
    with subprocess.Popen(words, env={**os.environ, "NOTIFY_SOCKET": path}, stderr=subprocess.DEVNULL) as daemon:
        print(notes.recv(4096).decode(), flush=True)
        print(subprocess.run(["banana", "status", "--brief"], capture_output=True).returncode, flush=True)
        daemon.send_signal(signal.SIGTERM)
        print(notes.recv(4096).decode(), daemon.wait())
os.unlink(path)
"""


class GuestsAndDaemons(LabCase):
    corms = {"lab": ("--uplink", "eth1")}

    def guests(self) -> None:
        for name, address, host in (("stay", NEAR, "hv1"), ("far", FAR, "hv2")):
            self.define(Vm(name, [Nic(network="banana-lab", address=f"{address}/24")]), host)
            self.lab.virsh(host, "start", name)
        self.both_reached()

    def both_reached(self) -> None:
        self.reach_whole(NEAR)
        self.reach_whole(FAR)

    def wired(self) -> list[tuple[object, ...]]:
        """What must not change when a daemon restarts."""
        return [(wire["name"], wire["format"], wire["epoch"], wire["connector"], wire["port"], wire["device"])
                for host in ("hv1", "hv2") for wire in self.banana(host, "wire", "list")["wires"]]

    def whole_again(self, host: str) -> None:
        wait_until(lambda: self.is_whole(host), PATIENCE, f"{host} to have its peers and libvirt")

    def test_bananad_says_when_it_is_ready(self) -> None:
        """Its unit is Type=notify and stands before libvirtd's: libvirtd, and so every guest, waits for this."""
        self.lab.kill_daemon("hv1", "bananad")
        self.addCleanup(self.whole_again, "hv1")
        self.addCleanup(self.lab.start_bananad, "hv1")
        said = self.lab.exec("hv1", "python3", "-c", MANAGER, str(build_dir() / "bananad"), "--config",
                             "/etc/banana/bananad.toml").stdout
        self.assertEqual(said.splitlines(), ["READY=1", "0", "STOPPING=1 0"])

    def test_daemons_restart_under_running_guests(self) -> None:
        self.guests()
        before = self.wired()
        self.assertEqual(len(before), 3)
        for host in ("hv1", "hv2"):
            for program in ("libvirtd", "bananad"):
                for number in (signal.SIGTERM, signal.SIGKILL):
                    with self.subTest(host=host, program=program, number=number.name):
                        self.restart(host, program, number)
                        self.assertEqual(self.wired(), before)
                        self.assertEqual(self.state("hv1", "stay"), "running")
                        self.assertEqual(self.state("hv2", "far"), "running")
        # The product still follows what happens to the guests.
        self.remove("stay", "far")
        self.await_nothing_left(NEAR_SPIKE, FAR_SPIKE)

    def restart(self, host: str, program: str, number: signal.Signals) -> None:
        self.lab.kill_daemon(host, program, number)
        self.both_reached()
        (self.lab.start_libvirtd if program == "libvirtd" else self.lab.start_bananad)(host)
        self.whole_again(host)
        self.both_reached()

    def test_libvirtd_restarts_while_bananad_is_away(self) -> None:
        """The `reconnect` hook never fails: that would end the guest."""
        self.guests()
        before = self.wired()
        self.lab.kill_daemon("hv1", "bananad")
        self.lab.kill_daemon("hv1", "libvirtd")
        self.lab.start_libvirtd("hv1")
        self.assertEqual(self.state("hv1", "stay"), "running")
        self.both_reached()
        self.lab.start_bananad("hv1")
        self.whole_again("hv1")
        self.assertEqual(self.wired(), before)
        self.both_reached()
        # One that ends while bananad is away is found to have ended when it is back.
        self.lab.kill_daemon("hv1", "bananad", signal.SIGKILL)
        self.lab.virsh("hv1", "destroy", "stay")
        self.lab.start_bananad("hv1")
        wait_until(lambda: self.spike("hv1", NEAR_SPIKE) is None, PATIENCE, f"{NEAR_SPIKE} to be given up")
        self.assertEqual(self.wires("hv1", NEAR_SPIKE), [])
        self.reach_whole(FAR)
        # And one that ends while neither is there.
        self.lab.kill_daemon("hv2", "bananad")
        self.lab.kill_daemon("hv2", "libvirtd")
        self.kill_qemu("hv2", "far")
        self.lab.start_bananad("hv2")
        self.lab.start_libvirtd("hv2")
        self.await_nothing_left(NEAR_SPIKE, FAR_SPIKE)

    def test_corm_made_while_libvirtd_is_away(self) -> None:
        """It says that its network is not there yet; which it is as soon as libvirtd is."""
        self.addCleanup(self.whole_again, "hv1")
        self.addCleanup(lambda: self.lab.pids("hv1", "libvirtd") or self.lab.start_libvirtd("hv1"))
        self.lab.kill_daemon("hv1", "libvirtd")
        wait_until(lambda: self.banana("hv1", "status")["libvirt"]["state"] == "not connected", PATIENCE,
                   "bananad to see that libvirtd is gone")
        made = self.banana("hv1", "corm", "create", "late", "--etherstub")
        self.addCleanup(self.banana, "hv1", "corm", "delete", "late")
        self.assertEqual(made["state"], "degraded")
        self.assertRegex(" ".join(made["problems"]), "libvirt network banana-late .* when libvirt is connected again")
        self.lab.start_libvirtd("hv1")
        self.whole_again("hv1")
        wait_until(lambda: self.banana("hv1", "corm", "show", "late")["problems"] == [], PATIENCE, "no problem")
        self.assertIn("banana-late", self.lab.virsh("hv1", "net-list", "--name").split())

    def test_autostart_with_the_host(self) -> None:
        self.guests()
        self.lab.virsh("hv1", "autostart", "stay")
        self.lab.kill_daemon("hv1", "libvirtd", signal.SIGKILL)
        self.lab.kill_daemon("hv1", "bananad", signal.SIGKILL)
        self.kill_qemu("hv1", "stay")
        self.lab.kill_daemon("hv1", "virtlogd")
        self.lab.exec("hv1", "sh", "-c", POWER_CUT)
        self.unreachable(NEAR)
        self.unreachable(FAR)
        self.lab.start_bananad("hv1")  # its unit comes before libvirtd's
        self.reach_whole(FAR)          # ready without libvirt; the other host's guest is back at once
        self.lab.start_libvirtd("hv1")
        wait_until(lambda: self.state("hv1", "stay") == "running", PATIENCE, "the guest to be started by libvirtd")
        self.both_reached()
        self.assertEqual(self.await_spike("hv1", NEAR_SPIKE)["domain"], "stay")
        self.assertEqual([wire["format"] for wire in self.banana("hv1", "wire", "list")["wires"]].count("vxlan"), 1)
        self.remove("stay", "far")
        self.await_nothing_left(NEAR_SPIKE, FAR_SPIKE)


if __name__ == "__main__":
    unittest.main(verbosity=2)
