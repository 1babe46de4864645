#!/usr/bin/python3
"""A guest's life on a Corm: cold plug, hints, every way to end, to pause and to keep it.

    ext --- eth1 hv1 [Corm lab] === guest life, on hv1         hv2 stands by
"""

import functools
import re
import sys
import unittest
import uuid

sys.dont_write_bytecode = True

import lab_measure  # noqa: E402
import lab_product  # noqa: E402
from banana_lab import Lab, Nic, Vm, wait_until  # noqa: E402
from lab_case import PATIENCE, LabCase  # noqa: E402

ADDRESS = "10.77.0.10"
SPIKE = "hv1/life/net0"
EVENT = re.compile(r"event '([a-z-]+)' for domain '([^']+)': (.*)")


def guest(name: str = "life", address: str = ADDRESS) -> Vm:
    return Vm(name, [Nic(network="banana-lab", address=f"{address}/24")])


class LifeEvents(lab_measure.EventReader):
    """libvirt's own events of a host, where EventReader has QEMU's."""

    def __init__(self, lab: Lab, host: str) -> None:
        self.host = host
        self._process = lab.spawn(host, "stdbuf", "-oL", "virsh", "event", "--all", "--loop")

    def seen(self, domain: str) -> list[str]:
        return [f"{kind}: {text}" for kind, name, text in EVENT.findall(self._process.read()) if name == domain]


