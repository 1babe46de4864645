#!/usr/bin/python3
"""macvtap Spikes: an endpoint device made beforehand, a guest that sits on it, and its migrations.

    ext --- eth1 hv1 [Corm lab] === bnf|bne - macvtap - guest tip, on hv1, then hv2, then hv1
"""

import sys
import unittest

sys.dont_write_bytecode = True

import lab_measure  # noqa: E402
from banana_lab import Nic, Vm, wait_until  # noqa: E402
from lab_case import ENDPOINT, PATIENCE, LabCase  # noqa: E402

ADDRESS = "10.77.0.50"
SPIKE = "hv1/dev/tip"


class Macvtap(LabCase):
    corms = {"lab": ("--uplink", "eth1")}

    def endpoint(self) -> str:
        made = self.banana("hv1", "spike", "create", "tip", "--macvtap")
        self.addCleanup(self.forget)
        self.assertEqual((made["name"], made["kind"], made["state"]), (SPIKE, "macvtap", "unwired"))
        self.assertTrue(made["device"].startswith(ENDPOINT))
        self.assertIn(made["device"], self.own_devices("hv1"))
        return str(made["device"])

    def forget(self) -> None:
        self.remove("tip")
        if self.spike("hv1", SPIKE):
            wait_until(lambda: self.spike("hv1", SPIKE)["state"] == "unwired", PATIENCE, f"{SPIKE} to be unwired")
            self.banana("hv1", "spike", "delete", "tip")
        self.await_nothing_left(SPIKE)

    def test_start_migrate_there_and_back(self) -> None:
        device = self.endpoint()
        vm = Vm("tip", [Nic(direct=device, address=f"{ADDRESS}/24")])
        self.define(vm)
        self.assertIn("banana connect", self.refused("hv1", "virsh", "start", "tip"))  # no Corm yet
        self.banana("hv1", "connect", "tip", "lab")
        self.lab.virsh("hv1", "start", "tip")
        self.reach_whole(ADDRESS)
        spike = self.await_spike("hv1", SPIKE)
        self.assertEqual((spike["format"], spike["corm"], spike["domain"]), ("native", "hv1/lab", "tip"))
        self.await_metadata("hv1", "tip", name=SPIKE, home="hv1")
        self.assertIn("running guest", self.refused("hv1", "banana", "disconnect", "tip"))
        self.assertIn(SPIKE, self.refused("hv1", "banana", "corm", "delete", "lab"))
        self.lab.guest_sh("tip", "echo kept >/tmp/mark")
        for source, host, wire in (("hv1", "hv2", "vxlan"), ("hv2", "hv1", "native")):
            measured = lab_measure.migrate_under_traffic(self.lab, "tip", host, ADDRESS)
            self.assertTrue(measured.traffic["tcp"]["survived"])
            self.reach_whole(ADDRESS)
            spike = self.await_spike(host, SPIKE)
            self.assertEqual((spike["format"], spike["device"]), (wire, device))
            self.assertEqual([one["format"] for one in self.wires("hv1", SPIKE)], [wire])
            self.await_metadata(host, "tip", name=SPIKE, home="hv1", epoch=str(spike["epoch"]))
            wait_until(lambda at=source: (self.spike(at, SPIKE) or {"state": "unwired"})["state"] == "unwired",
                       PATIENCE, f"{source} to have given {SPIKE} up")
        self.assertEqual(self.lab.guest_sh("tip", "cat /tmp/mark"), "kept\n")
        self.await_no_devices("hv2")  # an endpoint that was there for the guest's visit is not a guest's home
        self.lab.virsh("hv1", "destroy", "tip")
        self.await_spike("hv1", SPIKE, "unwired")
        self.unreachable(ADDRESS)
        self.assertIn(device, self.own_devices("hv1"))  # the endpoint is its maker's
        self.lab.virsh("hv1", "start", "tip")
        self.reach(ADDRESS)

    def test_refusals(self) -> None:
        device = self.endpoint()
        self.refused("hv1", "banana", "spike", "create", "tip", "--macvtap")
        self.refused("hv1", "banana", "spike", "create", "no/name", "--macvtap")
        self.refused("hv1", "banana", "connect", "tip", "nowhere")
        self.banana("hv1", "connect", "tip", "lab")
        absent = f"{ENDPOINT}{int(device[3:], 16) ^ 1:08x}"
        self.define(Vm("tip", [Nic(direct=absent)]))
        text = self.refused("hv1", "virsh", "start", "tip")
        self.assertIn(absent, text)
        self.assertEqual([one for one in self.own_devices("hv1") if one.startswith(ENDPOINT)], [device])


if __name__ == "__main__":
    unittest.main(verbosity=2)
