#!/usr/bin/python3
"""What is timed of DTLS wires: a migration's gaps, and the death of banana-tunneld. Root; nothing else beside it."""

import signal
import sys
import time
import unittest

sys.dont_write_bytecode = True

import lab_measure  # noqa: E402
import lab_product as product  # noqa: E402
from lab_base import TOP  # noqa: E402
from lab_dtls import ADDRESS, SPIKE, DtlsCase, wait_tunnels  # noqa: E402

sys.path.insert(0, str(TOP / "tests/check"))
import verdict  # noqa: E402

MOST_LOST = 20  # frames each way, of 1 000 a second, as for VXLAN


class DtlsTimedTest(DtlsCase):
    timed = True

    def cross(self, kind: str, destination: str, after: str) -> verdict.Row:
        return lab_measure.despite_panics(
            self.lab, "vm1", lambda punctual: self.cross_once(kind, destination, after, punctual))

    def cross_once(self, kind: str, destination: str, after: str, punctual: bool) -> verdict.Row:
        product.wait_tidy(self.lab)
        before = product.wire(self.lab, "hv1", SPIKE)
        measured = lab_measure.migrate_under_traffic(self.lab, "vm1", destination, ADDRESS, punctual=punctual)
        print(lab_measure.row(f"{kind}: to {after}", measured), file=sys.stderr)
        wire = product.wire(self.lab, "hv1", SPIKE)
        assert before is not None and wire is not None
        self.assertEqual((wire["format"], wire["spike_host"]), (after, destination))
        self.assertTrue(measured.traffic["complete"])
        self.assertTrue(measured.traffic["tcp"]["survived"], measured.traffic["tcp"])
        for way in ("to_guest", "from_guest"):
            self.assertLessEqual(measured.traffic[way]["lost"], MOST_LOST, measured.traffic[way])
            self.assertEqual(measured.traffic[way]["duplicates"], 0, measured.traffic[way])
        product.wait_tidy(self.lab)
        return verdict.Row.of(kind, measured, before["format"], after)

    def test_3_migration_each_way(self) -> None:
        """As on VXLAN: the loss, and of a gap what neither QEMU nor the guest accounts for (tests/check/verdict.py)."""
        self.bring("hv1")
        rows: dict[str, list[verdict.Row]] = {"vxlan": [], "dtls": []}
        for kind, host in (("vxlan", "hv3"), ("dtls", "hv2")):
            rows[kind].append(self.cross(kind, host, kind))
            rows[kind].append(self.cross(kind, "hv1", "native"))
            self.assertEqual({name for one in ("hv1", host) for name in product.devices(self.lab, one)
                              if name.startswith(("bnd", "bnx"))}, set())
        for way, _, rest in verdict.WAYS:
            ours, theirs = (max(map(rest, rows[kind])) for kind in ("dtls", "vxlan"))
            print(f"of a gap {way} the guest neither accounts for {ours:.1f} ms, vxlan {theirs:.1f}", file=sys.stderr)
            with self.subTest(way):
                self.assertLessEqual(ours, theirs + verdict.GAP_LIMIT_MS, rows)

    def test_5_tunneld_killed(self) -> None:
        """It is started again, told all its wires, and they carry frames: within a second."""
        self.bring("hv2")
        for host in ("hv1", "hv2"):
            with self.subTest(host), lab_measure.Traffic(self.lab, ADDRESS) as flow:
                time.sleep(0.5)  # not a wait for anything: a piece of the measurement
                self.lab.kill_daemon(host, "banana-tunneld", signal.SIGKILL)
                self.assertTrue(product.reaches(self.lab, ADDRESS, 5))
                time.sleep(0.5)
                report = flow.finish()
                print(f"dtls: banana-tunneld of {host} killed: longest gaps {report['to_guest']['longest_gap_ms']:.0f} "
                      f"and {report['from_guest']['longest_gap_ms']:.0f} ms", file=sys.stderr)
                self.assertTrue(report["tcp"]["survived"])
                for way in ("to_guest", "from_guest"):
                    self.assertLessEqual(report[way]["longest_gap_ms"], 1000, report[way])
        wait_tunnels(self.lab)
        product.wait_tidy(self.lab)


if __name__ == "__main__":
    unittest.main(verbosity=2)