class GuestLife(LabCase):
    corms = {"lab": ("--uplink", "eth1")}

    def test_cold_plug_and_metadata(self) -> None:
        vm = guest()
        events = LifeEvents(self.lab, "hv1")
        self.addCleanup(events.close)
        events.wait_ready()
        self.start(vm)
        self.reach_whole(ADDRESS)
        wire = self.wires("hv1", SPIKE)[0]
        self.assertEqual((wire["format"], wire["role"], wire["phase"]), ("native", "both", "active"))
        identity = self.lab.virsh("hv1", "domuuid", "life").strip()
        wanted = {"interface": "net0", "name": SPIKE, "home": "hv1", "corm": "hv1/lab", "uuid": identity,
                  "epoch": str(wire["epoch"]), "mac": wire["mac"]}
        for options in ((), ("--inactive",)):
            self.assertEqual(self.await_metadata("hv1", "life", *options), wanted)
        # Not from a hook: a domain's start is an event once all its hooks have ended, and only then came the hints.
        wait_until(lambda: any(one.startswith("metadata-change") for one in events.seen("life")), PATIENCE,
                   "metadata-change")
        kinds = [one.partition(":")[0] for one in events.seen("life") if "Started" in one or "metadata" in one]
        self.assertEqual(kinds[:2], ["lifecycle", "metadata-change"])
        self.check_metadata_outlives_an_end(wire["epoch"])

    def check_metadata_outlives_an_end(self, epoch: int) -> None:
        self.lab.virsh("hv1", "destroy", "life")
        self.await_nothing_left(SPIKE)
        self.assertEqual(self.await_metadata("hv1", "life")["name"], SPIKE)
        self.lab.virsh("hv1", "start", "--paused", "life")
        later = self.await_spike("hv1", SPIKE)["epoch"]
        self.await_metadata("hv1", "life", epoch=str(later))
        self.assertNotEqual(later, 0)
        self.lab.virsh("hv1", "destroy", "life")
        self.lab.virsh("hv1", "undefine", "life")
        self.await_nothing_left(SPIKE)
        self.assertGreater(epoch, 0)

    def test_crash_ends_the_spike_and_a_new_start_works(self) -> None:
        self.start(guest())
        self.reach(ADDRESS)
        self.kill_qemu("hv1", "life")
        wait_until(lambda: self.state("hv1", "life") == "shut off", PATIENCE, "libvirt to see the crash")
        self.await_nothing_left(SPIKE)
        self.unreachable(ADDRESS)
        self.lab.virsh("hv1", "start", "life")
        self.reach(ADDRESS)

    def test_started_again_at_once(self) -> None:
        """An end is worked off by itself, and libvirt tells of it twice; neither may hit the run that follows."""
        self.define(guest())
        epochs = []
        for _ in range(8):
            self.lab.virsh("hv1", "start", "--paused", "life")
            epochs.append(self.await_spike("hv1", SPIKE)["epoch"])
            self.lab.virsh("hv1", "destroy", "life")
        self.assertEqual(sorted(set(epochs)), epochs)
        self.lab.virsh("hv1", "start", "life")
        self.reach(ADDRESS)
        self.assertEqual(len(self.wires("hv1", SPIKE)), 1)

    def test_undefined_while_it_runs(self) -> None:
        self.start(guest())
        self.lab.virsh("hv1", "undefine", "life")  # a transient guest from here on
        self.reach(ADDRESS)
        self.assertEqual(self.await_spike("hv1", SPIKE)["domain"], "life")
        self.lab.virsh("hv1", "destroy", "life")
        self.await_nothing_left(SPIKE)
        self.assertNotIn("life", self.lab.virsh("hv1", "list", "--all", "--name").split())

    def test_suspend_save_and_restore(self) -> None:
        self.start(guest())
        self.reach(ADDRESS)
        before = self.wires("hv1", SPIKE)[0]
        self.lab.guest_sh("life", "echo kept >/tmp/mark")
        self.lab.virsh("hv1", "suspend", "life")
        self.unreachable(ADDRESS)
        self.assertEqual(self.wires("hv1", SPIKE)[0], before)  # a pause is no migration: nothing was flipped
        self.lab.virsh("hv1", "resume", "life")
        self.reach(ADDRESS)
        self.assertEqual(self.wires("hv1", SPIKE)[0], before)
        self.lab.virsh("hv1", "save", "life", "/var/lib/libvirt/life.save")
        self.await_nothing_left(SPIKE)
        self.lab.virsh("hv1", "restore", "/var/lib/libvirt/life.save")
        self.reach_whole(ADDRESS)
        self.assertEqual(self.lab.guest_sh("life", "cat /tmp/mark"), "kept\n")
        wire = self.wires("hv1", SPIKE)[0]
        self.assertEqual((wire["format"], wire["phase"]), ("native", "active"))
        self.await_metadata("hv1", "life", epoch=str(wire["epoch"]))

    def test_started_at_once_after_an_offline_migration(self) -> None:
        """It has a `migrate` hook as well, but nobody owns the Spike of a guest that is off."""
        self.define(guest())
        self.lab.exec("hv1", *lab_product.migrate_words("life", "hv2", "--offline", "--persistent", "--undefinesource"))
        self.lab.virsh("hv2", "start", "life")
        self.reach_whole(ADDRESS)
        spike = self.await_spike("hv2", "hv2/life/net0")
        self.await_metadata("hv2", "life", name="hv2/life/net0", epoch=str(spike["epoch"]))

    def test_any_name_that_libvirt_takes(self) -> None:
        """What is not plain in it is written as %XX, and one that is too long is cut; the wire is found by that."""
        for name, shown in (("win\\dom", "win%5Cdom"), ("büro", "b%C3%BCro"), ("n" * 200, "n" * 128 + "...")):
            with self.subTest(name):
                spike = f"hv2/{shown}/net0"
                self.define(guest(name), "hv2")
                self.lab.virsh("hv2", "start", "--paused", name)
                self.await_metadata("hv2", name, name=spike)
                for host in ("hv1", "hv2"):
                    self.assertEqual(self.banana(host, "wire", "show", spike)["format"], "vxlan")
                    self.assertIn(spike, self.lab.exec(host, "banana", "wire", "list").stdout)
                self.assertIn("running guest's", self.refused("hv2", "banana", "disconnect", spike))
                self.lab.virsh("hv2", "attach-interface", name, "network", "banana-lab", "--model", "virtio", "--live")
                second = self.await_spike("hv2", f"hv2/{shown}/net0-2")["name"]
                self.lab.virsh("hv2", "destroy", name)
                self.await_nothing_left(spike, second)

    def test_rename_keeps_the_spike(self) -> None:
        self.define(guest())
        self.lab.virsh("hv1", "start", "--paused", "life")
        self.await_metadata("hv1", "life")
        self.lab.virsh("hv1", "destroy", "life")
        self.await_nothing_left(SPIKE)
        self.lab.virsh("hv1", "domrename", "life", "afterlife")
        self.addCleanup(self.remove, "afterlife")
        self.lab.virsh("hv1", "start", "afterlife")
        self.reach(ADDRESS)
        spike = self.await_spike("hv1", SPIKE)  # a Spike keeps its name
        self.assertEqual(spike["domain"], "afterlife")
        # Another guest may take the old name; its Spike's is then made unique by the guest's uuid.
        other = str(uuid.uuid4())
        changes = (("<uuid>.*</uuid>", f"<uuid>{other}</uuid>"), ("52:54:00:..:..:..", "52:54:00:00:00:11"),
                   ("life-serial", "other-serial"))
        self.define(guest(address="10.77.0.11"),
                    edit=lambda xml: functools.reduce(lambda text, change: re.sub(*change, text), changes, xml))
        self.lab.virsh("hv1", "start", "--paused", "life")
        wire_name = f"{SPIKE}~{other[:8]}"
        self.await_spike("hv1", wire_name)
        self.assertEqual(self.await_metadata("hv1", "life")["name"], wire_name)
        self.reach(ADDRESS)
        self.lab.virsh("hv1", "destroy", "life")
        self.lab.virsh("hv1", "destroy", "afterlife")
        self.await_nothing_left(SPIKE, wire_name)


if __name__ == "__main__":
    unittest.main(verbosity=2)
